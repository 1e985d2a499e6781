import gc
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from helpers import profiles, runs
from helpers.models import load_model
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.training import SETTINGS, train_or_resume

# A child process trains a few small steps; the parent kills it, or lets it end.
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
from helpers import profiles
from helpers.dataset import load_split
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import open_run
from helpers.training import MetricsLog, prompt_dataset, train_or_resume
from lab.record import make_config, make_model, make_trainer

torch.set_num_threads(1)
profile = replace(profiles.CPU_SHORT, steps=9, save_every=3, prompts_per_step=2, group_size=4,
                  micro_batch=8, max_completion_length=40)
run = open_run(profile, folder=Path(sys.argv[1]))
model, tokenizer = make_model(profile)
trainer = make_trainer(
    model, tokenizer, make_config(profile, run), [strict_format_reward_func, equation_reward_func],
    prompt_dataset(load_split("cpu", "train")), [MetricsLog(run)])
train_or_resume(trainer, run)
"""


def start(run):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(run)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"TQDM_DISABLE": "1"})


def finish(child):
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output
    return output


def comparable(run):
    """Rows without what a clock wrote."""
    drop = {"seconds", "step_seconds"}
    return [{k: v for k, v in row.items() if k not in drop} for row in
            runs.read_rows(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(run))
    return run


@pytest.mark.parametrize("kill_after", [2, 7])
def test_a_killed_run_resumes_and_ends_as_if_nothing_happened(tmp_path, uninterrupted, kill_after):
    run = tmp_path / "run"
    child = start(run)
    deadline = time.monotonic() + 120
    while len(runs.read_rows(run / "metrics.jsonl")) < kill_after:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    kept = runs.last_checkpoint(run)
    output = finish(start(run))
    if kept:
        assert f"Resuming run after step {kept.name.split('-')[1]} of 9" in output
    rows = comparable(run)
    assert [row["step"] for row in rows] == list(range(1, 10))  # none lost, none doubled
    assert rows == comparable(uninterrupted)
    seconds = [row["seconds"] for row in runs.read_rows(run / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def test_a_complete_run_is_left_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert "is complete (9 steps); delete the folder" in finish(start(uninterrupted))
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("minutes", [1e-6, None])
def test_a_run_that_its_minutes_stopped_is_complete(uninterrupted, minutes, capsys):
    loaded, trained = [], []
    saved = json.loads((uninterrupted / "config.json").read_text())["training"]
    trainer = types.SimpleNamespace(
        args=types.SimpleNamespace(**saved | {"max_steps": 20}), model=None,
        reward_funcs=[strict_format_reward_func, equation_reward_func],
        _load_from_checkpoint=loaded.append,
        callback_handler=types.SimpleNamespace(callbacks=[]),
        add_callback=lambda c: None, remove_callback=lambda c: None,
        train=lambda resume_from_checkpoint: trained.append(resume_from_checkpoint))
    train_or_resume(trainer, uninterrupted, minutes)
    if minutes:
        assert "is complete (9 steps)" in capsys.readouterr().out and loaded and not trained
    else:
        assert trained == [str(uninterrupted / "checkpoint-9")] and not loaded


def test_a_run_of_another_profile_stops_the_training(tmp_path):
    run = tmp_path / "run"
    runs.open_run(profiles.CPU, folder=run)
    child = start(run)
    output, _ = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "holds a run of profile cpu" in output and "Move or delete the folder" in output
    assert json.loads((run / "config.json").read_text())["profile"]["name"] == "cpu"


def test_a_full_disk_in_training_says_that_nothing_is_lost(tmp_path):
    class Trainer:
        args = types.SimpleNamespace(**dict.fromkeys(SETTINGS, 3))
        model, reward_funcs = None, []

        def remove_callback(self, callback):
            pass

        def add_callback(self, callback):
            pass

        def train(self, resume_from_checkpoint):
            assert not gc.isenabled() and gc.get_freeze_count() > 0  # no collection in a step
            raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match="No space left.*resumes from the last checkpoint"):
        train_or_resume(Trainer(), tmp_path)
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model: train it with notebook 04"):
        load_model(profiles.CPU, tmp_path)
