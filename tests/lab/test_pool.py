"""The class's table: what its numbers are, what is left out and why, and hostile files."""

import io
import json
import os
import re
import shutil
import struct
import zipfile
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.intervals import clustered_mean
from helpers.paths import DATA
from helpers.runs import REFERENCE_RUNS
from lab import pack, pool

EVIL = "<script>alert(1)<!script>.zip"
TRAINING = {"num_generations": 16, "per_device_train_batch_size": 128,
            "gradient_accumulation_steps": 1}
RATE = "learning_rate 0.0008"


def packed(folder, run):
    """Pack a real recorded run, of its completions those at T = 1; return the files' bytes."""
    shutil.copytree(run, folder)
    frame = pd.read_parquet(folder / "evaluation.parquet")
    frame[frame["temperature"] == 1].to_parquet(folder / "evaluation.parquet", index=False)
    return pack.unzip(pack.pack(folder)[0])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Five real runs with different seeds, as bytes by name."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [*(REFERENCE_RUNS / f"cpu-seed{k}" for k in range(3)),
            *(DATA / f"attempts/cpu-seed{k}" for k in (3, 4))]
    return [packed(folder / run.name, run) for run in runs]


def hand_in(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def changed(files, **arguments):
    """The same run, as if these arguments of GRPOConfig had been changed."""
    value = json.loads(files["config.json"]) | {"training": TRAINING | arguments}
    return files | {"config.json": json.dumps(value).encode()}


def edited(run, edit, **arguments):
    """A run that was read, as if its config.json had been another one."""
    value = json.loads(json.dumps(run.config))
    edit(value)
    if arguments:
        value["training"] = TRAINING | arguments
    return replace(run, config=value)


def as_is(value):
    """Change nothing of a configuration."""


@pytest.fixture(scope="module")
def lab(seeds, tmp_path_factory):
    """A folder of four that can be compared: two unchanged, two with another rate."""
    folder = tmp_path_factory.mktemp("class")
    hand_in(folder / "ada.zip", seeds[0])
    hand_in(folder / "ben.zip", seeds[1])
    hand_in(folder / "cem.zip", changed(seeds[2], learning_rate=8e-4))
    hand_in(folder / "dia.zip", changed(seeds[3], learning_rate=8e-4, seed=33))
    return folder


@pytest.fixture(scope="module")
def good(lab):
    """What is read of that folder."""
    runs, bad = pool.read_folder(lab)
    assert [name for name, _ in runs] == ["ada.zip", "ben.zip", "cem.zip", "dia.zip"] and not bad
    return runs


@pytest.fixture(scope="module")
def fifth(seeds):
    """One more run, as it is read."""
    return pack.check(seeds[4])


@pytest.fixture
def room(tmp_path):
    """A folder for what else is handed in."""
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


def refused(good, folder):
    """Return the reason by file of what is left out, after checking that the others go on."""
    runs, bad = pool.read_folder(folder)
    reasons = dict(bad) | left_out(good, runs)
    assert all(reason.isprintable() for reason in reasons.values())
    return reasons


def left_out(good, runs):
    """The same, of runs that were read."""
    trainings, others = pool.comparable([*good, *runs])
    assert list(trainings["file"]) == [name for name, _ in good]
    return dict(others)


def test_gains_spread_and_intervals_are_those_of_the_answers(good):
    each, means = pool.gains(pool.comparable(good)[0])
    assert list(each["file"]) == ["ada.zip", "ben.zip", "cem.zip", "dia.zip"]
    assert list(each["seed"]) == ["0", "1", "2", "33"]
    ada = each.loc[0]  # as docs/results.md has it
    assert [round(ada[name], 1) for name in ("before", "after", "gain", "low", "high")] == [
        35.5, 65.4, 29.9, 26.2, 33.7]
    assert list(means.index) == [pool.UNCHANGED, RATE] and list(means["trainings"]) == [2, 2]
    for name, part in each.groupby("setting"):
        assert means.loc[name, "gain"] == pytest.approx(part["gain"].mean())
        assert means.loc[name, "lowest"] == part["gain"].min()
        assert means.loc[name, "highest"] == part["gain"].max()
    wide = pd.concat([run.frame.pivot(index="puzzle", columns="stage", values="correct").astype(int)
                      for _, run in good[:2]])
    expected = clustered_mean(wide["after"] - wide["before"], [nums for nums, _ in wide.index])
    assert means.loc[pool.UNCHANGED, "low"] == pytest.approx(100 * expected["low"])
    assert means.loc[pool.UNCHANGED, "high"] == pytest.approx(100 * expected["high"])


def test_the_largest_gain_stands_first_after_what_was_not_changed(good):
    ada, ben, cem = (run for _, run in good[:3])
    runs = [("a", edited(ada, as_is, beta=0.1)), ("b", edited(cem, as_is, beta=0.2)), ("c", ben)]
    each, means = pool.gains(pool.comparable(runs)[0])
    assert list(means.index) == [pool.UNCHANGED, "beta 0.2", "beta 0.1"]
    assert list(each["file"]) == ["c", "b", "a"]


def test_three_files_are_written_and_say_the_same(lab, tmp_path, capsys):
    room = shutil.copytree(lab, tmp_path / "class")
    hand_in(room / EVIL, {"config.json": b"{}"})
    hand_in(room / "two.zip", changed(pack.unzip(room / "ada.zip"), beta=0.1, temperature=0.7))
    out = tmp_path / "new" / "pool"
    assert pool.main([str(room), "--out", str(out)]) == 0
    text, page = ((out / f"pool.{end}").read_text(encoding="utf-8") for end in ("txt", "html"))
    assert text in capsys.readouterr().out
    for part in ("4 trainings of 80 steps, profile cpu, 815 test puzzles", "+29.9", RATE, "dia.zip",
                 "two.zip: more than one setting was changed: beta 0.1, temperature 0.7",
                 "2 trainings changed nothing"):
        assert part in text and part in page
    assert EVIL in text and "<script" not in page and "&lt;script&gt;" in page
    data = (out / "pool.png").read_bytes()
    assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24])[0] == 1800
    assert page.count("<img alt=") == 1 and "://" not in page


