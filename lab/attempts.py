"""Many attempts at every puzzle before and after training, counted by what came of them.

``python -m lab.attempts --profile cpu --seed 3`` records the run of that seed, unless it is
complete, and samples 64 completions for each held-out puzzle, then some for puzzles and prompts
that were never trained on. The counts are written to the run's attempts.parquet, how they were made
to its config.json; ``--reference`` copies the run's four files to data/attempts/.
"""

import argparse
import json
import subprocess
import sys
import time

import pandas as pd

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import check_adapter_used, sample_completions
from helpers.models import load_model, trained_model
from helpers.paths import DATA, ROOT, RUNS, show
from helpers.runs import FILES, environment, last_checkpoint, write_json
from lab.mistakes import KINDS, kinds
from lab.record import keep
from lab.transfer import puzzle_sets, wordings

ATTEMPTS = DATA / "attempts"
KEY = ["stage", "set", "wording", "temperature", "nums", "target"]
HELD_OUT, TRAINED = "held-out", "as trained"


def tally(frame, limit):
    """Count a puzzle's completions by kind.

    Parameters
    ----------
    frame : pandas.DataFrame
        Graded rows of `helpers.evaluation.sample_completions`, any number of them a puzzle.
    limit : int
        The longest completion allowed, in tokens.

    Returns
    -------
    pandas.DataFrame
        One row a puzzle: ``nums`` (sorted), ``target``, ``n`` completions, one column for each of
        `lab.mistakes.KINDS`, and ``tokens``, the mean length.
    """
    key = pd.DataFrame({"nums": [tuple(sorted(int(n) for n in x)) for x in frame["nums"]],
                        "target": frame["target"].to_numpy()})
    counted = pd.get_dummies(kinds(frame.reset_index(drop=True), limit)).astype(int)
    counted["n"], counted["tokens"] = 1, frame["tokens"].to_numpy()
    table = pd.concat([key, counted], axis=1).groupby(["nums", "target"], sort=False).sum()
    table["tokens"] /= table["n"]
    table = table.reset_index()[["nums", "target", "n", *KINDS, "tokens"]]
    table["nums"] = table["nums"].map(list)
    return table


def plan(name, puzzles=None, samples=64, transfer_samples=8, temperatures=(1.0, 0.6)):
    """Return what is sampled: a list of (set, wording, temperature, samples, puzzles, messages).

    Parameters
    ----------
    name : str
        The shipped puzzles that the model was trained on.
    puzzles : int, optional
        At most this many held-out puzzles; all of them by default.
    samples, transfer_samples : int
        Completions a puzzle: of the held-out ones, and of the others.
    temperatures : sequence of float
        For the held-out puzzles as trained; all else is sampled at 1.
    """
    held_out = load_split(name, "test")
    if puzzles is not None and puzzles < len(held_out):
        held_out = held_out.sample(puzzles, random_state=0).sort_index()
    builds = wordings(name)
    size = min(300, len(held_out))
    few = held_out.sample(size, random_state=1).sort_index()
    found = [(HELD_OUT, TRAINED, t, samples, held_out, builds[TRAINED]) for t in temperatures]
    found += [(key, TRAINED, 1.0, transfer_samples, rows, builds[TRAINED])
              for key, rows in puzzle_sets(name, size).items()]
    found += [(HELD_OUT, wording, 1.0, transfer_samples, few, build)
              for wording, build in builds.items() if wording != TRAINED]
    return found


def attempt(model, tokenizer, profile, jobs, stage, seed=0, batch=512):
    """Sample everything in `jobs` with one model and return the counts.

    Parameters
    ----------
    jobs : list
        From `plan`.
    stage : str
        "before" or "after"; a column of the result.
    seed : int
        Seed of the sampling and of the order of the numbers, which is another in each attempt.
    batch : int
        Prompts sampled together (transformers only).

    Returns
    -------
    pandas.DataFrame
        Columns ``stage, set, wording, temperature`` and those of `tally`.
    """
    found = []
    check_adapter_used(model, tokenizer, profile, jobs[0][4])
    for name, wording, temperature, samples, puzzles, build in jobs:
        start = time.monotonic()
        rows = puzzles.loc[puzzles.index.repeat(samples)]
        frame = sample_completions(model, tokenizer, profile, rows, temperature, seed, batch=batch,
                                   build=build)
        table = tally(frame, profile.max_completion_length)
        labels = {"stage": stage, "set": name, "wording": wording,
                  "temperature": float(temperature)}
        for place, (column, value) in enumerate(labels.items()):
            table.insert(place, column, value)
        found.append(table)
        share = table["right"].sum() / table["n"].sum()
        print(f"{stage:6} {name}, {wording}, T = {temperature:g}: {len(table)} puzzles x "
              f"{samples}, {share:.1%} right, {time.monotonic() - start:.0f} s", flush=True)
    return pd.concat(found, ignore_index=True)


