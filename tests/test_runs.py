import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


@pytest.fixture
def make(tmp_path):
    """Write a whole checkpoint folder with real files of every kind."""
    def checkpoint(step, name=None):
        folder = tmp_path / (name or f"checkpoint-{step}")
        folder.mkdir()
        save_file({"weight": torch.zeros(20)}, folder / "model.safetensors")
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"state": torch.arange(99.0)}, folder / file)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    return checkpoint


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


FAULTS = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a cut state": lambda folder: (folder / "trainer_state.json").write_text('{"epoch'),
    "an empty state": lambda folder: (folder / "trainer_state.json").write_text(""),
    "the state of a list": lambda folder: (folder / "trainer_state.json").write_text("[1]"),
    "the state of another step": lambda folder: (
        folder / "trainer_state.json").write_text('{"global_step": 3}'),
    "cut weights": lambda folder: cut(folder / "model.safetensors"),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a missing part of the weights": lambda folder: (
        folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "part-2"}}'),
    "a cut list of the weights": lambda folder: (
        folder / "model.safetensors.index.json").write_text('{"weight'),
    "a cut optimiser": lambda folder: cut(folder / "optimizer.pt"),
    "a spoilt optimiser": lambda folder: spoil(folder / "optimizer.pt"),
    "no optimiser": lambda folder: (folder / "optimizer.pt").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "empty random numbers": lambda folder: (folder / "rng_state.pth").write_bytes(b""),
    "no random numbers": lambda folder: (folder / "rng_state.pth").unlink(),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("?")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_not_whole_is_passed_over_said_and_left(tmp_path, make, fault, capsys):
    whole, broken = make(9), make(10)
    assert runs.last_checkpoint(tmp_path) == broken
    FAULTS[fault](broken)
    assert runs.last_checkpoint(tmp_path) == whole
    assert re.search(r"Passed over \S*checkpoint-10: .{9}", capsys.readouterr().out)
    assert broken.exists()


def test_other_names_are_no_checkpoints(tmp_path, make):
    for name in ("checkpoint-12 (1)", "checkpoint-13-backup", "checkpoint-", "checkpoint-1e3",
                 "checkpoint-14.broken-1", "my-checkpoint-15", "checkpoint--16"):
        make(12, name)
    assert runs.last_checkpoint(tmp_path) is None
    assert runs.last_checkpoint(tmp_path / "nothing") is None
    assert runs.last_checkpoint(tmp_path) is None
    newest = [make(step) for step in (9, 100, 20)][1]  # by number, not by name
    assert runs.last_checkpoint(tmp_path) == newest


def test_a_free_name_is_free(tmp_path):
    for number in (1, 2):
        free = runs.free_name(tmp_path / "checkpoint-3")
        assert free.name == f"checkpoint-3.broken-{number}"
        free.mkdir()


def test_a_broken_line_is_left_out_said_and_kept_beside(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    broken = b'{"step": 1}\n{"step": 2, "rew\n{"step": 3}\n12\n\0\xff\n{"step": 4}\n{"st'
    path.write_bytes(broken)
    assert [row["step"] for row in runs.read_rows(path)] == [1, 3, 4]
    assert "left out what is no whole line of JSON, line 2, 4, 5" in capsys.readouterr().out
    assert [row["step"] for row in runs.keep_rows_until(path, 3)] == [1, 3]
    assert (tmp_path / "metrics.jsonl.broken-1").read_bytes() == broken
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    runs.keep_rows_until(path, 3)
    assert not (tmp_path / "metrics.jsonl.broken-2").exists()


@pytest.mark.parametrize("text", ["", '{"profile": {"na', "[]", "\0\0", '{"seed": 0}'])
def test_a_config_that_is_not_whole_says_what_to_do(tmp_path, text):
    run = runs.open_run(profiles.CPU, folder=tmp_path / "run")
    (run / "config.json").write_text(text)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RuntimeError, match="config.json .*delete that file and run this again"):
        runs.open_run(profiles.CPU, folder=run)
    (run / "config.json").unlink()
    runs.open_run(profiles.CPU, folder=run)
    assert runs.read_rows(run / "metrics.jsonl") == [{"step": 1}]


