"""A packed run: what the packer leaves out, and what a stranger's file is refused for."""

import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers import dataset, profiles, training
from helpers.evaluation import sample_completions
from helpers.exercises import reached
from helpers.models import LINEAR_LAYERS, load_model
from helpers.paths import ROOT
from helpers.runs import FILES, REFERENCE_RUNS, open_run, read_config
from lab import pack, record

EVIL = "<script>alert(1)</script>"
TRAINING = {"num_generations": 16, "per_device_train_batch_size": 128,
            "gradient_accumulation_steps": 1}  # the part of a run's settings that has to be there


@pytest.fixture
def folder(tmp_path):
    """A real run in a folder of the test's own."""
    return shutil.copytree(REFERENCE_RUNS / "cpu-seed0", tmp_path / "cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bytes of a real run's packed files, by name; of its completions, those at T = 1."""
    folder = tmp_path_factory.mktemp("runs") / "cpu"
    shutil.copytree(REFERENCE_RUNS / "cpu-seed0", folder)
    frame = pd.read_parquet(folder / "evaluation.parquet")
    frame[frame["temperature"] == 1].to_parquet(folder / "evaluation.parquet", index=False)
    return pack.unzip(pack.pack(folder)[0])


def zipped(path, files):
    """Write a ZIP file of bytes by name, or by ZipInfo."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def config(edit):
    """A change to config.json, as a function of a pack's files."""
    def change(files):
        value = json.loads(files["config.json"])
        edit(value)
        return files | {"config.json": json.dumps(value).encode()}
    return change


def table(edit):
    """A change to evaluation.parquet, by a function from one table to another."""
    def change(files):
        buffer = io.BytesIO()
        pq.write_table(edit(pq.read_table(io.BytesIO(files["evaluation.parquet"]))), buffer,
                       compression="zstd")
        return files | {"evaluation.parquet": buffer.getvalue()}
    return change


def column(name, edit):
    """A change to one column of evaluation.parquet, by a function of its list of values."""
    def change(old):
        i = old.column_names.index(name)
        new = pa.array(edit(old[name].to_pylist()), old[name].type)
        return old.set_column(i, old.field(i), new)
    return table(change)


def metrics(edit):
    """A change to metrics.jsonl, by a function from lines to lines."""
    def change(files):
        return files | {"metrics.jsonl": b"".join(edit(
            files["metrics.jsonl"].splitlines(keepends=True)))}
    return change


def samples(**changes):
    """One more file: a sample that is right, but for the changes."""
    row = {"step": 0, "temperature": 1.0, "sample": 0, "nums": [4, 4, 3], "target": 28,
           "completion": "<think>no</think>\n<answer>(3 + 4) * 4 = 28</answer>", "tokens": 9,
           "correct": True} | changes
    return lambda files: files | {"samples.jsonl": json.dumps(row).encode() + b"\n"}


def first(value):
    return lambda values: [value, *values[1:]]


def test_a_real_run_is_packed_and_read_again(folder, capsys):
    shutil.copyfile(ROOT / "tests/lab/test_pack.py", folder / "notes.txt")
    assert pack.main([str(folder)]) == 0
    (path,) = folder.parent.glob("*.zip")
    assert re.fullmatch(r"cpu-2026-11-22-[0-9a-f]{8}\.zip", path.name)
    assert f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, config.json" in (
        capsys.readouterr().out)
    assert set(zipfile.ZipFile(path).namelist()) == set(FILES)
    shown = "\n".join(pack.result(pack.read_pack(path)))
    assert "cpu, seed 0: 80 steps (the profile has 80), 2 CPU cores, AMD EPYC" in shown
    assert "settings that differ from the profile's: none" in shown
    assert "trl 1.14.2" in shown and "smoke" not in shown and "short" not in shown
    # as docs/results.md has it
    assert ("temperature 1: 35.5% right before, 65.4% after, gain +29.9 points (+26.2 to +33.7), "
            "815 test puzzles") in shown
    before = path.read_bytes()
    pack.pack(folder)
    assert path.read_bytes() == before  # the same run is the same file


