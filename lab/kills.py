"""Kill a small run at random moments, start it again each time, and compare it with another.

``python -m lab.kills --seed 0 --kills 10`` sends SIGKILL ten times to ``lab.record``'s whole way
(evaluate, train, evaluate) on a CPU: while it samples, updates, saves or evaluates. Each time it is
started again. At the end nothing may differ from a run that was left alone: no row is lost, none is
there twice, no number is another. The exit status is 1 where something differs.
"""

import argparse
import functools
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from helpers import profiles
from helpers.runs import read_rows

PHASES = ("sampling", "updating", "saving", "evaluating")
SMALL = replace(profiles.CPU_SHORT, steps=24, save_every=2, prompts_per_step=2, group_size=4,
                micro_batch=4, max_completion_length=40)
TIMES = {"sampling": 5, "updating": 5, "saving": 2, "evaluating": 2}  # at most, in one start
CLOCKS = {"seconds", "step_seconds"}  # columns that no two runs share
PATIENCE = 300  # seconds for one start to its end


def child(mark):
    """Record the small run in COUNTDOWN_RUNS, and write to the file `mark` what is being done."""
    import torch
    from transformers import Trainer
    from trl import GRPOTrainer

    from lab import record

    torch.set_num_threads(1)

    def marked(owner, name, phase):
        function = getattr(owner, name)

        @functools.wraps(function)
        def wrapper(*arguments, **options):
            mark.write_text(phase)
            try:
                return function(*arguments, **options)
            finally:
                mark.write_text("updating")

        setattr(owner, name, wrapper)

    marked(GRPOTrainer, "_generate_and_score_completions", "sampling")
    marked(Trainer, "_save_checkpoint", "saving")
    marked(record, "evaluate", "evaluating")
    record.record(SMALL, 0, "validation", "run", temperatures=(1.0,), watch=4, every=3)


def until_killed(runs, phase, rng):
    """Start the run, kill it in a phase, and return the phase that it was in, or None if it ended.

    Parameters
    ----------
    runs : pathlib.Path
        The runs folder.
    phase : str or None
        One of `PHASES`; None lets it end.
    rng : random.Random
        Chooses at which time that the run is in the phase, and how long into it.
    """
    mark = runs / "phase"
    mark.write_text("starting")
    times, before = rng.randint(1, TIMES.get(phase, 1)), "starting"
    with open(runs / "log.txt", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.kills", "--child", mark], stdout=log, stderr=log,
            env=os.environ | {"COUNTDOWN_RUNS": str(runs), "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        now = mark.read_text()
        times -= now == phase != before
        before = now
        if times == 0 or time.monotonic() > end:
            time.sleep(rng.random() * 0.02)
            now = mark.read_text() or now
            process.kill()
            process.wait()
            if times:
                raise RuntimeError(f"no end after {PATIENCE} s: see {runs / 'log.txt'}")
            return now
        time.sleep(0.0005)
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}:\n"
                           + (runs / "log.txt").read_text()[-3000:])
    return None


def comparable(runs):
    """Return a run's rows without what a clock wrote, its samples, and its evaluation."""
    run = runs / "run"
    rows = [{name: value for name, value in row.items() if name not in CLOCKS}
            for row in read_rows(run / "metrics.jsonl")]
    frame = pd.read_parquet(run / "evaluation.parquet")
    return rows, read_rows(run / "samples.jsonl"), frame.astype({"nums": str}).to_dict("records")


def main(argv=None):
    """Make one run that is left alone and one that is killed; return 1 if they differ."""
    parser = argparse.ArgumentParser(prog="python -m lab.kills", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.child)
        return 0
    rng, fell = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        whole.mkdir()
        killed.mkdir()
        until_killed(whole, None, rng)
        phases = []
        while len(fell) < options.kills:
            phases = phases or rng.sample(PHASES, len(PHASES))  # each as often, in any order
            phase = phases.pop()
            if not (found := until_killed(killed, phase, rng)):
                phases = ["evaluating"]  # it has ended: that is what another start still does
                continue
            rows = read_rows(killed / "run" / "metrics.jsonl")
            fell.append(found)
            print(f"kill {len(fell)}: {found}, {len(rows)} steps done", flush=True)
        until_killed(killed, None, rng)
        parts = zip(("rows", "samples", "evaluation"), comparable(whole), comparable(killed),
                    strict=True)
        different = [name for name, one, other in parts if one != other]
    print(f"{len(fell)} kills with seed {options.seed}: "
          + (f"different: {', '.join(different)}" if different else
             "rows, samples and evaluation equal those of a run that was left alone"))
    return int(bool(different) or len(fell) < options.kills)


if __name__ == "__main__":
    sys.exit(main())
