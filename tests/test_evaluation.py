"""Sampling, grading, counting, the figures, and the runs that the repository holds."""

import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import profiles, runs
from helpers.dataset import load_split
from helpers.evaluation import evaluate, sample_completions, success
from helpers.models import load_model
from helpers.paths import DATA
from helpers.plots import training_curves
from helpers.puzzles import canonical
from helpers.rewards import is_correct
from lab.figures import success_bars
from lab.report import read_run, regrade

COLUMNS = ["stage", "temperature", "sample", "nums", "target", "completion", "tokens", "correct"]
REFERENCE = sorted(runs.REFERENCE_RUNS.glob("*-seed*"))
each_reference = pytest.mark.parametrize("run", REFERENCE or [pytest.param(
    None, marks=pytest.mark.skip(reason="no recorded run under data/reference_runs"))],
    ids=lambda run: run.name if run else "none")

# Correct of n, and the 95 % Wilson interval: (k + z2/2 -+ z sqrt(k (n - k) / n + z2/4)) / (n + z2)
# with z = 1.959964, z2 = 3.841459, worked out by hand.
WILSON = [(0, 10, 0.0, 0.277533), (8, 10, 0.490162, 0.943318), (10, 10, 0.722467, 1.0),
          (50, 100, 0.403832, 0.596168), (1, 1, 0.206549, 1.0)]


def graded(k, n, **columns):
    return pd.DataFrame({"correct": [True] * k + [False] * (n - k), **columns})


@pytest.mark.parametrize(("k", "n", "low", "high"), WILSON)
def test_success_gives_the_wilson_interval(k, n, low, high):
    row = success(graded(k, n, stage="after", temperature=1.0)).loc[("after", 1.0)]
    assert (row["n"], row["correct"], row["rate"]) == (n, k, k / n)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-6)


def test_success_counts_each_group_by_itself():
    parts = [graded(3, 4, stage="before", temperature=1.0), graded(1, 2, stage="before",
             temperature=0.0), graded(5, 5, stage="after", temperature=1.0)]
    table = success(pd.concat(parts))
    assert table.index.tolist() == [("before", 1.0), ("before", 0.0), ("after", 1.0)]
    assert table["correct"].tolist() == [3, 1, 5] and table["n"].tolist() == [4, 2, 5]
    assert success(pd.concat(parts), by=["stage"]).loc["before", "rate"] == pytest.approx(4 / 6)


def test_regrade_reads_the_text_and_not_the_column():
    texts = ["<think>x</think>\n<answer>(8 - 6) * 7 = 14</answer>",
             "<think>x</think>\n<answer>8 + 6 = 14</answer>"]
    frame = pd.DataFrame({"nums": [[8, 6, 7]] * 2, "target": 14, "completion": texts,
                          "correct": [False, True]}, index=[7, 3])
    assert regrade(frame).to_dict() == {7: True, 3: False}


@pytest.fixture(scope="module")
def cold_start():
    return load_model(profiles.CPU)


@pytest.fixture(scope="module")
def held_out():
    return load_split("cpu", "test").sample(6, random_state=0)


# Short completions: what is tested does not depend on how long they get.
SHORT = replace(profiles.CPU, max_completion_length=30)


def sample(cold_start, puzzles, temperature, profile=SHORT, **options):
    return sample_completions(*cold_start, profile, puzzles, temperature, **options)


def test_every_puzzle_gets_one_graded_completion(cold_start, held_out):
    model, _ = cold_start
    model.train()
    frame = sample(cold_start, held_out, 1.0, profiles.CPU, batch=4)
    assert model.training  # as it was
    assert list(frame) == COLUMNS[1:]
    assert [canonical(*row) for row in zip(frame["nums"], frame["target"], strict=True)] == [
        canonical(*row) for row in zip(held_out["nums"], held_out["target"], strict=True)]
    assert set(frame["temperature"]) == {1.0} and set(frame["sample"]) == {0}
    assert frame["tokens"].between(1, profiles.CPU.max_completion_length).all()
    assert frame["completion"].str.startswith("<think>").all()
    assert not frame["completion"].str.contains("<|", regex=False).any()  # no special token
    by_hand = [is_correct(r.completion, r.nums, r.target) for r in frame.itertuples()]
    assert frame["correct"].tolist() == by_hand


def test_a_completion_is_cut_off_at_the_profiles_length(cold_start, held_out):
    frame = sample(cold_start, held_out, 1.0, replace(SHORT, max_completion_length=3))
    assert set(frame["tokens"]) == {3} and not frame["correct"].any()


def test_greedy_sampling_draws_nothing(cold_start, held_out):
    twice = [sample(cold_start, held_out, 0.0) for _ in range(2)]
    pd.testing.assert_frame_equal(*twice)
    # another seed shows the numbers in another order, so the prompts have to be given again
    again = sample(cold_start, twice[0], 0.0, seed=1)
    same = [a == b for a, b in zip(again["nums"], twice[0]["nums"], strict=True)]
    assert any(same) and not all(same)
    assert again["completion"][same].tolist() == twice[0]["completion"][same].tolist()


def test_a_seed_repeats_its_completions_and_another_one_does_not(cold_start, held_out):
    first, again, other = (sample(cold_start, held_out, 1.0, seed=s) for s in (5, 5, 6))
    pd.testing.assert_frame_equal(first, again)
    assert set(other["sample"]) == {6}
    assert (first["completion"] != other["completion"]).mean() > 0.5