def test_names_paths_and_tokens_stay_at_home(folder, monkeypatch, capsys):
    monkeypatch.setenv("USER", "ada")
    value = json.loads((folder / "config.json").read_text())
    value["command"] = "python -m lab.record --name /home/somebody/runs/x"
    value["training"] = TRAINING | {
        "by": "Ada, on a rented card", "quoted": 'model="m"', "mail": "a@b.example",
        "drive": "C:\\runs", "all": ["hf_abcdefghijkl"], "home": "~/runs",
        "key": "0123456789abcdef0123456789abcdef01234567",
        "kept": "reward a / b, 2.2 @ 3, data/puzzles/cpu-test.parquet, adapter"}
    (folder / "config.json").write_text(json.dumps(value))
    _, run = pack.pack(folder)
    assert run.config["training"] == dict.fromkeys(value["training"], "left out") | TRAINING | {
        "all": ["left out"], "kept": value["training"]["kept"]}
    assert run.config["command"] == "left out"
    assert capsys.readouterr().out.count("left out: ") == 8
    assert json.loads((folder / "config.json").read_text()) == value  # the run is as it was


@pytest.mark.parametrize(("name", "advice"), [
    ("config.json", "notebook 04 makes one"), ("metrics.jsonl", "notebook 04"),
    ("evaluation.parquet", "run notebook 05 first")])
def test_what_is_missing_is_said_with_what_to_do(name, advice, folder, capsys):
    (folder / name).unlink()
    assert pack.main([str(folder)]) == 1
    assert f"no {name}" in (said := capsys.readouterr().err) and advice in said
    assert not list(folder.parent.glob("*.zip*"))


def test_a_run_that_would_be_refused_is_not_packed(folder):
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-40])
    with pytest.raises(pack.BadRun, match=r"metrics.jsonl, line 80 is no strict JSON"):
        pack.pack(folder)
    (folder / "evaluation.parquet").write_bytes(b"PAR1")
    with pytest.raises(pack.BadRun, match="evaluation.parquet is damaged .* notebook 05 again"):
        pack.pack(folder)
    assert not list(folder.parent.glob("*.zip*"))


def test_a_smoke_run_is_no_result(packed, monkeypatch):
    smoke = replace(profiles.CPU, smoke_steps=20)
    monkeypatch.setitem(profiles.PROFILES, "cpu", smoke)
    for steps, remark in ((20, "This is a smoke run, not a result"), (21, "This run is short")):
        shown = pack.result(pack.check(metrics(lambda lines, n=steps: lines[:n])(packed)))
        assert shown[-1].startswith(remark)


def test_fewer_steps_are_said_and_other_settings_are_named(packed):
    files = metrics(lambda lines: lines[:20])(packed)
    files = config(lambda c: c["profile"].update(steps=20, learning_rate=5e-4))(files)
    shown = pack.result(pack.check(files))
    assert shown[-1] == "This run is short: 20 of the profile's 80 steps"
    assert "20 steps (the profile has 80)" in shown[0]
    assert "learning_rate 0.0005 (ours 0.0002)" in shown[1] and "steps 20 (ours 80)" in shown[1]


