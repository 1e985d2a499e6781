"""Many attempts at each puzzle: sampled whole, counted, recorded."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from helpers import profiles, runs
from helpers.models import load_model
from helpers.paths import DATA
from helpers.puzzles import canonical
from lab import attempts
from lab.mistakes import KINDS, kinds
from lab.report import comparable
from lab.statistics import sampling_variance


def test_attempts_are_counted_by_puzzle_whatever_the_order_of_its_numbers():
    text = "<think>x</think>\n<answer>{}</answer>"
    frame = pd.DataFrame({
        "nums": [[8, 6, 7], [7, 8, 6], [1, 2]], "target": [14, 14, 3], "tokens": [10, 20, 144],
        "completion": [text.format("(8 - 6) * 7 = 14"), text.format("8 + 6 = 14"), "<think>1 +"]})
    table = attempts.tally(frame, limit=144)
    assert table["nums"].tolist() == [[6, 7, 8], [1, 2]] and table["n"].tolist() == [2, 1]
    assert table["right"].tolist() == [1, 0] and table["tokens"].tolist() == [15, 144]
    assert table["number missing"].tolist() == [1, 0] and table["cut off"].tolist() == [0, 1]
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()
    assert kinds(frame, 144).tolist() == ["right", "number missing", "cut off"]


@pytest.fixture(scope="module")
def sampled():
    model, tokenizer = load_model(profiles.CPU)
    profile = replace(profiles.CPU, max_completion_length=40)
    jobs = attempts.plan("cpu", puzzles=4, samples=3, transfer_samples=2)
    return jobs, attempts.attempt(model, tokenizer, profile, jobs, "before", seed=5)


def test_the_plan_is_sampled_whole(sampled):
    jobs, table = sampled
    names = {(name, wording) for name, wording, *_ in jobs}
    assert {("held-out", "as trained"), ("four numbers", "as trained"),
            ("held-out", "no instructions")} <= names
    assert len(jobs) == len({(job[0], job[1], job[2]) for job in jobs})
    groups = table.groupby(["set", "wording", "temperature"], sort=False)
    assert [(len(rows), set(rows["n"])) for _, rows in groups] == [
        (len(job[4]), {job[3]}) for job in jobs]
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()


def test_runs_with_other_puzzles_or_columns_are_refused(sampled, tmp_path):
    _, table = sampled
    tables = {"a": table, "b": table, "fewer": table.iloc[:-1],
              "old": table.drop(columns="cut off")}
    for name, rows in tables.items():
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "attempts.parquet", index=False)
    folders = {name: tmp_path / name for name in tables}
    both = attempts.load_attempts([folders["a"], folders["b"]])
    assert both["run"].tolist() == ["a"] * len(table) + ["b"] * len(table)
    for name, words in (("fewer", "other puzzles"), ("old", "no column cut off")):
        with pytest.raises(ValueError, match=words):
            attempts.load_attempts([folders["a"], folders[name]])
    with pytest.raises(ValueError, match="no attempts.parquet"):
        attempts.load_attempts([tmp_path])
    with pytest.raises(ValueError, match="no run was given"):
        attempts.load_attempts([])


# ---- the recorded attempts


RECORDED = sorted(attempts.ATTEMPTS.glob("*-seed*"))
each_recorded = pytest.mark.parametrize("run", RECORDED, ids=lambda run: run.name)


def test_there_are_recorded_attempts_of_two_trainings_or_more():
    assert len(RECORDED) >= 2
    attempts.load_attempts(RECORDED)  # refuses runs that were not asked the same


def test_the_runs_of_the_attempts_are_whole_and_stand_beside_the_reference_runs():
    """Every step, every test puzzle, every grade as it is given today."""
    beside = [*runs.find_runs("cpu"), *RECORDED, *(DATA / "gallery").glob("*-seed*")]
    found, left_out = comparable(beside)
    assert not left_out and len(found) == len(beside)


@each_recorded
def test_attempts_were_trained_with_the_profiles_settings(run):
    config = json.loads((run / "config.json").read_text())
    name = config["profile"]["name"]
    assert run.name == f"{name}-seed{config['seed']}"
    assert set(profiles.differences(profiles.PROFILES[name], config["profile"])) <= {"measured_on"}
    assert {file.name for file in run.iterdir()} == {
        "config.json", "metrics.jsonl", "evaluation.parquet", "attempts.parquet"}


@each_recorded
def test_recorded_attempts_are_what_the_plan_asks(run):
    """Every puzzle, prompt and temperature once a stage, and every completion has one kind."""
    config = json.loads((run / "config.json").read_text())
    words = config["attempts"]["command"].split()
    assert words[:2] == ["python", "-m"] and words[2] in ("helpers.attempts", "lab.attempts")
    assert not {"--puzzles", "--samples", "--transfer-samples"} & set(words)
    table = pd.read_parquet(run / "attempts.parquet")
    planned = [(name, wording, t, samples, *canonical(*row))
               for name, wording, t, samples, puzzles, _ in attempts.plan(
                   config["profile"]["puzzles"])
               for row in zip(puzzles["nums"], puzzles["target"], strict=True)]
    assert set(table["stage"]) == {"before", "after"}
    for _, rows in table.groupby("stage"):
        asked = [(*row[:4], *canonical(*row[4:])) for row in rows[
            ["set", "wording", "temperature", "n", "nums", "target"]].itertuples(index=False)]
        assert sorted(asked) == sorted(planned)
    assert (table[list(KINDS)] >= 0).all(axis=None)
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()
    assert table["n"].sum() == config["attempts"]["completions"]
    limit = config["profile"]["max_completion_length"]
    assert table["tokens"].between(1, limit).all()
    assert (table["tokens"] * table["n"] >= table["cut off"] * limit - 1e-6).all()


@each_recorded
def test_recorded_attempts_agree_with_the_runs_own_evaluation(run):
    """One attempt a puzzle, graded from its text, and 64 are draws from the same chances."""
    table, frame = (pd.read_parquet(run / f"{name}.parquet") for name in ("attempts", "evaluation"))
    table = table[(table["set"] == attempts.HELD_OUT) & (table["wording"] == attempts.TRAINED)]
    for (stage, temperature), rows in table.groupby(["stage", "temperature"]):
        once = frame[(frame["stage"] == stage) & (frame["temperature"] == temperature)]
        assert len(once) == len(rows)
        variance = sampling_variance(rows) * (1 + rows["n"].iloc[0])
        difference = once["correct"].mean() - rows["right"].sum() / rows["n"].sum()
        assert abs(difference) < 3.5 * variance**0.5, (stage, temperature)


def test_before_training_the_recorded_attempts_come_from_one_model():
    """The start is shared: puzzle by puzzle, the rates before differ by no more than chance."""
    table = attempts.load_attempts(RECORDED)
    table = table[(table["stage"] == "before") & (table["n"] > 8)]
    for _, rows in table.groupby("temperature"):
        hits = rows.pivot(index=["nums", "target"], columns="run", values="right").to_numpy()
        n = rows["n"].iloc[0]
        mean = hits.mean(axis=1, keepdims=True)
        used = (mean[:, 0] > 2) & (mean[:, 0] < n - 2)  # elsewhere chi-squared is a poor fit
        hits, mean = hits[used], mean[used]
        squares = ((hits - mean) ** 2 / (mean * (1 - mean / n))).sum()
        freedom = len(hits) * (hits.shape[1] - 1)
        assert 1e-4 < stats.chi2.sf(squares, freedom) < 1 - 1e-4