def test_evaluate_names_the_stage_and_pairs_the_prompts(cold_start, held_out):
    frame = evaluate(*cold_start, SHORT, held_out, "before", temperatures=(1.0, 0.0), seed=2)
    assert list(frame) == COLUMNS and set(frame["stage"]) == {"before"}
    at_one, greedy = (frame[frame["temperature"] == t] for t in (1.0, 0.0))
    assert at_one["nums"].tolist() == greedy["nums"].tolist()
    assert at_one["completion"].tolist() != greedy["completion"].tolist()


def test_training_curves_draw_the_running_mean():
    rows = [{"step": s, "reward": float(r)} for s, r in ((1, 0), (2, 1), (3, 5))]
    figure = training_curves({"a": rows, "b": rows[:2]}, {"reward": "r", "loss": "l"}, window=2)
    left, right = figure.axes
    strong = next(line for line in left.lines if line.get_label() == "a")
    assert strong.get_xdata().tolist() == [1, 2, 3]
    assert strong.get_ydata().tolist() == [0.0, 0.5, 3.0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"]
    assert not right.lines  # a metric that no run has
    assert training_curves({"a": rows}, {"reward": "r"}).axes[0].get_legend() is None
    plt.close("all")


def test_success_bars_have_the_rates_and_their_intervals():
    frames = [graded(k, 100, stage=stage, temperature=t) for stage, t, k in
              (("before", 1.0, 30), ("before", 0.0, 40), ("after", 1.0, 50), ("after", 0.0, 45))]
    table = success(pd.concat(frames))
    figure, axis = plt.subplots()
    success_bars(table, axis)
    before, after = [c for c in axis.containers if hasattr(c, "patches")]
    assert [bar.get_height() for bar in before] == pytest.approx([30, 40])
    assert [bar.get_height() for bar in after] == pytest.approx([50, 45])
    whisker = after.errorbar.lines[2][0].get_segments()[0]
    assert whisker[:, 1] == pytest.approx([40.3832, 59.6168], abs=1e-3)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["T = 1", "greedy"]
    plt.close(figure)


def test_success_bars_take_a_rate_of_one():
    """Of 7 right of 7 the interval ends at 1 - 1e-16: a whisker of negative length."""
    figure, axis = plt.subplots()
    success_bars(success(pd.concat([graded(0, 7, stage="before", temperature=1.0),
                                    graded(7, 7, stage="after", temperature=1.0)])), axis)
    plt.close(figure)


@each_reference
def test_a_reference_run_grades_today_as_it_did_then(run):
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert regrade(frame).tolist() == frame["correct"].tolist()


@each_reference
def test_a_reference_run_evaluates_every_test_puzzle_each_time(run):
    config = json.loads((run / "config.json").read_text())
    name = config["profile"]["puzzles"]
    assert config["evaluated_on"] == f"data/puzzles/{name}-test.parquet"
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert list(frame) == COLUMNS
    assert set(frame["sample"]) == {config["seed"]}
    test = load_split(name, "test")
    asked = sorted(canonical(*row) for row in zip(test["nums"], test["target"], strict=True))
    groups = dict(list(frame.groupby(["stage", "temperature"])))
    assert set(groups) == {(s, t) for s in ("before", "after") for t in (1.0, 0.6, 0.0)}
    for rows in groups.values():
        forms = [canonical(*row) for row in zip(rows["nums"], rows["target"], strict=True)]
        assert sorted(forms) == asked
    assert frame["tokens"].between(1, config["profile"]["max_completion_length"]).all()


@each_reference
def test_a_reference_run_says_what_it_depends_on(run):
    files = {"config.json", "metrics.jsonl", "evaluation.parquet"}
    config = json.loads((run / "config.json").read_text())
    watched = {"curve.jsonl"} if " --watch " in config["command"] else set()
    assert {file.name for file in run.iterdir()} == files | watched
    name = config["profile"]["name"]
    assert run.name == f"{name}-seed{config['seed']}"
    # a reader's own run is set beside it, so it must be what the profile does today
    assert set(profiles.differences(profiles.PROFILES[name], config["profile"])) <= {"measured_on"}
    assert {"python", "torch", "transformers", "trl"} <= set(config["versions"])
    assert config["hardware"] and pd.Timestamp(config["date"])
    assert re.match(r"python -m (helpers|lab)\.record ", config["command"])
    assert config["wall_seconds"] >= config["training_seconds"] > 0


@each_reference
def test_a_reference_run_has_every_step_once(run):
    config, rows, _ = read_run(run)  # refuses a gap, and an end that no limit of time explains
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert 0.9 * config["profile"]["steps"] <= len(rows) <= config["profile"]["steps"]
    wanted = {"reward", "equation_reward", "format_reward", "completion_tokens"}
    if not config["profile"]["uses_vllm"]:  # Unsloth's trainer logs no entropy
        wanted.add("entropy")
    assert all(wanted <= set(row) for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_the_reference_runs_share_their_settings():
    """The seeds of one profile are averaged, so nothing but the seed may differ."""
    found = {}
    for run in REFERENCE:
        config = json.loads((run / "config.json").read_text())
        found.setdefault(config["profile"]["name"], []).append(config["profile"])
    for name, settings in found.items():
        assert all(s == settings[0] for s in settings), name
    if not REFERENCE:
        pytest.skip(f"no recorded run under {DATA.name}/reference_runs")