def test_public_puzzles_that_cannot_be_had_are_said(packed, tmp_path, monkeypatch):
    (tmp_path / "another.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(dataset, "LOCAL", tmp_path / "another.parquet")
    with pytest.raises(pack.BadRun, match="the test puzzles public cannot be had here: .*known"):
        pack.check(config(lambda c: c["profile"].update(puzzles="public"))(packed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer as notebook 04 makes it, with a rate and groups of its reader's, and its run."""
    run = open_run(profiles.CPU, 3, folder=tmp_path_factory.mktemp("runs") / "try-1")
    model, tokenizer = record.make_model(profiles.CPU)
    config = record.make_config(profiles.CPU, run, 3, num_generations=4, learning_rate=8e-4)
    puzzles = dataset.load_split("cpu", "train").head(20_000)
    return record.make_trainer(model, tokenizer, config, record.REWARDS,
                               training.prompt_dataset(puzzles, 3)), run


def named(trained, **arguments):
    """What a packed run says was changed, after some of its trainer's settings are."""
    trainer, run = trained
    with pytest.MonkeyPatch.context() as patch:
        for name, value in arguments.items():
            patch.setattr(trainer.args, name, value)
        training.note_settings(trainer, run)
    return pack.Run(read_config(run), [], pd.DataFrame(), {}).changes


def test_what_is_changed_in_the_notebooks_settings_is_named(trained):
    both = {"group_size": "4 (32 prompts)", "learning_rate": "0.0008"}
    usual = {"num_generations": 16, "learning_rate": 2e-4}
    assert named(trained) == both and named(trained, **usual) == {}
    assert named(trained, **usual, per_device_train_batch_size=32,
                 gradient_accumulation_steps=4) == {}  # the same batch
    assert named(trained, **usual, gradient_accumulation_steps=2) == {"prompts_per_step": "16"}
    for name, value in [("temperature", 0.7), ("beta", 0.04), ("loss_type", "grpo"),
                        ("scale_rewards", "none"), ("num_iterations", 2), ("warmup_steps", 5),
                        ("reward_weights", [0.0, 1.0]), ("epsilon_high", 0.2),
                        ("max_completion_length", 64)]:
        assert named(trained, **usual | {name: value}) == {name: str(value).strip("'")}
    assert named(trained, **usual, mask_truncated_completions=True) == {"mask_truncated": "True"}


def test_a_shorter_training_length_of_the_profile_is_one_change():
    settings = profiles.settings(profiles.CPU)
    value = {"profile": settings | {"training_length": 64}, "seed": 0,
             "training": TRAINING | {"max_completion_length": 64}}
    assert pack.Run(value, [], None, {}).changes == {"training_length": "64"}
    value["training"]["max_completion_length"] = 48
    assert pack.Run(value, [], None, {}).changes == {"training_length": "64",
                                                     "max_completion_length": "48"}


def test_another_reward_or_other_puzzles_are_one_change_each(trained, monkeypatch):
    trainer, _ = trained
    usual = {"num_generations": 16, "learning_rate": 2e-4}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "reward_funcs", [*trainer.reward_funcs, reached])
        changed = named(trained, **usual, reward_weights=[1.0, 1.0, 0.5])
        assert list(changed) == ["reward_funcs"] and "reached" in changed["reward_funcs"]
        assert "0.5" in changed["reward_funcs"]
    monkeypatch.setattr(trainer, "train_dataset", trainer.train_dataset.select(range(200)))
    assert list(named(trained, **usual)) == ["training_puzzles"]


def test_an_adapter_of_another_rank_is_one_change():
    lora = {"r": 32, "lora_alpha": 64, "target_modules": sorted(LINEAR_LAYERS)}
    value = {"profile": profiles.settings(profiles.SMOLLM2), "seed": 0,
             "training": TRAINING | {"per_device_train_batch_size": 256, "lora": lora}}
    assert pack.Run(value, [], None, {}).changes == {}
    value["training"]["lora"] = lora | {"r": 8}
    assert list(pack.Run(value, [], None, {}).changes) == ["lora"]
    value["profile"]["lora_rank"] = 8
    value["training"]["lora"] = lora | {"r": 8, "lora_alpha": 16}
    assert pack.Run(value, [], None, {}).changes == {"lora_rank": "8"}


def test_a_recorded_run_of_before_has_the_settings_of_its_profile(packed):
    files = config(lambda c: c["profile"].update(max_completion_length=64))(packed)
    assert pack.check(files).changes == {"max_completion_length": "64"}  # longer answers pass
    assert pack.check(packed).changes == {} and pack.check(packed).seed == 0
    other = config(lambda c: c.update(training=TRAINING | {"seed": 5}))(packed)
    assert pack.check(other).seed == 5


@pytest.fixture
def unevaluated(folder, monkeypatch):
    """A run as notebook 04 leaves it, whose weights are those it began with; 30 test puzzles."""
    few = dataset.load_split("cpu", "test").head(30)
    monkeypatch.setattr(pack, "load_split", lambda name, part: few)
    (folder / "evaluation.parquet").unlink()
    shutil.copytree(ROOT / profiles.CPU.model, folder / "final")
    return folder


def test_evaluated_on_the_way_as_notebook_05_does(unevaluated, capsys, monkeypatch):
    monkeypatch.setattr(pack, "RUNS", unevaluated.parent)
    assert pack.main([unevaluated.name, "--evaluate"]) == 0  # by its name under runs/
    said = capsys.readouterr().out
    assert "60 completions in " in said and "gain +0.0 points" in said and ".zip: " in said
    frame = pd.read_parquet(unevaluated / "evaluation.parquet")
    assert frame["temperature"].eq(1).all() and frame["sample"].eq(0).all()
    before, after = (frame[frame["stage"] == stage].drop(columns="stage").reset_index(drop=True)
                     for stage in ("before", "after"))
    pd.testing.assert_frame_equal(before, after)
    model, tokenizer = load_model(profiles.CPU)
    again = sample_completions(model, tokenizer, profiles.CPU, pack.load_split("cpu", "test"), 1.0)
    assert before["completion"].tolist() == again["completion"].tolist()
    assert pack.main([unevaluated.name, "--evaluate"]) == 0
    kept = unevaluated / "evaluation.parquet.earlier-1"  # an evaluation that was there is not lost
    pd.testing.assert_frame_equal(pd.read_parquet(kept), frame)


def test_without_a_saved_model_the_last_checkpoint_answers(unevaluated, capsys):
    last = unevaluated / "checkpoint-80"
    (unevaluated / "final").rename(last)
    (last / "trainer_state.json").write_text('{"global_step": 80}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, last / name)
    assert pack._last_weights(unevaluated) == last
    (unevaluated / "metrics.jsonl").write_bytes(
        (unevaluated / "metrics.jsonl").read_bytes() + b'{"step": 81}\n')
    assert pack.main(["--evaluate", str(unevaluated)]) == 1
    assert "holds no model of its last step, 81. Let notebook 04" in capsys.readouterr().err
    assert not (unevaluated / "evaluation.parquet").exists()


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda run: (run / "metrics.jsonl").unlink(), "no metrics.jsonl in .*train first"),
    (lambda run: (run / "config.json").write_text("{}"), "not a run's: KeyError.'profile'"),
    (lambda run: (run / "config.json").write_text('{"profile": 1}'), "not a run's: TypeError"),
    (lambda run: (run / "config.json").write_text("{"), "config.json is not whole"),
    (lambda run: (run / "final/model.safetensors").write_bytes(b"x"), "holds no whole model"),
    (lambda run: (run / "config.json").write_text(json.dumps({"profile": dict(
        name="x", puzzles="cpu", quantisation=None)})), "no profile is called 'x'")])
