"""What a recorded run leaves besides its evaluation."""

import json

import pandas as pd
import pytest

from helpers import profiles
from helpers.evaluation import regrade
from helpers.paths import DATA
from helpers.record import curve
from helpers.runs import append_row, read_rows

ARRANGED = sorted((DATA / "sweeps").glob("cpu-*x*-seed*"))


def test_the_curve_counts_what_was_right_and_when(tmp_path):
    for step in (1, 2):
        append_row(tmp_path / "metrics.jsonl", {"step": step, "seconds": 3.5 * step})
    for step, outcomes in {0: [True, False], 2: [True, True]}.items():
        for correct in outcomes:
            append_row(tmp_path / "samples.jsonl", {"step": step, "correct": correct})
    rows = curve(tmp_path)
    assert rows == [{"step": 0, "seconds": 0.0, "right": 1, "n": 2},
                    {"step": 2, "seconds": 7.0, "right": 2, "n": 2}]
    json.dumps(rows)


def test_runs_that_ask_many_prompts_or_one_are_there_in_pairs():
    assert [run.name for run in ARRANGED] == [
        f"cpu-{kind}-seed{seed}" for kind in ("1x32", "8x16") for seed in (100, 101)]


@pytest.mark.parametrize("run", ARRANGED, ids=lambda run: run.name)
def test_they_differ_in_nothing_but_that(run):
    config = json.loads((run / "config.json").read_text())
    different = set(profiles.differences(profiles.CPU, config["profile"]))
    arrangement = {"prompts_per_step", "group_size", "micro_batch", "steps", "save_every"}
    assert different == (arrangement if "1x32" in run.name else set())
    prompts, group = run.name.split("-")[1].split("x")
    assert config["profile"]["prompts_per_step"] == int(prompts)
    assert config["profile"]["group_size"] == int(group)
    assert config["command"].startswith("python -m helpers.record --profile cpu")
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert config["evaluated_on"] == "data/puzzles/cpu-validation.parquet"
    assert (regrade(frame) == frame["correct"]).all()
    looks = read_rows(run / "curve.jsonl")
    assert {row["n"] for row in looks} == {256}
    assert [row["step"] for row in looks] == sorted(row["step"] for row in looks)
    assert looks[-1]["seconds"] <= config["training_seconds"]