def test_chance_is_said_for_the_number_of_unchanged_trainings():
    def said(**trainings):
        return " ".join(pool.notes(pd.DataFrame({"trainings": trainings})))

    assert "Nobody trained without a change" in said(rate=2)
    assert "1 training changed nothing" in said(**{pool.UNCHANGED: 1})
    assert "outside of their range by chance in 40 % of cases" in said(**{pool.UNCHANGED: 4})


def shorter(run):
    return replace(run, rows=run.rows[:60])


NOT_COMPARABLE = {
    r"steps 60 \(most have 80\)": shorter,
    r"profile 'cpu-short' \(most have 'cpu'\)": lambda run: edited(
        run, lambda c: c["profile"].update(name="cpu-short")),
    r"puzzles 'public' \(most have 'cpu'\)": lambda run: edited(
        run, lambda c: c["profile"].update(puzzles="public")),
    r"trl '1.0' \(most have '1.14.2'\)": lambda run: edited(
        run, lambda c: c["versions"].update(trl="1.0")),
    r"trl '\[\]'": lambda run: edited(run, lambda c: c["versions"].update(trl=[])),
    "more than one setting was changed: learning_rate 0.0001, loss_type grpo": (
        lambda run: edited(run, as_is, learning_rate=1e-4, loss_type="grpo")),
    "more than one setting was changed: group_size 4, prompts_per_step 16": (
        lambda run: edited(run, as_is, num_generations=4, per_device_train_batch_size=64)),
    "it was not evaluated at temperature 1": lambda run: replace(
        run, frame=run.frame.assign(temperature=0.6)),
}


@pytest.mark.parametrize(("reason", "spoil"), NOT_COMPARABLE.items(), ids=list(NOT_COMPARABLE))
def test_what_cannot_be_compared_is_left_out(reason, spoil, good, fifth):
    found = left_out(good, [("x.zip", spoil(fifth))])
    assert list(found) == ["x.zip"] and re.search(reason, found["x.zip"])


def test_the_same_training_counts_once(good):
    (_, ada), (_, ben), *_ = good
    later = edited(ada, lambda c: c.update(date="2026-12-01", hardware="8 CPU cores"))
    slower = [row | {"seconds": 1.0, "step_seconds": 0.1} for row in ada.rows]
    also = replace(ben, rows=[row | {"loss": 0.0} for row in ben.rows])  # the answers tell
    assert left_out(good, [("zoe.zip", replace(later, rows=slower)), ("yan.zip", also)]) == {
        "zoe.zip": "the same training as ada.zip. Another person needs another seed",
        "yan.zip": "the same training as ben.zip. Another person needs another seed"}