def test_what_keeps_a_run_from_being_evaluated_is_said_in_a_line(
        spoil, said, unevaluated, capsys):
    spoil(unevaluated)
    assert pack.main(["--evaluate", str(unevaluated)]) == 1
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1


def test_samples_of_the_training_travel_with_it(packed):
    assert "samples.jsonl" in pack.check(samples()(packed)).files


def swap_a_puzzle(old):  # both are test puzzles: each is still one, but not once
    return column("nums", lambda v: [v[1], *v[1:]])(
        column("target", lambda v: [v[1], *v[1:]])(
            column("completion", lambda v: [v[1], *v[1:]])(
                column("correct", lambda v: [v[1], *v[1:]])(old))))


def another_puzzle(files):
    frame = pq.read_table(io.BytesIO(files["evaluation.parquet"])).to_pandas()
    wrong = int((~frame["correct"]).idxmax())  # stays wrong: the grades are right
    return column("target", lambda v: [*v[:wrong], 1000, *v[wrong + 1:]])(files)


HOSTILE = {
    # settings
    "no profile is called 'cpu2'": config(lambda c: c["profile"].update(name="cpu2")),
    r"no profile is called \[\]": config(lambda c: c["profile"].update(name=[])),
    "its puzzles are '../../secret': only runs on 3to4, cpu, public": config(
        lambda c: c["profile"].update(puzzles="../../secret")),
    r"its puzzles are \['cpu'\]": config(lambda c: c["profile"].update(puzzles=["cpu"])),
    "cold_start, .* max_completion_length": config(lambda c: c["profile"].update(cold_start=[1])),
    "group_size, .* not like a run's": config(lambda c: c["profile"].update(group_size="16")),
    "training has no right num_generations, ": config(lambda c: c.update(training=[1])),
    "no right .*gradient_accumulation_steps": config(lambda c: c.update(training=TRAINING | {
        "num_generations": 0})),
    "config.json is not plain text": config(lambda c: c.update(hardware=EVIL)),
    "not plain text, or is longer": config(lambda c: c.update(hardware="\x1b[2J")),
    "config.json is not plain text, or": config(lambda c: c.update(hardware="x" * 70_000)),
    "a path, an address or a token: '/home/ada/x'": config(
        lambda c: c.update(hardware="/home/ada/x")),
    "no right versions": config(lambda c: c.pop("versions")),
    "no right seed": config(lambda c: c.update(seed=True)),
    "date is '2026-11-22/../..'": config(lambda c: c.update(date="2026-11-22/../..")),
    "NaN is no JSON": config(lambda c: c.update(seed=float("nan"))),
    "a name stands there twice": lambda f: f | {"config.json": b'{"seed": 0, "seed": 1}'},
    r"config.json is no strict JSON object": lambda f: f | {"config.json": b"[" * 100_000},
    "object .*codec": lambda f: f | {"config.json": b"\xff\xfe{}"},
    # metrics
    "line 3 is no strict JSON object .NaN": metrics(
        lambda lines: [*lines[:2], lines[2].replace(b"1.3", b"NaN", 1), *lines[3:]]),
    "line 1 has other names or values": metrics(
        lambda lines: [re.sub(rb'"loss": [^,]+', b'"loss": 1e999', lines[0]), *lines[1:]]),
    "metrics.jsonl, line 1 has other names": metrics(
        lambda lines: [lines[0].replace(b"loss", EVIL.encode()), *lines[1:]]),
    "metrics.jsonl does not hold the steps": metrics(lambda lines: lines[:5] + lines[4:]),
    "metrics.jsonl does not hold the steps 1": metrics(lambda lines: lines[1:]),
    "metrics.jsonl has more than 60,000 lines": metrics(lambda lines: [b"{}\n"] * 60_001),
    # completions
    "1 of 1630 grades differ": column("correct", lambda v: [not v[0], *v[1:]]),
    "other columns, or of other types": table(lambda t: t.append_column("x", t["tokens"])),
    "evaluation.parquet: .* other columns": table(
        lambda t: t.rename_columns([EVIL, *t.column_names[1:]])),
    "of other types": table(lambda t: t.set_column(
        t.column_names.index("correct"), "correct", t["correct"].cast(pa.int8()))),
    "or more than columns": table(lambda t: t.replace_schema_metadata({"note": EVIL})),
    "evaluation.parquet, line 1 has": column("nums", lambda v: [[1, None, 2], *v[1:]]),
    "a row is no puzzle": column("nums", lambda v: [[1, -2, 1], *v[1:]]),
    "texts no longer than a run's": column("completion", first("x" * 50_000)),
    "it is larger than a run's": column("completion", lambda v: ["x" * 45_000] * len(v)),
    "evaluation.parquet, line 1 is no strict JSON": column("temperature", first(float("nan"))),
    "each temperature before and after": column("stage", first("during")),
    "not hold each temperature": column("temperature", lambda v: [3.0] * len(v)),
    "test puzzle of cpu exactly once": swap_a_puzzle,
    "every test puzzle of cpu exactly": table(lambda t: pa.concat_tables([t, t])),
    "does not hold every test puzzle": another_puzzle,
    "more tokens than": column("tokens", first(145)),
    "evaluation.parquet: it is damaged": lambda f: f | {
        "evaluation.parquet": f["evaluation.parquet"][:-9]},
    # samples
    "samples.jsonl, line 1 has other names": samples(html=EVIL),
    "samples.jsonl, line 1 has": samples(completion="x" * 50_000),
    "samples.jsonl, line 1 has other": samples(nums=["4", 4, 3]),
    "samples.jsonl: 1 of 1 grades differ": samples(correct=False),
    "samples.jsonl: a row is no puzzle": samples(target=10**15),
}


