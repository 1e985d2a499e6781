"""One run of trl and one from scratch in lockstep: ``python -m lab.beside_trl --seed 0``.

The code from scratch is what stands in notebook 06: its cells with the tag ``scratch`` are run.
Both start from the same weights, ask the same puzzles in the same order and draw from the same
random numbers at each step, so that they differ by their code alone. With ``--reference`` the
files are copied to data/scratch/trl-seed<k>/ and data/scratch/scratch-seed<k>/.
"""

import argparse
import json
import sys
import time
from dataclasses import replace

import pandas as pd
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import evaluate, success
from helpers.models import load_model
from helpers.paths import DATA, show
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import append_row, open_run, write_json
from helpers.training import METRICS, prompt_dataset
from lab import cells
from lab.record import keep, make_config

RECORDED = DATA / "scratch"
LOSS_TYPES = ("grpo", "dapo", "dr_grpo")


def notebook_code():
    """Return the names that notebook 06 defines, a namespace of its own at each call."""
    return cells.run("06", "scratch")


def clock():
    """Return the time of day and the processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def durations(start, sampled, updated):
    """Return a step's durations from three `clock` readings, as columns of metrics.jsonl.

    Generation includes the scoring. The processor's seconds don't count what other programs take.
    """
    row = {"step_seconds": updated[0] - start[0]}
    for name, (a, b) in {"generation": (start, sampled), "update": (sampled, updated)}.items():
        row |= {f"{name}_seconds": b[0] - a[0], f"{name}_cpu_seconds": b[1] - a[1]}
    return {name: round(value, 4) for name, value in row.items()}


def rollout_metrics(batch, group_size, end):
    """Return what metrics.jsonl says about a step's completions, besides notebook 06's row.

    Parameters
    ----------
    batch : dict
        From notebook 06's ``make_batch``.
    group_size, end : int
        Completions of one prompt; the end token's id.
    """
    rewards = batch["equation_reward"] + batch["format_reward"]
    spread = rewards.view(-1, group_size).std(dim=1)
    ends = batch["tokens"] == end
    length = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, ends.shape[1])
    return {
        "reward": rewards.mean().item(),
        "reward_std": rewards.std().item(),
        "zero_spread_groups": torch.isclose(spread, torch.zeros(())).float().mean().item(),
        "completion_tokens": length.float().mean().item(),
        "truncated": (~ends.any(dim=1)).float().mean().item(),
    }


def training_steps(model, tokenizer, profile, dataset, seed=0):
    """Train with notebook 06's loop, and say of each step what metrics.jsonl holds.

    Parameters
    ----------
    model, tokenizer
        From `helpers.models.load_model`, on the CPU; the model is trained in place.
    profile : helpers.profiles.Profile
        A CPU profile. All completions of a step go through the model at once.
    dataset : datasets.Dataset
        From `helpers.training.prompt_dataset`; at least one step's puzzles.
    seed : int
        Seed of the order of the puzzles, which is trl's, and of the sampling.

    Yields
    ------
    (row, batch)
        After each step its metrics, in the form of metrics.jsonl, and its batch.

    Raises
    ------
    ValueError
        If the profile asks for what is not written in the notebook: a GPU, warm-up, gradient
        accumulation, another loss type; or the puzzles are fewer than a step's.
    """
    if profile.needs_gpu or profile.warmup_steps or profile.accumulation_steps > 1:
        raise ValueError(f"profile {profile.name} needs a GPU, warm-up or gradient accumulation, "
                         "which this loop leaves out: use profile cpu, or trl in notebook 04")
    if profile.loss_type not in LOSS_TYPES:
        raise ValueError(f"no loss type is called {profile.loss_type!r}: choose grpo, dapo or "
                         "dr_grpo")
    if len(dataset) < profile.prompts_per_step:
        raise ValueError(f"{len(dataset)} puzzles, and a step asks {profile.prompts_per_step}: "
                         "give more puzzles, or lower prompts_per_step")
    code, sampled_at = notebook_code(), []
    make_batch = code["make_batch"]

    def watched(*arguments):  # between sampling and update the clock is read
        batch = make_batch(*arguments)
        sampled_at.append(clock())
        return batch

    code["make_batch"] = watched
    start, spent = clock(), 0.0
    for row, batch in code["training_steps"](model, tokenizer, profile, dataset, seed):
        times = durations(start, sampled_at[-1], clock())
        spent += times["step_seconds"]
        row |= rollout_metrics(batch, profile.group_size, tokenizer.eos_token_id) | times
        yield row | {"seconds": round(spent, 2), "learning_rate": profile.learning_rate}, batch
        start = clock()


class Witness(GRPOTrainer):
    """trl's trainer, which also keeps what it sampled and says when it began to update.

    With a ``sampling_seed`` it samples each step's completions from the random numbers that
    notebook 06's loop takes for that step; nothing else is changed.
    """

    sampling_seed = None

    def __init__(self, *args, **kwargs):
        self.seed_of_step = notebook_code()["sampling_seed"]  # once: the notebook is read for it
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, *args, **kwargs):
        with torch.random.fork_rng():
            if self.sampling_seed is not None:
                step = self.state.global_step + 1
                torch.manual_seed(self.seed_of_step(self.sampling_seed, step))
            return super()._generate_single_turn(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.asked = inputs
        self.rolled_out = super()._generate_and_score_completions(inputs)
        self.sampled_at = clock()
        return self.rolled_out


class Lockstep(TrainerCallback):
    """After each step of trl make one from scratch, and write a row for both."""

    def __init__(self, trainer, steps, runs):
        self.trainer, self.steps, self.runs, self.spent = trainer, steps, runs, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start trl's clock."""
        self.start = clock()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop trl's clock and let the other one make its step."""
        self.times = durations(self.start, self.trainer.sampled_at, clock())
        self.row, batch = next(self.steps)
        here, there = batch["tokens"], self.trainer.rolled_out["completion_ids"]
        width = max(here.shape[1], there.shape[1])
        here, there = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (here, there))
        self.row["same_completions"] = (here == there).all(dim=1).float().mean().item()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the rows of a step."""
        if "reward" not in (logs or {}):
            return
        self.spent += self.times["step_seconds"]
        row = {"step": state.global_step, "seconds": round(self.spent, 2)}
        row |= {ours: float(logs[theirs]) for theirs, ours in METRICS.items() if theirs in logs}
        append_row(self.runs["trl"] / "metrics.jsonl", row | self.times)
        append_row(self.runs["scratch"] / "metrics.jsonl", self.row)


def witness(model, tokenizer, profile, dataset, folder, seed=0, **changes):
    """Return a `Witness` with a profile's settings, as notebook 04 sets trl's trainer up.

    Parameters
    ----------
    **changes
        Arguments of GRPOConfig that replace the profile's.
    """
    trainer = Witness(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[strict_format_reward_func, equation_reward_func],
        args=make_config(profile, folder, seed, **changes),
        train_dataset=dataset,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def record(profile, seed):
    """Train with trl and from scratch in lockstep, evaluate both, and return the two folders.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        A CPU profile without warm-up or gradient accumulation.
    seed : int
        Seed of the order of the puzzles and of all sampling.

    Raises
    ------
    RuntimeError
        If a folder holds a run already: a lockstep run is not resumed.
    """
    runs = {name: open_run(profile, seed, f"{name}-seed{seed}") for name in ("trl", "scratch")}
    for run in runs.values():
        if (run / "metrics.jsonl").exists():
            raise RuntimeError(f"{show(run)} holds a run already: delete the folder to start anew")
    held_out = load_split(profile.puzzles, "test")
    dataset = prompt_dataset(load_split(profile.puzzles, "train"), seed)
    models = {name: load_model(profile)[0] for name in runs}
    tokenizer = load_model(profile)[1]
    start = time.monotonic()
    before = evaluate(models["trl"], tokenizer, profile, held_out, "before", seed=seed)
    spent = time.monotonic() - start
    trainer = witness(models["trl"], tokenizer, profile, dataset, runs["trl"], seed,
                      save_strategy="no")
    trainer.sampling_seed = seed
    steps = training_steps(models["scratch"], tokenizer, profile, dataset, seed)
    lockstep = Lockstep(trainer, steps, runs)
    trainer.add_callback(lockstep)
    trainer.train()
    trained = {"trl": lockstep.spent, "scratch": lockstep.row["seconds"]}
    for name, run in runs.items():
        start = time.monotonic()
        after = evaluate(models[name], tokenizer, profile, held_out, "after", seed=seed)
        evaluating = spent + time.monotonic() - start
        frame = pd.concat([before, after], ignore_index=True)
        frame.to_parquet(run / "evaluation.parquet", compression="zstd", index=False)
        config = json.loads((run / "config.json").read_text()) | {
            "trainer": name,
            "evaluated_on": f"data/puzzles/{profile.puzzles}-test.parquet",
            "training_seconds": round(trained[name], 2),
            "evaluation_seconds": round(evaluating, 1),
            "wall_seconds": round(trained[name] + evaluating, 1),
            "command": "python -m lab.beside_trl " + " ".join(sys.argv[1:]),
        }
        write_json(run / "config.json", config)
        print(f"{show(run)}\n{success(frame).round(3).to_string()}")
    return runs


def main():
    """Read the command line and record one pair of runs."""
    parser = argparse.ArgumentParser(prog="python -m lab.beside_trl", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on the CPU")
    parser.add_argument("--reference", action="store_true", help="copy them to data/scratch/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for run in record(replace(profiles.CPU, steps=options.steps), options.seed).values():
        if options.reference:
            keep(run, RECORDED)


if __name__ == "__main__":
    main()
