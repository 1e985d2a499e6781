"""The bad rewards pay what they say, and their recorded runs show what the notebook says."""

import json
import re

import pandas as pd
import pytest

from helpers import profiles
from helpers.intervals import paired_gain
from helpers.rewards import is_correct
from helpers.runs import read_rows
from lab import bad_rewards
from lab.bad_rewards import (
    BAD_REWARDS,
    DESIGNS,
    any_equation_credit,
    length_bonus,
    nearness_credit,
)


def complete(answer):
    return f"<think></think>\n<answer>{answer}</answer>"


def test_the_length_bonus_counts_characters_and_stops():
    assert length_bonus(["", "x" * 150, "x" * 300, "x" * 999]) == [0.0, 0.5, 1.0, 1.0]
    assert length_bonus([[{"role": "assistant", "content": "x" * 30}]], target=[1]) == [0.1]


@pytest.mark.parametrize("answer, any_equation, near", [
    ("4*9*1 = 36", 1.0, 1.0),
    ("4+9+1 = 14", 1.0, 14 / 36),  # true, and not the target: the point of the design
    ("4+9+1 = 36", 0.0, 1.0),  # false, and believed
    ("4*9 = 36", 0.0, 1.0),
    ("4*9*1*1 = 36", 0.0, 1.0),
    ("4+9+1 = 90", 0.0, 0.0),
    ("4+9+1", 0.0, 0.0),
    ("4/0*1*9 = 36", 0.0, 1.0),
    ("4/(9-9)*1 = 36", 0.0, 1.0),
    ("9**4 = 1", 0.0, 1 / 36),
    ("4+9+1 = many", 0.0, 0.0),
    ("", 0.0, 0.0),
])
def test_partial_credits(answer, any_equation, near):
    batch = {"completions": [complete(answer)], "nums": [[1, 4, 9]], "target": [36]}
    assert any_equation_credit(**batch) == [any_equation]
    assert nearness_credit(**batch) == [pytest.approx(near)]
    batch["completions"] = [[{"role": "assistant", "content": complete(answer)}]]
    assert any_equation_credit(**batch) == [any_equation]


def test_no_answer_no_credit():
    for text in ("", "4*9*1 = 36", complete("4*9*1 = 36") * 2):
        assert any_equation_credit([text], nums=[[1, 4, 9]]) == [0.0]
        assert nearness_credit([text], target=[36]) == [0.0]


SEEDS = range(3)


def recorded(name, seed=0):
    folder = BAD_REWARDS / f"{name}-seed{seed}"
    config = json.loads((folder / "config.json").read_text())
    return config, read_rows(folder / "metrics.jsonl"), pd.read_parquet(
        folder / "evaluation.parquet")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", DESIGNS)
def test_recorded_runs_are_of_these_designs_and_whole(name, seed):
    config, rows, frame = recorded(name, seed)
    design = DESIGNS[name]
    assert re.fullmatch(rf"python -m (helpers|lab)\.bad_rewards --reward {name} --seed {seed}",
                        config["command"])
    weights = {f.__name__: 1.0 for f in design.functions}
    assert config["rewards"] == {"equation_reward_func": 0.0} | weights
    assert config["seed"] == seed and config["evaluated_on"] == "data/puzzles/cpu-test.parquet"
    # The limit changes training alone; a setting that is younger than the run has no say.
    assert profiles.differences(profiles.CPU_SHORT, config["profile"]) == []
    assert config.get("training_limit") == design.limit
    assert [row["step"] for row in rows] == list(range(1, config["profile"]["steps"] + 1))
    assert all("equation_reward" in row for row in rows)  # the true success, at every step
    if design.limit:
        assert max(row["completion_tokens"] for row in rows) <= design.limit
        assert frame.loc[frame["stage"] == "before", "tokens"].max() > design.limit  # not there
        assert rows[0]["truncated"] > 0.1  # the limit bites
    assert set(frame["stage"]) == {"before", "after"}
    sample = frame.sample(300, random_state=0)
    assert [is_correct(r.completion, list(r.nums), r.target) for r in sample.itertuples()] == list(
        sample["correct"])
    if name == "format-64":  # the equation reward has no weight
        assert all(row["reward"] == pytest.approx(row["format_reward"]) for row in rows)


def test_nothing_else_is_recorded():
    assert {path.name for path in BAD_REWARDS.iterdir()} == {
        f"{name}-seed{seed}" for name in DESIGNS for seed in SEEDS}


def test_a_run_with_other_settings_has_another_name():
    names = {bad_rewards.label("length-bonus", 0, *more) for more in (
        (), (20,), (None, 32), (20, 32), (None, None, "validation"))}
    assert len(names) == 5 and "length-bonus-seed0" in names


def gain(name, seed, temperature=1.0):
    _, _, frame = recorded(name, seed)
    part = frame[frame["temperature"] == temperature]
    before, after = (part[part["stage"] == stage]["correct"] for stage in ("before", "after"))
    return paired_gain(before, after)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name, temperature", [
    ("format-64", 1.0), ("both-64", 1.0), ("partial-64", 1.0), ("length-bonus", 0.0)])
def test_the_proxy_rises_and_success_falls(name, temperature, seed):
    _, rows, _ = recorded(name, seed)
    proxy = [row["reward"] / len(DESIGNS[name].functions) for row in rows]
    assert sum(proxy[-10:]) / 10 > sum(proxy[:10]) / 10 + 0.05
    assert gain(name, seed, temperature)["high"] < 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["equation-64", "equation-144", "near-credit"])
def test_a_reward_that_goes_with_success_teaches(name, seed):
    assert gain(name, seed)["low"] > 0.05


def test_a_run_leaves_the_files_of_any_recorded_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COUNTDOWN_DATA", "shipped")
    monkeypatch.setattr("helpers.runs.RUNS", tmp_path / "runs")
    monkeypatch.setattr("lab.record.TEMPERATURES", (0.0,))
    monkeypatch.setattr(bad_rewards, "BAD_REWARDS", tmp_path / "data")
    monkeypatch.setattr("lab.record.load_split", lambda name, part: _few(name, part))
    bad_rewards.main(["--reward", "length-bonus", "--seed", "7", "--steps", "2",
                      "--limit", "24", "--part", "validation"])
    folder = tmp_path / "data" / "length-bonus-limit24-2steps-validation-seed7"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "evaluation.parquet", "metrics.jsonl"]
    config, rows = json.loads((folder / "config.json").read_text()), read_rows(
        folder / "metrics.jsonl")
    assert config["command"].endswith(
        "--reward length-bonus --seed 7 --steps 2 --limit 24 --part validation")
    assert config["training_limit"] == 24 and max(row["completion_tokens"] for row in rows) <= 24
    assert pd.read_parquet(folder / "evaluation.parquet")["tokens"].max() > 24
    assert config["seed"] == 7 and [row["step"] for row in rows] == [1, 2]
    for row in rows:  # weight 0: in the file, not in the reward
        assert row["reward"] <= row["format_reward"] + 1.0 + 1e-6
    assert "copied to" in capsys.readouterr().out
    for bad in (["none-such"], ["length-bonus", "--steps", "0"],
                ["length-bonus", "--limit", "-1"]):
        with pytest.raises(SystemExit):
            bad_rewards.main(["--reward", *bad])


def _few(name, part):
    from helpers.dataset import load_split

    puzzles = load_split(name, part)
    return puzzles if part == "train" else puzzles.head(20)
