import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from safetensors import SafetensorError
from transformers import TrainerCallback

from helpers import profiles, runs
from helpers.dataset import load_split
from helpers.models import load_model
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.training import (
    MetricsLog,
    SampleLog,
    Stopped,
    prompt_dataset,
    start_tracker,
    train_or_resume,
)
from lab.record import make_config, make_model, make_trainer

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


SMALL = replace(profiles.CPU_SHORT, steps=6, save_every=2, prompts_per_step=2, group_size=4,
                micro_batch=4, max_completion_length=24)


def small(run, profile=SMALL, puzzles=200, callbacks=(), model=None, reward=equation_reward_func):
    """A trainer as notebook 04's cells make it, for a few small steps."""
    torch.set_num_threads(1)
    run = runs.open_run(profile, folder=run)
    model, tokenizer = (model, load_model(profile)[1]) if model else make_model(profile)
    table = load_split("cpu", "train").sample(puzzles, random_state=0)
    return make_trainer(model, tokenizer, make_config(profile, run),
                        [strict_format_reward_func, reward], prompt_dataset(table),
                        [MetricsLog(run), *callbacks])


class StopAt(TrainerCallback):
    """The stop button, between the two passes of the step after `step`; once."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


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
    deadline = time.monotonic() + 300
    while len(runs.read_rows(run / "metrics.jsonl")) < kill_after:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    kept = runs.last_checkpoint(run)
    output = finish(start(run))
    if kept:
        assert f"Resuming {run} after step {kept.name.split('-')[1]} of 9" in output
    rows = comparable(run)
    assert [row["step"] for row in rows] == list(range(1, 10))  # none lost, none doubled
    assert rows == comparable(uninterrupted)
    seconds = [row["seconds"] for row in runs.read_rows(run / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def test_a_complete_run_is_left_as_it_is(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert "is complete (9 steps). Ask for more steps" in finish(start(uninterrupted))
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_run_of_another_profile_stops_the_training(tmp_path):
    run = tmp_path / "run"
    runs.open_run(profiles.CPU, folder=run)
    child = start(run)
    output, _ = child.communicate(timeout=300)
    assert child.returncode != 0
    assert "holds a run of profile cpu" in output and "Give them as they were" in output
    assert json.loads((run / "config.json").read_text())["profile"]["name"] == "cpu"


@pytest.mark.parametrize(("error", "free", "said"), [
    (OSError(28, "No space left on device"), 2**40, True), (OSError(30, "read-only"), 2**40, True),
    (RuntimeError("PytorchStreamWriter failed writing file"), 2**20, True),
    (SafetensorError("No space left on device"), 2**20, True),
    (OSError(24, "Too many open files"), 2**40, False), (RuntimeError("a bug"), 2**40, False)])
def test_a_full_disk_in_training_loses_nothing(tmp_path, monkeypatch, error, free, said):
    trainer = small(tmp_path / "run")

    def full(resume_from_checkpoint):
        assert not gc.isenabled() and gc.get_freeze_count() > 0  # no collection in a step
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("helpers.training.shutil.disk_usage", lambda path: usage)
        raise error

    trainer.train = full
    with pytest.raises(Exception) as caught:
        train_or_resume(trainer, tmp_path / "run")
    if said:
        assert "resumes from the last checkpoint" in str(caught.value)
    else:
        assert caught.value is error
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="it holds no weights. Train it with notebook 04"):
        load_model(profiles.CPU, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("small") / "run"
    train_or_resume(small(run), run)
    return run


@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and after it
def test_stopped_in_a_step_and_run_again_is_as_if_nothing_happened(tmp_path, whole, step):
    run = tmp_path / "run"
    trainer = small(run, callbacks=[StopAt(step)])
    with pytest.raises(Stopped, match=f"Stopped after step {step} of 6; .*Run this cell again"):
        train_or_resume(trainer, run)
    torch.rand(5)  # what a reader does in between changes nothing
    train_or_resume(trainer, run)
    assert comparable(run) == comparable(whole)


def test_a_new_trainer_on_a_model_that_was_stopped_begins_with_its_first_weights(tmp_path, whole):
    run = tmp_path / "run"
    stopped = small(run, callbacks=[StopAt(1)])
    with pytest.raises(Stopped, match="no checkpoint yet"):
        train_or_resume(stopped, run)
    train_or_resume(small(run, model=stopped.model), run)
    assert comparable(run) == comparable(whole)


def test_the_stop_button_shows_one_line_and_ends_run_all():
    cells = ["from helpers.training import Stopped\nraise Stopped('Stopped after step 3 of 6.')",
             "print('not reached')"]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    with pytest.raises(CellExecutionError):
        NotebookClient(book, kernel_name="python3").execute()
    assert [o.traceback for o in book.cells[0].outputs] == [["Stopped after step 3 of 6."]]
    assert not book.cells[1].outputs and issubclass(Stopped, KeyboardInterrupt)


def asked(into):
    """The equation reward, which notes the puzzles that it is asked about."""
    def equation_reward(completions, nums, target, **kwargs):
        into.append(list(zip(map(tuple, nums), target, strict=True)))
        return equation_reward_func(None, completions, target, nums)

    equation_reward.__name__ = "equation_reward_func"
    return equation_reward


@pytest.mark.parametrize("step", [4, 6, 9])  # an epoch has three steps
def test_later_epochs_come_in_the_same_order_after_a_stop(tmp_path, step):
    profile, whole, first, rest = replace(SMALL, steps=10), [], [], []
    train_or_resume(small(tmp_path / "a", profile, 6, reward=asked(whole)), tmp_path / "a")
    stopped = small(tmp_path / "b", profile, 6, [StopAt(step)], reward=asked(first))
    with pytest.raises(Stopped):
        train_or_resume(stopped, tmp_path / "b")
    train_or_resume(small(tmp_path / "b", profile, 6, reward=asked(rest)), tmp_path / "b")
    kept = step - step % SMALL.save_every
    assert len(whole) == 10 and first[:kept] + rest == whole
    assert whole[:3] != whole[3:6]
    assert comparable(tmp_path / "b") == comparable(tmp_path / "a")


def test_a_complete_run_goes_on_with_more_steps_as_if_it_had_them_from_the_start(tmp_path, whole):
    run = tmp_path / "run"
    train_or_resume(small(run, replace(SMALL, steps=3)), run)
    train_or_resume(small(run), run)
    assert comparable(run) == comparable(whole)
    config = json.loads((run / "config.json").read_text())
    assert config["profile"]["steps"] == 6
    assert config["earlier"] == [{"until_step": 3, "steps": 3}]


def test_a_batch_that_is_cut_in_another_way_is_the_same_run(tmp_path, whole):
    run, order, rest = tmp_path / "run", [], []
    train_or_resume(small(run, replace(SMALL, steps=2), reward=asked(order)), run)
    cut = replace(SMALL, micro_batch=8, save_every=3)
    train_or_resume(small(run, cut, reward=asked(rest)), run)
    assert len(order) == 2 and len(rest) == 4
    for mine, theirs in zip(comparable(run), comparable(whole), strict=True):
        assert mine["reward"] == theirs["reward"]  # the same puzzles, the same completions
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    with pytest.raises(RuntimeError, match="gradient_accumulation_steps was 1"):
        trainer = small(run, cut)
        trainer.args.gradient_accumulation_steps = 2  # twice the batch
        train_or_resume(trainer, run)


@pytest.mark.parametrize(("puzzles", "enough"), [(1, False), (2, True), (3, True)])
def test_fewer_puzzles_than_one_step_needs_are_refused(tmp_path, puzzles, enough):
    profile = replace(SMALL, steps=2)
    trainer = small(tmp_path, profile, puzzles)
    if enough:
        train_or_resume(trainer, tmp_path)
        assert len(comparable(tmp_path)) == 2
    else:
        with pytest.raises(ValueError, match="1 puzzles are fewer than the 2 of one step"):
            train_or_resume(trainer, tmp_path)
        assert not list(tmp_path.glob("checkpoint-*"))


def test_what_would_train_something_else_is_refused(tmp_path):
    trainer = small(tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(RuntimeError, match="2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        train_or_resume(trainer, tmp_path)
    trainer.args._n_gpu = 0
    trainer.processing_class.chat_template += "<think>\n"
    with pytest.raises(ValueError, match="ends the prompt with .*<think>"):
        train_or_resume(trainer, tmp_path)


def test_only_tied_weights_may_be_missing_in_a_checkpoint(tmp_path, whole, capfd):
    from safetensors.torch import load_file, save_file

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "checkpoint-6" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    train_or_resume(small(run), run)  # complete: loads it
    assert "missing" not in "".join(capfd.readouterr())
    name = next(name for name in tensors if "layers" in name)
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(RuntimeError, match=f"is of another model: {name}"):
        train_or_resume(small(run), run)


def test_the_rotation_keeps_two_and_what_is_the_readers(tmp_path):
    mine = ["checkpoint-2-backup", "checkpoint-4 (1)", "my-checkpoint-2"]

    class Copy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                for name in mine:
                    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / name)

    train_or_resume(small(tmp_path, callbacks=[Copy()]), tmp_path)
    found = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert found == sorted([*mine, "checkpoint-4", "checkpoint-6"])


def test_a_broken_checkpoint_is_passed_over_and_kept(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    run = tmp_path / "run"
    (run / "checkpoint-6" / "optimizer.pt").unlink()
    train_or_resume(small(run), run)
    output = capsys.readouterr().out
    assert "Passed over checkpoint-6: optimizer.pt is missing" in output.replace(f"{run}/", "")
    assert "Resuming" in output and "after step 4 of 6" in output
    assert comparable(run) == comparable(whole)
    assert (run / "checkpoint-6.broken-1" / "model.safetensors").exists()


def test_two_processes_do_not_train_in_one_folder(tmp_path, whole):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from pathlib import Path\n"
         "from helpers.runs import held\nwith held(Path(sys.argv[1])):\n"
         "    print('holds', flush=True); time.sleep(600)", str(tmp_path)],
        stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "holds\n"
    trainer = small(tmp_path)
    with pytest.raises(runs.Held, match=f"process {holder.pid} on .* trains in"):
        train_or_resume(trainer, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    holder.kill()
    holder.wait()
    train_or_resume(trainer, tmp_path)  # the system has freed it
    assert comparable(tmp_path) == comparable(whole)
    with runs.held(tmp_path):  # and the training has
        pass


def test_a_run_that_its_minutes_stopped_is_complete(tmp_path, whole, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    trainer = small(run, replace(SMALL, steps=8))
    train_or_resume(trainer, run, minutes=1e-6)
    assert "is complete (6 steps)" in capsys.readouterr().out and len(comparable(run)) == 6
    train_or_resume(trainer, run)
    assert len(comparable(run)) == 8


def test_a_second_run_with_a_model_that_loaded_a_complete_one_begins_at_the_start(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "complete")
    trainer = small(tmp_path / "complete")
    train_or_resume(trainer, tmp_path / "complete")  # loads the trained weights
    train_or_resume(small(tmp_path / "new", model=trainer.model), tmp_path / "new")
    assert comparable(tmp_path / "new") == comparable(whole)


@pytest.mark.parametrize("lost", ["config", "nothing"])
def test_a_checkpoint_knows_what_it_was_trained_with(tmp_path, whole, lost):
    run, other = tmp_path / "run", replace(SMALL, learning_rate=9e-4)
    if lost == "config":
        shutil.copytree(whole, run)
        (run / "config.json").unlink()
    else:  # a checkpoint of another run was copied in
        runs.open_run(other, folder=run)
        shutil.copytree(whole / "checkpoint-4", run / "checkpoint-4")
    with pytest.raises(RuntimeError, match="other settings .*learning_rate was 0.0002"):
        train_or_resume(small(run, other), run)


def test_half_of_the_first_look_is_taken_again(tmp_path):
    table = load_split("cpu", "validation").head(3)
    trainer = small(tmp_path, replace(SMALL, steps=1))
    trainer.add_callback(SampleLog(tmp_path, trainer.processing_class, SMALL, table, every=4))
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "target": 1}\n{"step": 0')
    train_or_resume(trainer, tmp_path)
    rows = runs.read_rows(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 0, 1, 1, 1]  # the last step is looked at, too
    assert [row["target"] for row in rows] == 2 * table["target"].tolist()


def test_a_trainer_of_another_folder_changes_nothing(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "old")
    before = sorted((path.name, path.stat().st_mtime) for path in (tmp_path / "old").iterdir())
    trainer = small(tmp_path / "old")
    new = runs.open_run(SMALL, folder=tmp_path / "new")
    with pytest.raises(ValueError, match="writes to .*old, not to .*new: run the cells from"):
        train_or_resume(trainer, new)
    after = sorted((path.name, path.stat().st_mtime) for path in (tmp_path / "old").iterdir())
    assert after == before and not list(new.glob("checkpoint-*"))


def test_a_trained_model_without_its_checkpoints_is_not_trained_over(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in run.glob("checkpoint-*"):
        folder.rename(run / "final") if folder.name.endswith("6") else shutil.rmtree(folder)
    with pytest.raises(RuntimeError, match="no whole checkpoint: training would begin anew over"):
        train_or_resume(small(run), run)
    assert comparable(run) == comparable(whole)


def test_other_puzzles_are_another_run_and_steps_have_to_be_given(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="other settings .*puzzles was"):
        train_or_resume(small(run, replace(SMALL, steps=8), puzzles=100), run)
    trainer = small(run)
    trainer.args.max_steps = -1  # trl's default: by epochs
    with pytest.raises(ValueError, match="whole steps, not -1"):
        train_or_resume(trainer, run)


def test_what_was_saved_of_fewer_steps_is_not_taken_for_what_comes_now(tmp_path, whole):
    """Notebook 05 would evaluate it beside the metrics of more steps."""
    trainer = small(tmp_path, replace(SMALL, steps=2))
    train_or_resume(trainer, tmp_path)
    trainer.save_model(str(tmp_path / "final"))
    train_or_resume(trainer, tmp_path)  # complete: nothing comes now
    assert (tmp_path / "final").exists()
    train_or_resume(trainer, tmp_path, steps=4)
    assert not (tmp_path / "final").exists()
    assert (tmp_path / "final.step-2-1" / "model.safetensors").exists()


@pytest.mark.parametrize("stop", [3, 4])  # before the second checkpoint, and after it
def test_a_run_that_was_prolonged_goes_on_to_its_new_end_in_another_kernel(tmp_path, capsys, stop):
    trainer = small(tmp_path, replace(SMALL, steps=2), callbacks=[StopAt(stop)])
    train_or_resume(trainer, tmp_path)
    with pytest.raises(Stopped):
        train_or_resume(trainer, tmp_path, steps=6)
    again = small(tmp_path, replace(SMALL, steps=2))  # notebook 04, opened anew: its form is reset
    train_or_resume(again, tmp_path)
    assert len(runs.read_rows(tmp_path / "metrics.jsonl")) == 6
    train_or_resume(again, tmp_path, steps=2)  # asked for by name
    assert "is complete (6 steps)" in capsys.readouterr().out


def test_a_tracker_writes_into_the_run_and_stays_offline(tmp_path, monkeypatch):
    for name in ("PROJECT", "DIR", "MODE", "DISABLE_GIT"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # to be taken back after the test
        monkeypatch.delenv(f"WANDB_{name}")
    monkeypatch.setenv("WANDB_MODE", "online")  # a wish of the user's
    start_tracker("none", tmp_path)
    assert "WANDB_DIR" not in os.environ
    start_tracker("wandb", tmp_path)
    assert os.environ["WANDB_MODE"] == "online" and os.environ["WANDB_DIR"] == str(tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    start_tracker("wandb", tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"
    asked = {}
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(
        init=lambda project, **options: asked.update(options, project=project)))
    start_tracker("trackio", tmp_path / "my-run")  # embed: no page, on Colab a public one
    assert asked == {"project": "countdown-grpo", "name": "my-run", "resume": "allow",
                     "embed": False}


@pytest.mark.parametrize("wish", [None, "0"])
def test_no_usage_report_is_sent_unless_it_is_wished_for(wish):
    program = ("import helpers; from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY;"
               "print(HF_HUB_DISABLE_TELEMETRY)")
    clean = {name: value for name, value in os.environ.items() if name not in (
        "DO_NOT_TRACK", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")}
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True,
                          text=True, env=clean | ({"DO_NOT_TRACK": wish} if wish else {})).stdout
    assert said.strip() == str(wish is None)
