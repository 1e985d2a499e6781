"""What docs/results.md says of the shorter trainings of the CPU profile."""

import json

import pandas as pd
import pytest

from helpers import profiles
from helpers.paths import DATA, ROOT
from helpers.puzzles import canonical
from helpers.runs import read_rows
from lab.report import gains_of

SHORTER = [DATA / "sweeps" / f"cpu-62steps-seed{seed}" for seed in range(3)]
AT_ITS_RATE = [DATA / "sweeps" / f"cpu-62steps-2e-4-seed{seed}" for seed in range(3)]
SECTION = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition(
    "### The same gain from fewer sampled tokens")[2].partition("\n### ")[0]


def sampled_tokens(run):
    return 128 * sum(row["completion_tokens"] for row in read_rows(run / "metrics.jsonl"))


def graded(run):
    frame = pd.read_parquet(run / "evaluation.parquet")
    pairs = zip(frame["nums"], frame["target"], strict=True)
    return frame.assign(run=run.name, puzzle=[canonical(*pair) for pair in pairs])


@pytest.mark.parametrize("run", SHORTER + AT_ITS_RATE, ids=lambda run: run.name)
def test_they_differ_from_the_profile_in_steps_and_some_in_the_rate(run):
    config = json.loads((run / "config.json").read_text())
    assert profiles.differences(profiles.CPU, config["profile"]) == [
        *["learning_rate"] * (run in SHORTER), "steps"]
    assert len(read_rows(run / "metrics.jsonl")) == config["profile"]["steps"] == 62
    assert config["evaluated_on"] == "data/puzzles/cpu-test.parquet"


def test_they_sampled_less():
    usual = [DATA / "reference_runs" / f"cpu-seed{seed}" for seed in range(3)]
    fewer, more = (sum(map(sampled_tokens, runs)) for runs in (SHORTER, usual))
    third = sum(map(sampled_tokens, AT_ITS_RATE))
    told = f"{third / 3e6:.3f} million tokens a run ({third / more:.0%})".replace("%", " %")
    assert told in SECTION
    assert f"{fewer / 3e6:.3f} million tokens a run, {fewer / more:.0%}".replace(
        "%", " %") in SECTION and f"the {more / 3e6:.3f} million" in SECTION


@pytest.mark.parametrize("runs", [SHORTER, AT_ITS_RATE], ids=["3e-4", "2e-4"])
def test_their_gains_are_as_told(runs):
    gains = gains_of(pd.concat(map(graded, runs)))
    for temperature, name in ((1.0, "temperature 1"), (0.6, "temperature 0.6"), (0.0, "greedily")):
        rows = 100 * gains.loc[temperature]
        told = ", ".join(f"{row.gain:+.1f} ({row.low:.1f} to {row.high:.1f})"
                         for row in rows.itertuples())
        assert f"| {name} |" in SECTION and f"| {told} | {rows['gain'].mean():+.1f} |" in SECTION
