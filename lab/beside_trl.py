"""One run of trl and one from scratch in lockstep: ``python -m lab.beside_trl --seed 0``.

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
from helpers.training import METRICS, grpo_config, prompt_dataset
from lab import scratch
from lab.record import keep

RECORDED = DATA / "scratch"


class Witness(GRPOTrainer):
    """trl's trainer, which also keeps what it sampled and says when it began to update.

    With a ``sampling_seed`` it samples each step's completions from the random numbers that
    `lab.scratch.training_steps` takes for that step; nothing else is changed.
    """

    sampling_seed = None

    def _generate_single_turn(self, *args, **kwargs):
        with torch.random.fork_rng():
            if self.sampling_seed is not None:
                step = self.state.global_step + 1
                torch.manual_seed(scratch.sampling_seed(self.sampling_seed, step))
            return super()._generate_single_turn(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.asked = inputs
        self.rolled_out = super()._generate_and_score_completions(inputs)
        self.sampled_at = scratch.clock()
        return self.rolled_out


class Lockstep(TrainerCallback):
    """After each step of trl make one from scratch, and write a row for both."""

    def __init__(self, trainer, steps, runs):
        self.trainer, self.steps, self.runs, self.spent = trainer, steps, runs, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Start trl's clock."""
        self.start = scratch.clock()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop trl's clock and let the other one make its step."""
        self.times = scratch.durations(self.start, self.trainer.sampled_at, scratch.clock())
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
        args=grpo_config(profile, folder, seed, **changes),
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
    steps = scratch.training_steps(models["scratch"], tokenizer, profile, dataset, seed)
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