def test_a_run_is_found_again_in_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    assert runs.open_run(profiles.CPU) == tmp_path / "cpu"
    assert runs.open_run(profiles.CPU, name="try-1") == tmp_path / "try-1"
    assert json.loads((tmp_path / "cpu" / "config.json").read_text())["seed"] == 0


def test_the_hardware_is_the_gpu_where_one_did_the_work(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
        for asked, expected in ((None, there), (True, True), (False, False)):
            assert (runs.environment(asked)["hardware"] == "A GPU") == expected
    assert f"{os.cpu_count()} CPU cores" in runs.environment(False)["hardware"]


LOOSE = {"steps": 90, "micro_batch": 32, "save_every": 3, "vllm_gib": 1.0, "max_num_seqs": 9,
         "min_gpu_gib": 0.5, "roomy_gib": 1.0, "standby": True, "gradient_checkpointing": True,
         "uses_vllm": True}


@pytest.mark.parametrize("name", LOOSE)
def test_what_does_not_change_the_learning_is_noted_and_goes_on(tmp_path, name, monkeypatch):
    monkeypatch.setattr(runs, "environment", lambda on_gpu: {})
    monkeypatch.setattr(runs, "DISK_MIB", dict.fromkeys((False, True), 1))
    run = runs.open_run(profiles.CPU, folder=tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert runs.open_run(replace(profiles.CPU, **{name: LOOSE[name]}), folder=run) == run
    config = json.loads((run / "config.json").read_text())
    assert config["profile"][name] == LOOSE[name]
    assert config["earlier"] == [{"until_step": 2, name: getattr(profiles.CPU, name)}]
    runs.open_run(profiles.CPU, folder=run)
    assert len(json.loads((run / "config.json").read_text())["earlier"]) == 2


@pytest.mark.parametrize("name", sorted(
    profiles.settings(profiles.CPU).keys() - runs.LOOSE - {"measured_on", "cold_start"}))
def test_every_other_setting_makes_another_run(tmp_path, name):
    run = runs.open_run(profiles.CPU, folder=tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["profile"][name] = "another"
    runs.write_json(run / "config.json", config)
    with pytest.raises(RuntimeError, match=f"differs in: {name}.*nothing was changed"):
        runs.open_run(profiles.CPU, folder=run)


@pytest.mark.skipif(os.name == "nt", reason="Windows locks another way")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_folder_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, code):
    def none(*arguments):  # what a mounted drive answers
        raise OSError(code, "no locks here")

    monkeypatch.setattr("fcntl.flock", none)
    for _ in range(2):  # a soft lock, left by a kill, would shut the second one out
        with runs.held(tmp_path / "run"):
            assert "cannot be locked" in capsys.readouterr().out


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
    with pytest.raises(RuntimeError, match="cannot write to .*run .*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=tmp_path / "runs" / "run")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys")
def test_a_read_only_folder_is_said():
    with pytest.raises(RuntimeError, match="cannot write to .*run .*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=Path("/sys/run"))  # read-only for root, too


def test_a_nearly_full_disk_is_said_before_training(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RuntimeError, match="5 MiB free.*COUNTDOWN_RUNS"):
        runs.open_run(profiles.CPU, folder=tmp_path / "run")


def test_a_run_on_a_gpu_needs_room_for_its_checkpoints(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2 * 2**30})
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage)
    runs.open_run(profiles.CPU, folder=tmp_path / "cpu")
    with pytest.raises(RuntimeError, match="2048 MiB free.*need up to 3072"):
        runs.open_run(profiles.SMOLLM2, folder=tmp_path / "gpu")
    usage.free = runs.DISK_MIB[False] * 2**20  # just enough
    runs.open_run(profiles.CPU, folder=tmp_path / "enough")


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
    assert f"copied to {tmp_path.resolve()}" in capsys.readouterr().out
