import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import profiles, runs
from lab.record import keep


def test_a_cut_off_last_line_is_left_out_and_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        runs.append_row(path, {"step": step})
    with open(path, "a") as file:
        file.write('{"step": 4, "rew')
    assert [row["step"] for row in runs.read_rows(path)] == [1, 2, 3]
    assert [row["step"] for row in runs.keep_rows_until(path, 2)] == [1, 2]
    runs.append_row(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, state in ((9, "{}"), (10, '{"epoch'), (11, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert runs.last_checkpoint(tmp_path).name == "checkpoint-9"
    assert not (tmp_path / "checkpoint-11").exists()
    assert runs.last_checkpoint(tmp_path / "nothing") is None


def test_a_run_of_other_settings_is_not_touched(tmp_path):
    run = runs.open_run(profiles.CPU, folder=tmp_path / "run")
    before = (run / "config.json").read_bytes()
    other = replace(profiles.CPU_SHORT, learning_rate=3e-3)
    with pytest.raises(RuntimeError, match="holds a run of profile cpu .*learning_rate.*name"):
        runs.open_run(other, folder=run)
    with pytest.raises(RuntimeError, match="differs in: seed"):
        runs.open_run(profiles.CPU, seed=1, folder=run)
    assert (run / "config.json").read_bytes() == before
    assert runs.open_run(profiles.CPU, folder=run) == run
    config = json.loads(before)
    assert config["versions"]["trl"] and config["hardware"] and config["date"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match="cannot write to run .*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=tmp_path / "runs" / "run")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys")
def test_a_read_only_folder_is_said():
    with pytest.raises(RuntimeError, match="cannot write to run .*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=Path("/sys/run"))  # read-only for root, too


def test_a_nearly_full_disk_is_said_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RuntimeError, match="5 MiB free.*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=tmp_path / "run")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    runs.write_json(path, {"kept": True})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_json(path, {"kept": False})
    assert json.loads(path.read_text()) == {"kept": True}


def test_a_run_is_kept_by_its_small_files(tmp_path, capsys):
    run = tmp_path / "some-run"
    (run / "checkpoint-1").mkdir(parents=True)
    for name in runs.FILES:
        (run / name).write_text(name)
    keep(run, tmp_path / "shelf")
    keep(run, tmp_path / "shelf", "other", files=("config.json",))
    kept = sorted(str(p.relative_to(tmp_path / "shelf")) for p in (tmp_path / "shelf").rglob("*.*"))
    assert kept == ["other/config.json", *sorted(f"some-run/{name}" for name in runs.FILES)]
    assert "copied to some-run" in capsys.readouterr().out
