"""Training in several processes: here two on the CPU, under the launcher that GPUs have.

This file is also what the launcher starts: `child` runs `lab.several_gpus` and notes what no run
keeps, the puzzles that each process asked and the weights that it ended with.
"""

import contextlib
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import TrainerControl, TrainerState

from helpers import profiles, runs, training
from helpers.dataset import load_split
from helpers.evaluation import evaluate
from helpers.models import load_model, lora_settings
from helpers.paths import ROOT
from helpers.progress import Progress
from helpers.rewards import equation_reward_func
from helpers.solver import solve
from lab import several_gpus
from lab.several_gpus import World, cut
from lab.time_limit import StopWhenAsked, TimeLimit

STEPS = 6
SMALL = ["--profile", "cpu-short", "--steps", str(STEPS), "--set", "prompts_per_step=4",
         "group_size=4", "micro_batch=8", "max_completion_length=80", "save_every=2"]
LORA = ["lora_rank=4", "learning_rate=0.002"]
CLOCKS = {"seconds", "step_seconds"}
BY_PASS = {"entropy", "clip_ratio"}  # trl takes the mean of the passes, however long they are


def seeded(generate):
    """Let each group's completions follow from its prompt, the step and the weights alone.

    Then runs of one process and of two sample the same, and all else can be compared.
    """
    def by_group(self, prompt_ids, images, fields, num_generations, *more):
        rows = []
        for start in range(0, len(prompt_ids), num_generations):
            group = prompt_ids[start:start + num_generations]
            with torch.random.fork_rng():
                torch.manual_seed(1000 * self.state.global_step + sum(group[0]))
                rows += generate(self, group, images, fields, num_generations, *more)[0]
        return rows, None

    return by_group


def child(arguments, patch):
    """Run `lab.several_gpus` on few puzzles; `patch` is called as pytest's monkeypatch.setattr."""
    from trl import GRPOTrainer

    torch.set_num_threads(1)
    world, made = World.from_environment(), []
    notes = several_gpus.RUNS / f"notes-{world.rank}.jsonl"
    runs.append_row(notes, {"pid": os.getpid()})

    def equation_reward(completions, nums, target, **kwargs):
        time.sleep(float(os.environ.get("SLOW", 0)))  # where a signal has to arrive in time
        runs.append_row(notes, {"asked": list(zip(nums, target, strict=True))})
        return equation_reward_func(None, completions, target, nums)

    equation_reward.__name__ = "equation_reward_func"
    make = several_gpus.make_trainer

    def kept(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[0]

    patch(several_gpus, "REWARDS", (several_gpus.REWARDS[0], equation_reward))
    patch(several_gpus, "load_split", lambda puzzles, part: load_split(puzzles, part).head(
        8 if part == "train" else 40))  # an epoch has two steps
    patch(several_gpus, "make_trainer", kept)
    patch(GRPOTrainer, "_generate_single_turn", seeded(GRPOTrainer._generate_single_turn))
    several_gpus.main(arguments)
    runs.append_row(notes, {"seed": torch.initial_seed()})
    weights = [p.detach().double() for p in made[0].model.parameters() if p.requires_grad]
    runs.append_row(notes, {"step": made[0].state.global_step,
                            "weights": [float((w * (i + 1)).sum()) for i, w in enumerate(weights)]})


def alone(folder, *arguments):
    """Run one process, here."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(several_gpus, "RUNS", folder)
        patch.setattr(runs, "RUNS", folder)
        patch.setattr(sys, "argv", ["several_gpus", *arguments])
        child(list(arguments), patch.setattr)
    torch.set_num_threads(threads)


def launch(folder, *arguments, processes=2, slow=0):
    """Start the launcher; each step takes `slow` seconds longer."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
               processes, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no",
               "--main_process_port", 0, __file__, *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT, env=os.environ | {
                                "COUNTDOWN_RUNS": str(folder), "OMP_NUM_THREADS": "1",
                                "SLOW": str(slow)})


def ended(launcher, timeout=300):
    try:
        return launcher.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        launcher.terminate()
        raise


def steps_done(run, n, launcher):
    """Wait until a run has so many steps."""
    end = time.monotonic() + 300
    while len(runs.read_rows(run / "metrics.jsonl")) < n:
        assert launcher.poll() is None and time.monotonic() < end, ended(launcher)
        time.sleep(0.05)


def asked(folder, ranks):
    """The puzzles of each step, as the processes asked them in their order."""
    notes = [[row["asked"] for row in runs.read_rows(folder / f"notes-{rank}.jsonl")
              if "asked" in row] for rank in range(ranks)]
    return [sum(parts, []) for parts in zip(*notes, strict=True)]


