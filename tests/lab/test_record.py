"""What a recorded run leaves besides its evaluation."""

import json
import re
import sys
from dataclasses import replace

import pandas as pd
import pytest

from helpers import profiles
from helpers.dataset import load_split
from helpers.intervals import paired_gain
from helpers.paths import DATA
from helpers.runs import append_row, find_runs, open_run, read_config, read_rows
from lab import record
from lab.record import by_difficulty, curve, main
from lab.report import regrade
from lab.saved import PUZZLES, WAYS

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


def test_several_processes_are_sent_elsewhere(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["record", "--profile", "cpu"])
    with pytest.raises(SystemExit):
        main()
    assert "for several say -m lab.several_gpus" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (["--set", "training_length=145"], "give 1 to 144 tokens"),
    (["--set", "training_length=0"], "give 1 to 144 tokens"),
    (["--tries", "1.5", "6"], "WEIGHT from 0 to 1"), (["--tries", "0.3", "0"], "MOST from 1"),
    (["--tries", "0.3", "6", "--overlong", "20"], "without --overlong")])
def test_wrong_options_are_refused_before_anything_is_loaded(options, message, monkeypatch, capsys):
    monkeypatch.setattr("lab.record.record", lambda *given, **more: pytest.fail("it began"))
    monkeypatch.setattr(sys, "argv", ["record", "--profile", "cpu", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


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
    assert re.match(r"python -m (helpers|lab)\.record --profile cpu", config["command"])
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert config["evaluated_on"] == "data/puzzles/cpu-validation.parquet"
    assert (regrade(frame) == frame["correct"]).all()
    looks = read_rows(run / "curve.jsonl")
    assert {row["n"] for row in looks} == {256}
    assert [row["step"] for row in looks] == sorted(row["step"] for row in looks)
    assert looks[-1]["seconds"] <= config["training_seconds"]


SCREENED = {  # one seed each, validation puzzles: what differs from the profile of that day
    "control": {}, "unmasked": {"mask_truncated": False},
    "format": {"mask_truncated": False, "format_weight": 0.1},
    "rank8": {"mask_truncated": False, "format_weight": 0.1, "lora_rank": 8, "learning_rate": 4e-4}}


@pytest.mark.parametrize("name", SCREENED)
def test_screening_runs_differ_in_nothing_but_that(name):
    folders = {key: DATA / "sweeps" / f"smollm2-screen-{key}-seed0" for key in SCREENED}
    control, config = (json.loads((folders[key] / "config.json").read_text())
                       for key in ("control", name))
    found = {key: value for key, value in config["profile"].items()
             if value != control["profile"][key]}
    assert found == SCREENED[name] and config["seed"] == control["seed"] == 0
    assert config["cold_start"] == control["cold_start"]
    assert len(read_rows(folders[name] / "metrics.jsonl")) == config["profile"]["steps"] == 65
    frame = pd.read_parquet(folders[name] / "evaluation.parquet")
    assert config["evaluated_on"] == "data/puzzles/3to4-validation.parquet"
    assert "completion" not in frame and set(frame["temperature"]) == {1.0, 0.0}


@pytest.mark.parametrize(("name", "changes"), [
    ("unmasked-100", {"steps": 100}), ("unmasked-lr4e-4", {"learning_rate": 4e-4}),
    ("unmasked-overlong", {})])
def test_later_screening_runs_say_what_they_trained_with(name, changes):
    run = DATA / "sweeps" / f"smollm2-screen-{name}-seed0"
    config = json.loads((run / "config.json").read_text())
    different = set(profiles.differences(profiles.SMOLLM2, config["profile"]))
    assert different == {"mask_truncated", *changes} and not config["profile"]["mask_truncated"]
    training = config["training"]
    assert training["learning_rate"] == changes.get("learning_rate", 2e-4)
    assert ("overlong_punishment" in training["reward_funcs"]) == (name == "unmasked-overlong")
    assert training["lora"]["lora_alpha"] == 64 and not training["mask_truncated_completions"]
    assert len(read_rows(run / "metrics.jsonl")) == changes.get("steps", 65)
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert "completion" not in frame and set(frame["temperature"]) == {1.0, 0.0}


@pytest.mark.parametrize(("name", "changes", "config", "steps"), [
    ("soft", {"mask_truncated", "steps"}, {"scale_rewards": "batch"}, 86),
    ("cool", {"mask_truncated", "steps", "temperature"}, {"temperature": 0.7}, 88),
    ("easyfirst", {"mask_truncated", "steps"}, {}, 92),
    ("8x16", {"mask_truncated", "steps", "prompts_per_step"}, {}, 135),
    ("merged", {"mask_truncated", "steps", "quantisation"}, {}, 96),
    ("short", {"mask_truncated", "steps", "save_every"}, {}, 113),
    ("tries", {"mask_truncated", "steps", "save_every"}, {"scale_rewards": "batch"}, 111),
    ("short16", {"mask_truncated", "steps", "save_every", "quantisation"}, {}, 123)])
def test_the_last_screening_runs_keep_counts_by_puzzle(name, changes, config, steps):
    run = DATA / "sweeps" / f"smollm2-screen-{name}-seed0"
    saved = json.loads((run / "config.json").read_text())
    assert set(profiles.differences(profiles.SMOLLM2, saved["profile"])) == changes
    assert config.items() <= saved["training"].items()
    assert ("overlong_punishment" in saved["training"]["reward_funcs"]) == (name == "soft")
    assert ("useful_tries" in saved["training"]["reward_funcs"]) == (name == "tries")
    rows, frame = read_rows(run / "metrics.jsonl"), pd.read_parquet(run / "evaluation.parquet")
    assert len(rows) == steps and rows[-1]["seconds"] < 15 * 60
    assert frame.groupby(["stage", "temperature"]).size().tolist() == [1002] * 4
    assert "completion" not in frame and frame["tokens"].between(1, 640).all()


def test_a_curriculum_goes_from_easy_to_hard():
    puzzles = load_split("3to4", "train")
    drawn = by_difficulty(puzzles, 400, seed=1)
    assert len(drawn) == 400 and drawn.index.is_unique
    share = drawn["n_solutions"] / drawn["nums"].map(len).map({3: 192, 4: 7680})
    assert share.is_monotonic_decreasing and share.iloc[0] > share.iloc[-1]
    assert puzzles.loc[drawn.index, "target"].tolist() == drawn["target"].tolist()


SMOLLM2 = find_runs("smollm2")
BY_NOTEBOOKS = DATA / "reference_runs" / "smollm2-notebooks"  # 04, then 05
LEAN = DATA / "reference_runs" / "smollm2-notebooks-lean"  # the same, as they are now
WATCHED = DATA / "reference_runs" / "smollm2-seed2"  # the one with a curve
ONE_PROMPT, BOTH = (DATA / "sweeps" / f"smollm2-{name}-seed2" for name in ("1x32", "both-rewards"))


def answers_at_one(run, stage):
    """A run's test answers at temperature 1, in the order in which the puzzles were asked."""
    frame = pd.read_parquet(run / "evaluation.parquet").query("temperature == 1")
    assert (regrade(frame) == frame["correct"]).all()
    return frame[frame["stage"] == stage].reset_index()


def test_three_seeds_of_smollm2_are_recorded():
    assert len(SMOLLM2) >= 3
    assert sum(file.stat().st_size for run in SMOLLM2 for file in run.iterdir()) < 8e6


@pytest.mark.parametrize("run", [*SMOLLM2, BY_NOTEBOOKS, LEAN], ids=lambda run: run.name)
def test_smollm2_gains_25_points_in_15_minutes_of_grpo(run):
    before, after = (answers_at_one(run, stage) for stage in ("before", "after"))
    clusters = before["nums"].map(sorted).map(tuple)
    gain = paired_gain(before["correct"], after["correct"], clusters)
    assert gain["n"] >= 1000 and gain["gain"] >= 0.25 and gain["p"] < 1e-3 and gain["low"] > 0.2
    assert read_rows(run / "metrics.jsonl")[-1]["seconds"] <= 15 * 60


@pytest.mark.parametrize("ours", [WATCHED, BOTH], ids=lambda run: run.name)
def test_smollm2_is_ahead_of_one_prompt_a_step(ours):
    theirs = json.loads((ONE_PROMPT / "config.json").read_text())
    assert set(profiles.differences(profiles.SMOLLM2, theirs["profile"])) == {
        "prompts_per_step", "group_size", "lora_rank", "learning_rate", "steps"}
    one, many = (answers_at_one(run, "after") for run in (ONE_PROMPT, ours))
    clusters = many["nums"].map(sorted).map(tuple)
    assert paired_gain(one["correct"], many["correct"], clusters)["low"] > 0
    shorter = theirs["training_seconds"]  # at equal minutes, on the puzzles watched in training
    at_equal = [row for row in read_rows(ours / "curve.jsonl") if row["seconds"] <= shorter][-1]
    last = read_rows(ONE_PROMPT / "curve.jsonl")[-1]
    assert at_equal["right"] / at_equal["n"] > last["right"] / last["n"]


def test_the_run_with_both_rewards_differs_in_nothing_else():
    config = json.loads((BOTH / "config.json").read_text())
    assert profiles.differences(profiles.SMOLLM2, config["profile"]) == ["format_weight"]


def test_the_notebooks_run_is_of_the_profile_and_its_saved_model_was_compared():
    config = json.loads((BY_NOTEBOOKS / "config.json").read_text())
    assert profiles.differences(profiles.SMOLLM2, config["profile"]) == []
    assert config["cold_start"]["settings"] == profiles.settings(profiles.SMOLLM2)["cold_start"]
    rows = json.loads((BY_NOTEBOOKS / "saved_answers.json").read_text())
    assert [row["way"] for row in rows] == list(WAYS.values())
    assert rows[0]["different"] == 0 and {row["puzzles"] for row in rows} == {PUZZLES}


def test_a_shorter_training_length_is_of_training_alone(tmp_path, monkeypatch):
    profile = replace(profiles.CPU_SHORT, steps=1, save_every=1, prompts_per_step=2, group_size=4,
                      micro_batch=8, training_length=6)
    folder = tmp_path / "run"
    monkeypatch.setattr(record, "open_run", lambda *given: open_run(profile, folder=folder))
    monkeypatch.setattr(record, "load_split", lambda *given: load_split("cpu", given[1]).head(4))
    run = record.record(profile, 0, temperatures=(1.0,))
    assert [row["completion_tokens"] for row in read_rows(run / "metrics.jsonl")] == [6.0]
    assert read_config(run)["training"]["max_completion_length"] == 6
    assert pd.read_parquet(run / "evaluation.parquet")["tokens"].max() > 6