def load_attempts(folders):
    """Read the attempts of several runs into one table with a column ``run``.

    Parameters
    ----------
    folders : list of pathlib.Path
        Runs that `python -m lab.attempts` has sampled.

    Raises
    ------
    ValueError
        Where no run is given, or a run has no attempts, or not of the puzzles of the others.
    """
    if not folders:
        raise ValueError("no run was given: record one with `python -m lab.attempts`")
    tables, asked = [], None
    for folder in folders:
        path = folder / "attempts.parquet"
        if not path.exists():
            raise ValueError(f"{show(folder)} has no attempts.parquet: make it with "
                             "`python -m lab.attempts`, or leave the run out")
        table = pd.read_parquet(path)
        missing = {*KEY, *KINDS, "n", "tokens"}.difference(table.columns)
        if missing:
            raise ValueError(f"{show(path)} has no column {', '.join(sorted(missing))}: it was "
                             "written by another version; sample the run again")
        table["nums"] = [tuple(int(n) for n in nums) for nums in table["nums"]]
        here = set(map(tuple, table[KEY].itertuples(index=False)))
        if asked is not None and here != asked:
            raise ValueError(f"{show(folder)} was asked other puzzles than {show(folders[0])}: "
                             "compare runs that were sampled with the same options")
        asked = here
        tables.append(table.assign(run=folder.name))
    return pd.concat(tables, ignore_index=True)


def _weights(run):
    """The folder with a complete run's trained weights."""
    final = run / "final"
    folder = final if any(final.glob("*.safetensors")) else last_checkpoint(run)
    if folder is None:
        raise RuntimeError(f"{show(run)} holds no trained weights: move the folder away and run "
                           "this command again; it trains anew")
    return folder


def main(argv=None):
    """Record a run if it is not there, sample, and write the counts.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.attempts", description=__doc__)
    parser.add_argument("--profile", default="cpu", choices=profiles.PROFILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="the folder under runs/; <profile>-seed<k> if not given")
    parser.add_argument("--steps", type=int, help="instead of the profile's, where it trains")
    parser.add_argument("--puzzles", type=int, help="held-out puzzles; all if not given")
    parser.add_argument("--samples", type=int, default=64, help="a held-out puzzle (64)")
    parser.add_argument("--transfer-samples", type=int, default=8, help="other puzzles (8)")
    parser.add_argument("--reference", action="store_true", help="copy it to data/attempts/")
    options = parser.parse_args(argv)
    import torch

    profile = profiles.choose(options.profile)
    run = RUNS / (options.name or f"{profile.name}-seed{options.seed}")
    if not (run / "evaluation.parquet").exists():
        command = ["lab.record", "--profile", profile.name, "--seed", str(options.seed),
                   "--name", run.name]
        command += ["--steps", str(options.steps)] if options.steps else []
        # in a process of its own: one GPU does not hold two copies of vLLM
        subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT)
    config = json.loads((run / "config.json").read_text())
    if config["profile"]["name"] != profile.name or config["seed"] != options.seed:
        parser.error(f"{show(run)} is a run of profile {config['profile']['name']} with seed "
                     f"{config['seed']}: give these, or another --name")
    folder = _weights(run)
    jobs = plan(profile.puzzles, options.puzzles, options.samples, options.transfer_samples)
    start = time.monotonic()
    model, tokenizer = load_model(profile)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 8192 if device == "cuda" else 512
    found = []
    for stage in ("before", "after"):
        if stage == "after":
            model = trained_model(model, profile, folder)
        if not profile.needs_gpu:
            model.to(device)  # the CPU profile's model is sampled faster where there is a GPU
        found.append(attempt(model, tokenizer, profile, jobs, stage, options.seed, batch))
    frame = pd.concat(found, ignore_index=True)
    partial = run / "attempts.parquet.partial"
    frame.to_parquet(partial, compression="zstd", index=False)
    partial.replace(run / "attempts.parquet")
    words = sys.argv[1:] if argv is None else argv
    config["attempts"] = {
        "command": " ".join(["python -m lab.attempts", *words]),
        "completions": int(frame["n"].sum()),
        "seconds": round(time.monotonic() - start, 1),
        **environment(device == "cuda"),
    }
    write_json(run / "config.json", config)
    print(f"{config['attempts']['completions']:,} completions in "
          f"{config['attempts']['seconds']:.0f} s: {show(run / 'attempts.parquet')}")
    if options.reference:
        keep(run, ATTEMPTS, files=(*FILES, "attempts.parquet"))


if __name__ == "__main__":
    main()