def last(folder, rank):
    return runs.read_rows(folder / f"notes-{rank}.jsonl")[-1]


def same_metrics(one, other, done=STEPS):
    """Assert that a run's rows differ from another's first ones by rounding and clocks alone."""
    one, other = (runs.read_rows(run / "metrics.jsonl") for run in (one, other))
    assert [row["step"] for row in one] == [*range(1, done + 1)]
    for mine, theirs in zip(one, other[:done], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - CLOCKS:
            near = 0.05 if name in BY_PASS else 1e-3
            assert mine[name] == pytest.approx(theirs[name], rel=near, abs=1e-5), name
    return one


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    alone(folder, *SMALL, "--name", "run", "--part", "validation", "--time", "1")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launcher = launch(folder, *SMALL, "--name", "run", "--part", "validation", "--time", "1")
    output = ended(launcher)
    assert launcher.returncode == 0, output
    return folder, output


def test_two_processes_make_the_run_of_one(whole, two):
    folder, output = two
    assert output.count("2 process(es), trl alone: 16 completions a step = 2 x 1 pass") == 1
    assert output.count(f"step {STEPS} of {STEPS}") == output.count("recorded in") == 1
    assert asked(folder, 2) == asked(whole, 1)
    rows = same_metrics(folder / "run", whole / "run")
    assert any(row["truncated"] < 1 for row in rows)  # so no two processes have as many tokens
    assert last(folder, 0) == last(folder, 1)  # the weights, to the last digit
    seeds = [row["seed"] for rank in (0, 1) for row in runs.read_rows(
        folder / f"notes-{rank}.jsonl") if "seed" in row]
    assert seeds == [0, 1]  # else both would sample with the same random numbers
    assert last(folder, 0)["weights"] == pytest.approx(last(whole, 0)["weights"], abs=1e-2)
    names = [sorted(path.name for path in (place / "run").iterdir()) for place in (folder, whole)]
    assert names[0] == names[1] and not any("partial" in name for name in names[0])
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["processes"] == 2 and config["stack"] == "trl"
    assert config["command"].startswith("accelerate launch --num_processes 2 -m lab.several_gpus")


def test_both_answer_the_held_out_puzzles_and_each_its_part(whole, two):
    frames = [pd.read_parquet(place / "run" / "evaluation.parquet") for place in (whole, two[0])]
    for name in ("stage", "temperature", "sample", "nums", "target"):
        assert frames[0][name].map(str).tolist() == frames[1][name].map(str).tolist()
    assert len(frames[0]) == 80
    profile = replace(profiles.CPU_SHORT, max_completion_length=80)
    puzzles = load_split("cpu", "validation").head(40)
    usual = evaluate(*load_model(profile), profile, puzzles, "before", (1.0,))
    before = frames[0][frames[0]["stage"] == "before"]
    assert before["completion"].tolist() == usual["completion"].tolist()


def test_weights_under_an_adapter_do_not_drift():
    """trl adds the adapter to 16-bit weights and takes it away again, before each sampling."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(profiles.CPU)[0].to(torch.bfloat16),
                           LoraConfig(**lora_settings(4)))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)

    def sync():
        model.merge_adapter()
        model.unmerge_adapter()

    def base():
        return [weight.clone() for name, weight in model.named_parameters() if "lora_" not in name]

    def same(before):
        return all(map(torch.equal, before, base()))

    before = base()
    several_gpus.restoring(model, sync)()
    assert same(before)
    sync()
    assert not same(before)


def test_what_a_step_took_is_said_of_each_process(two):
    rows = runs.read_rows(two[0] / "run" / "parts.jsonl")
    metrics = runs.read_rows(two[0] / "run" / "metrics.jsonl")
    assert len(rows) == STEPS
    for row, metric in zip(rows, metrics, strict=True):
        assert len(row["sampling"]) == 2 and 0 < max(row["sampling"]) < row["seconds"]
        assert row["completion_tokens"] == pytest.approx(16 * metric["completion_tokens"])
    measured = json.loads((two[0] / "run" / "scaling.json").read_text())
    assert measured["world"] == 2 and measured["steps_counted"] == STEPS - 1
    assert measured["completions_per_step"] == 16 and measured["steps"] == rows
    for part in ("sampling", "old_logps"):
        slowest = statistics.median(max(row[part]) for row in rows[1:])
        assert measured[f"{part}_seconds"] == round(slowest, 3)


def test_two_go_on_where_one_ended_until_the_clock_stops_both(tmp_path, whole):
    """It ended in the middle of the second epoch."""
    arguments = (*SMALL, "--name", "run", "--no-evaluation")
    run = tmp_path / "run"
    alone(tmp_path, *arguments, "--steps", "3")
    first = asked(tmp_path, 1)
    spent = runs.read_rows(run / "metrics.jsonl")[-1]["seconds"]
    launcher = launch(tmp_path, *arguments, "--minutes", (spent + 0.01) / 60)
    output = ended(launcher)
    assert launcher.returncode == 0 and output.count("Resuming") == 1, output
    assert last(tmp_path, 0) == last(tmp_path, 1) and last(tmp_path, 0)["step"] == 4
    assert {path.name for path in (run / "checkpoint-4").glob("rng*")} == {
        "rng_state_0.pth", "rng_state_1.pth"}
    both = [[row["asked"] for row in runs.read_rows(tmp_path / f"notes-{rank}.jsonl")
             if "asked" in row][-1] for rank in (0, 1)]
    assert [*first, both[0] + both[1]] == asked(whole, 1)[:4]
    same_metrics(run, whole / "run", 4)


def test_ctrl_c_ends_both_after_the_same_step_and_one_goes_on(tmp_path, whole):
    arguments = (*SMALL, "--name", "run", "--no-evaluation")
    launcher = launch(tmp_path, *arguments, slow=1)
    steps_done(tmp_path / "run", 1, launcher)
    launcher.send_signal(signal.SIGINT)
    output = ended(launcher)
    rows = runs.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert 1 <= len(rows) < STEPS, output
    assert output.count(f"Asked to stop: step {len(rows)} of {STEPS} is saved") == 1
    assert runs.step_of(runs.last_checkpoint(tmp_path / "run")) == len(rows)
    alone(tmp_path, *arguments)
    same_metrics(tmp_path / "run", whole / "run")


def test_a_killed_process_ends_the_run_and_another_number_resumes_it(tmp_path):
    """With an adapter: the weights of the model stay as they are."""
    arguments = (*SMALL, *LORA, "--name", "run", "--no-evaluation")
    launcher = launch(tmp_path, *arguments, slow=1)
    steps_done(tmp_path / "run", 3, launcher)
    victim = runs.read_rows(tmp_path / "notes-1.jsonl")[0]["pid"]
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    output = ended(launcher, timeout=60)
    assert time.monotonic() - start < 60 and launcher.returncode
    assert f"Signal 9 (SIGKILL) received by PID {victim}" in output
    alone(tmp_path, *arguments)
    alone(tmp_path, *arguments[:-3], "--name", "whole", "--no-evaluation")
    same_metrics(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(("fault", "said"), [
    ("another run", "holds a run of profile cpu with seed 0 that differs in"),
    ("held", f"process {os.getpid()} on ")])
def test_a_folder_that_is_not_free_is_refused_in_one_line(tmp_path, fault, said):
    run = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        if fault == "held":
            stack.enter_context(runs.held(run))
        else:
            runs.open_run(profiles.CPU, folder=run)
        launcher = launch(tmp_path, *SMALL, "--name", "run", "--no-evaluation")
        output = ended(launcher)
    assert launcher.returncode and output.count(said) == 1, output
    assert "Traceback" not in output.split(said)[0] + output.split(said)[1].split("\n")[0]
    assert "Error: " not in output.split("ChildFailedError")[0], output  # nothing of the others
    assert not (run / "metrics.jsonl").exists() and not runs.checkpoints(run)


@pytest.mark.parametrize(("arguments", "size", "said"), [
    (["--profile", "cpu-short"], 3, "the 64 completions of a step do not divide by 3 processes: "
     "start 1 or 2 or 4, or give --scale-batch\n"),
    (["--profile", "cpu-short", "--time", "40"], 2, "--time 40 leaves none of 40 steps\n"),
    (["--profile", "cpu-short", "--set", "grop_size=2"], 2, "a profile has no setting 'grop_size'"),
])
def test_bad_input_is_one_line_from_one_process(capsys, arguments, size, said):
    for rank in range(size):
        with pytest.raises(SystemExit) as ending:
            several_gpus.read(arguments, World(rank, rank, size, size))
        assert ending.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith(said) and printed.count("\n") == 1 if rank == 0 else not printed


def test_more_processes_than_cards_are_refused():
    with pytest.raises(ValueError, match="4 processes are started and torch finds 2 GPU"):
        several_gpus.check_cards(World(0, 0, 4, 4), 2)
    several_gpus.check_cards(World(3, 1, 4, 2), 2)  # two hosts


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=lambda profile: profile.name)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_batch_is_the_profiles_or_grows_with_the_processes(profile, size):
    same, grown = cut(profile, size), cut(profile, size, scale=True)
    for made, times in ((same, 1), (grown, size)):
        assert made.completions_per_step == times * profile.completions_per_step
        assert made.accumulation_steps % size == 0 and made.micro_batch <= profile.micro_batch
        assert made.quantisation is None
    assert grown.micro_batch == profile.micro_batch
    assert set(profiles.differences(profile, profiles.settings(same))) <= {
        "micro_batch", "quantisation"}


def test_a_step_that_is_not_the_profiles_batch_is_refused(tmp_path):
    profile = cut(replace(profiles.CPU_SHORT, micro_batch=32), 1)
    with pytest.raises(RuntimeError, match="would sample 32 completions, not 64"):
        several_gpus.make_trainer(profile, tmp_path, 0, World(), gradient_accumulation_steps=1)


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_writes_and_shows(tmp_path, monkeypatch, first):
    """Each callback is asked as in a process that is not the first, and has the files to write."""
    state = TrainerState(global_step=2, max_steps=4, is_world_process_zero=first)
    args = several_gpus.make_config(replace(profiles.CPU_SHORT, steps=4), tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    seen = []
    monkeypatch.setattr(training, "sample_completions",
                        lambda *a, **k: seen.append("sampled") or pd.DataFrame([{"correct": True}]))
    monkeypatch.setattr(Progress, "_show", lambda self, name, *a, **k: seen.append(name))
    runs.append_row(tmp_path / "metrics.jsonl", {"step": 1, "seconds": 1.0, "equation_reward": 0.5})
    runs.append_row(tmp_path / "metrics.jsonl", {"step": 3, "seconds": 3.0, "equation_reward": 0.5})
    stop = StopWhenAsked(tmp_path)
    log = training.MetricsLog(tmp_path)
    parts = several_gpus.Parts(tmp_path)
    callbacks = [log, Progress(tmp_path, every=2), parts, TimeLimit(log, 1e-9), stop,
                 training.SampleLog(tmp_path, None, None, None, every=2),
                 training.Checkpoints(tmp_path, {"seed": 0})]
    stop.file.touch()
    logs = {"reward": 1.0, "rewards/equation_reward_func/mean": 0.5}
    control, events = TrainerControl(), ("train_begin", "step_begin", "step_end", "log", "save",
                                         "train_end")
    with contextlib.redirect_stdout(None):
        for event in events:
            for callback in callbacks:
                getattr(callback, f"on_{event}")(args, state, control, logs=logs)
    steps = [row["step"] for row in runs.read_rows(tmp_path / "metrics.jsonl")]
    written = {path.name for path in tmp_path.iterdir()}
    if first:
        assert steps == [1, 2] and set(seen) == {"line", "curves", "sampled"}
        assert {"parts.jsonl", "samples.jsonl"} <= written and "stop" not in written
        assert stop.stopped and control.should_training_stop and control.should_save
    else:  # nothing is written, and nothing is stopped by what only the first knows
        assert steps == [1, 3] and not seen
        assert written == {"metrics.jsonl", "checkpoint-2", "stop"}
        assert not control.should_training_stop
    assert (tmp_path / "checkpoint-2" / training.SETTINGS_FILE).exists() == first


def test_the_data_and_the_reward_that_the_document_has_for_verl(tmp_path):
    text = (ROOT / "docs" / "several_gpus.md").read_text(encoding="utf-8")
    data, reward = re.findall("```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "data.py").write_text(data)
    (tmp_path / "reward.py").write_text(reward)
    subprocess.run([sys.executable, "data.py"], cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("reward", tmp_path / "reward.py")  # as verl does
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row = pd.read_parquet(tmp_path / "validation.parquet").iloc[0]
    puzzle = row["extra_info"]
    assert [message["role"] for message in row["prompt"]][-1] == "user"
    right = solve([int(n) for n in puzzle["nums"]], puzzle["target"])
    for equation, score in ((right, 1.0), (" + ".join(map(str, puzzle["nums"])), 0.0)):
        answer = f"<think>x</think>\n<answer>{equation} = {puzzle['target']}</answer>"
        given = ("countdown", answer, row["reward_model"]["ground_truth"], puzzle)
        assert module.compute_score(*given) == score


if __name__ == "__main__":
    child(sys.argv[1:], setattr)