def test_what_counts_as_one_setting(fifth):
    def setting(edit, **arguments):
        return pool.setting_of(edited(fifth, edit, **arguments))

    assert setting(as_is) == pool.UNCHANGED
    assert setting(as_is, num_generations=4) == "group_size 4 (32 prompts)"
    assert setting(lambda c: c["profile"].update(micro_batch=32, save_every=5, steps=60)) == (
        pool.UNCHANGED)
    assert setting(lambda c: c["profile"].update(temperature=0.7)) == "temperature 0.7"
    with pytest.raises(pack.BadRun, match="its rewards were 'length_bonus', and"):
        setting(lambda c: c.update(rewards={"length_bonus": 1.0}))


def test_another_part_is_refused(good, room, seeds):
    frame = pd.read_parquet(DATA / "sweeps" / "cpu-lr8e-4-seed100" / "evaluation.parquet")
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, buffer := io.BytesIO())
    hand_in(room / "x.zip", seeds[0] | {"evaluation.parquet": buffer.getvalue()})
    assert "not hold every test puzzle of cpu exactly once" in refused(good, room)["x.zip"]


def test_hostile_files_are_left_out_one_line_each(good, room, seeds, lab, tmp_path):
    whole = (lab / "ada.zip").read_bytes()
    (room / "cut.zip").write_bytes(whole[:-999])
    (room / "empty.zip").write_bytes(b"")
    (room / "huge.zip").write_bytes(os.urandom(1024) * (pack.PACKED // 1024 + 1))
    hand_in(room / "bomb.zip", seeds[4] | {"metrics.jsonl": b" " * (pack.UNPACKED + 1)})
    hand_in(room / "out.zip", seeds[4] | {"../../out.txt": b"x"})
    (room / "link.zip").symlink_to(tmp_path)
    (room / "folder.zip").mkdir()
    (room / "notes.txt").write_text("hello")
    (room / ".hidden").write_text("hello")
    (room / "a\x1b[2J\nb.zip").write_bytes(b"PK")
    hand_in(room / "types.zip", changed(seeds[4], num_generations="16"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(room / "pipe.zip")
    found = refused(good, room)
    expected = {"cut.zip": "no whole ZIP", "empty.zip": "no whole ZIP", "huge.zip": "16 MiB",
                "bomb.zip": "64 MiB", "out.zip": "it holds", "link.zip": "no plain file",
                "folder.zip": "no plain file", "notes.txt": "no whole ZIP",
                r"'a\x1b[2J\nb.zip'": "no whole ZIP", "types.zip": "no right num_generations"}
    expected |= {"pipe.zip": "no plain file"} if hasattr(os, "mkfifo") else {}
    assert set(found) == set(expected)
    assert not [name for name, part in expected.items() if part not in found[name]]
    assert not list(tmp_path.glob("out*"))


def test_a_name_may_hold_whatever_matplotlib_would_set_as_mathematics(fifth):
    odd = edited(fifth, as_is, reward_funcs=["$x^", "_" * 200], reward_weights=[1],
                 seed=[0] * 99)
    each, means = pool.gains(pool.comparable([("a", odd)])[0])
    figure = pool.draw(each, means)
    figure.canvas.draw()
    assert "$x^" in figure.axes[0].get_yticklabels()[0].get_text() and len(each["seed"][0]) < 30
    plt.close(figure)


def test_a_folder_without_a_run_is_said_with_all_reasons(tmp_path, capsys, monkeypatch):
    assert pool.main([str(tmp_path / "none")]) == 1
    assert "cannot be read (No such file or directory): give the folder" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("hello")
    assert pool.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "holds no run that can be used\n  notes.txt: it is no whole ZIP file" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(pool, "MOST", 0)
    assert pool.main([str(tmp_path)]) == 1
    assert "holds 1 files, more than 0" in capsys.readouterr().err


def test_the_profile_that_most_have_decides(good):
    (_, ada), *two = good[:3]
    few = edited(ada, lambda c: c["profile"].update(name="cpu-short"))
    trainings, others = pool.comparable([("few", few), *two])
    assert list(trainings["file"]) == ["ben.zip", "cem.zip"] and [n for n, _ in others] == ["few"]
