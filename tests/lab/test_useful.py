"""Tries that count: legal, right, and new."""

import json
import sys

import pandas as pd
import pytest

from helpers.paths import DATA, ROOT
from lab.habits import legal, tries
from lab.useful import count, main, right, tries_reward, useful

NUMS = [8, 6, 7]
GOOD = "8 - 6 = 2, 2 * 7 = 14 no"
TELLING = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition(
    "### Why greedy decoding gains so little")[2].partition("\n### ")[0]


@pytest.mark.parametrize("line, is_legal, is_right", [
    (GOOD, True, True),
    ("8 - 6 = 3, 3 * 7 = 21 no", True, False),  # calculates wrongly
    ("8 - 6 = 2, 2 * 8 = 16 no", False, True),  # 8 twice
    ("8 - 6 = 2 no", False, True),  # 7 is missing
    ("7 - 6 = 1, 8 / 1 = 8 no", True, True),
    ("8 / 6 = 1, 1 * 7 = 7 no", True, False),  # does not divide
    ("6 - 6 = 0, 8 / 0 = 0 no", False, False),
])
def test_one_try(line, is_legal, is_right):
    text = f"<think>{line}</think>\n<answer>8 = 8</answer>"
    (steps,) = {one.steps for one in tries(text)}
    assert (legal(steps, NUMS), right(steps)) == (is_legal, is_right)
    assert useful(text, NUMS) == ({steps} if is_legal and is_right else set())


def test_what_was_written_before_is_not_useful_again():
    swapped = "8 - 6 = 2, 7 * 2 = 14 no"
    assert len(useful(f"<think>{GOOD}\n{GOOD}\n{swapped}\n8 + 6 = 14, 14 - 7 = 7 no", NUMS)) == 2


def test_the_reward_pays_for_useful_tries_only_where_it_is_not_solved():
    thought = f"<think>{GOOD}\n8 + 6 = 14, 14 - 7 = 7 no\n{GOOD}"
    texts = [f"{thought}</think>\n<answer>(8 - 6) * 7 = 14</answer>",  # solves
             f"{thought}</think>\n<answer>8 + 6 - 7 = 7</answer>",  # does not
             thought]  # cut off
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, chats):
        paid = tries_reward(4)(None, completions, target=[14] * 3, nums=[NUMS] * 3)
        assert paid == [1.0, 0.5, 0.0]
    assert tries_reward(1)(None, texts, target=[14] * 3, nums=[NUMS] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("profile, limit", [("smollm2", 640), ("cpu", 144)])
def test_the_documents_counts_are_those_of_the_records(profile, limit):
    runs = [DATA / "reference_runs" / f"{profile}-seed{seed}" for seed in range(3)]
    mean = sum(count(pd.read_parquet(run / "evaluation.parquet"), limit) for run in runs) / 3
    for numbers in (3, 4) if profile == "smollm2" else (3,):
        for temperature in (1.0, 0.0):
            pair = [mean.loc[stage, temperature, numbers] for stage in ("before", "after")]
            told = "| " + " | ".join(
                ", ".join(f"{scale * row[column]:.1f}" for row in pair) + unit
                for column, scale, unit in (
                    ("solved", 100, " %"), ("at once", 100, " %"), ("tries", 1, ""),
                    ("right", 100, " %"), ("useful", 1, ""))) + " |"
            assert told in TELLING, told


@pytest.mark.parametrize("name", ["short", "tries", "short16"])
def test_the_last_screening_runs_kept_what_was_counted(name):
    run = DATA / "sweeps" / f"smollm2-screen-{name}-seed0"
    frame = pd.read_parquet(run / "evaluation.parquet")
    assert (frame["useful"] <= frame["tries"]).all() and len(frame) == 4 * 1002
    assert (frame["tries"] > 0)[frame["correct"]].all()
    assert "--short-first 256" in json.loads((run / "config.json").read_text())["command"]


@pytest.mark.parametrize("name, message", [
    ("smollm2-screen-short-seed0", "kept no completions"), ("no-such-run", "no-such-run")])
def test_a_run_that_cannot_be_counted_is_named(name, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["useful", name])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