@pytest.mark.parametrize(("reason", "spoil"), HOSTILE.items(), ids=list(HOSTILE))
def test_a_strangers_run_is_refused_with_the_reason(reason, spoil, packed, tmp_path):
    path = zipped(tmp_path / "x.zip", spoil(packed))
    with pytest.raises(pack.BadRun, match=reason) as error:
        pack.read_pack(path)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


def link(files):
    info = zipfile.ZipInfo("config.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: b"/etc/passwd"} | {k: v for k, v in files.items() if k != "config.json"}


def test_only_the_known_plain_files_come_out(packed, tmp_path):
    without = {name: data for name, data in packed.items() if name != "config.json"}
    for files, reason in [
            (packed | {"../outside.txt": b"x"}, "it holds .*'../outside.txt'"),
            (without | {"/config.json": b"{}"}, "it holds"),
            (packed | {f"{EVIL}.html": b"x"}, "it holds"),
            (packed | {"folder/": b""}, "it holds"), (without, "it holds"),
            (link(packed), "config.json is no plain file but a link")]:
        with pytest.raises(pack.BadRun, match=reason):
            pack.read_pack(zipped(tmp_path / "x.zip", files))
    with pytest.warns(UserWarning, match="Duplicate name"), \
            zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in (*FILES, "config.json"):
            archive.writestr(name, packed[name])
    with pytest.raises(pack.BadRun, match="each once"):
        pack.read_pack(tmp_path / "x.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_what_is_no_plain_file_is_not_opened(packed, tmp_path):
    whole = zipped(tmp_path / "x.zip", packed)
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "link.zip").symlink_to(whole)
    names = ["folder.zip", "link.zip"]
    if hasattr(os, "mkfifo"):  # who opens a pipe waits for ever
        os.mkfifo(tmp_path / "pipe.zip")
        names.append("pipe.zip")
    for name in names:
        with pytest.raises(pack.BadRun, match="no plain file but a folder, a link or a device"):
            pack.read_pack(tmp_path / name)


def test_a_bomb_is_not_unpacked(packed, tmp_path):
    bomb = packed | {"metrics.jsonl": b" " * (pack.UNPACKED + 1)}
    path = zipped(tmp_path / "bomb.zip", bomb)
    assert path.stat().st_size < 2**20
    with pytest.raises(pack.BadRun, match="unpacks to more than 64 MiB"):
        pack.read_pack(path)
    # the same, but its headers say one byte
    size = (pack.UNPACKED + 1).to_bytes(4, "little")
    assert path.read_bytes().count(size) == 2
    path.write_bytes(path.read_bytes().replace(size, (1).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(pack.BadRun, match="no whole ZIP file .*CRC"):
        pack.read_pack(path)
    assert tracemalloc.get_traced_memory()[1] < pack.UNPACKED / 4
    tracemalloc.stop()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in packed.items():
            archive.writestr(name, data)
    with pytest.raises(pack.BadRun, match="packed in another way"):
        pack.read_pack(path)
    path.write_bytes(os.urandom(pack.PACKED + 1))
    with pytest.raises(pack.BadRun, match="larger than 16 MiB"):
        pack.read_pack(path)


def test_a_file_that_was_cut_or_changed_on_its_way_is_refused(packed, tmp_path):
    path = zipped(tmp_path / "x.zip", packed)
    whole, draw = path.read_bytes(), random.Random(0)
    name = pack.read_pack(path).name
    for _ in range(60):
        place = draw.randrange(len(whole))
        for data in (whole[:place], whole[:place] + bytes([draw.randrange(256)]) +
                     whole[place + 1:]):
            path.write_bytes(data)
            try:
                assert pack.read_pack(path).name == name  # a byte that nothing depends on
            except pack.BadRun as error:
                assert data != whole and str(error)
    with pytest.raises(pack.BadRun, match="no whole ZIP file"):
        pack.read_pack(tmp_path / "none.zip")


def test_parquet_that_would_end_the_reader_or_take_all_memory_is_refused(packed):
    data = packed["evaluation.parquet"]
    for place in (60, 300, 900, 1500, 2500, len(data) // 2):  # pyarrow aborts on some of these
        changed = data[:-place] + bytes([data[-place] ^ 0x55]) + data[1 - place:]
        try:
            assert pack.check(packed | {"evaluation.parquet": changed}).config
        except pack.BadRun as error:
            assert "evaluation.parquet" in str(error)
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), ["x" * 2**20])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"completion": many}), buffer, compression="zstd", store_schema=False)
    assert len(buffer.getvalue()) < 100_000  # 49 GiB of text
    with pytest.raises(pack.BadRun, match="evaluation.parquet: it is damaged, or not a run's"):
        pack.check(packed | {"evaluation.parquet": buffer.getvalue()})


def test_what_a_machine_of_many_cores_reserves_does_not_count(packed):
    program = ("import mmap, runpy, sys; kept = mmap.mmap(-1, 3 << 30); sys.argv[1:] = ['1000000'];"
               "runpy.run_module('lab.untrusted', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], input=packed["evaluation.parquet"],
                          capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b'{"stage": "before"')


def test_text_that_is_no_utf8_is_refused(packed):
    def spoil(old):
        i = old.column_names.index("completion")
        texts = [text.encode() for text in old["completion"].to_pylist()]
        raw = pa.array([b"\xff\xfe", *texts[1:]], pa.large_binary())
        return old.set_column(i, "completion", raw.view(pa.large_string()))

    with pytest.raises(pack.BadRun, match="UTF"):
        pack.check(table(spoil)(packed))


def test_checked_by_command_and_kept_under_a_name_of_ours(packed, tmp_path, monkeypatch, capsys):
    path = zipped(tmp_path / f"{EVIL.replace('/', '')}.zip", samples()(packed))
    done = subprocess.run([sys.executable, "-m", "lab.pack", "--check", path], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "gain +29.9 points" in done.stdout and "<" not in done.stdout
    monkeypatch.setattr(pack, "SHELF", tmp_path / "reader_runs")
    assert pack.main(["--check", "--keep", str(path)]) == 0
    (kept,) = (tmp_path / "reader_runs").iterdir()
    assert kept.name == pack.read_pack(path).name and f"copied to {kept}" in capsys.readouterr().out
    assert {file.name for file in kept.iterdir()} == {*FILES, "samples.jsonl"}
    assert pd.read_parquet(kept / "evaluation.parquet").shape == (1630, 8)
    path.write_bytes(b"PK")
    assert pack.main(["--check", "--keep", str(path)]) == 1
    assert "pack: it is no whole ZIP file" in capsys.readouterr().err
