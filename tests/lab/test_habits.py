"""Habits of thought, counted by rules."""


import pandas as pd
import pytest

from helpers.paths import DATA
from lab.habits import HABITS, count_habits, habits, search_quality, tries

ENGLISH = {
    "8 + 6 = 14, but 7 is left, so that is too much.\nLet's try 8 * 7 = 56.":
        {"verification", "backtracking"},
    "I need to make 2 first, because 2 * 7 = 14.": {"sub-goals"},
    "Working backwards: 14 / 7 = 2, so I want 2 from 8 and 6.": {"backward chaining", "sub-goals"},
    "8 - 6 = 2, 2 * 7 = 14. That works.": {"verification"},
    "8 + 6 = 14 no\n6 + 8 = 14 no": {"verification"},  # the same try, written the other way
    "The numbers are 8, 6 and 7.": set(),
}


@pytest.mark.parametrize(("thought", "wanted"), ENGLISH.items())
def test_the_rules_read_words_too(thought, wanted):
    found = habits(f"<think>{thought}</think>\n<answer>8 = 14</answer>", NUMS, TARGET)
    assert {name for name, there in found.items() if there} == wanted


def test_the_answer_is_no_part_of_the_thought():
    assert tries("<think>8 + 6 = 14 no</think>\n<answer>8 * 7 = 56</answer>")[-1].steps == (
        (6, "+", 8, 14),)
    assert not any(habits("8 + 6 no yes", NUMS, TARGET).values())


NUMS, TARGET = [8, 6, 7], 14


def test_the_search_is_counted_step_by_step():
    text = ("<think>8 - 6 = 2, 2 * 7 = 15 no\n8 * 6 = 48, 48 - 8 = 40 yes\n"
            "7 - 6 = 1, 1 + 8 = 9 no\n8 - 6 = 2, 7 * 2 = 15 no</think>\n<answer>")
    assert search_quality(text, NUMS, TARGET) == {
        "steps": 8, "true": 6, "verdicts": 4, "sound": 3, "tries": 4, "different": 3, "legal": 3}


def test_the_labelled_sample_is_what_the_rules_are_checked_on():
    sample = pd.read_parquet(DATA / "habits.parquet")
    assert (sample["picked"] == "at random").sum() == 100
    assert set(HABITS) <= set(sample) and set(sample["stage"]) == {"before", "after"}
    recorded = pd.concat([pd.read_parquet(DATA / "reference_runs" / run / "evaluation.parquet")
                          for run in sorted(set(sample["run"]))])
    assert set(sample["completion"]) <= set(recorded["completion"])  # real outputs
    found = count_habits(sample)
    for name in ("verification", "backtracking"):
        assert found[name].tolist() == sample[name].tolist(), name
    # what the rule takes for backward chaining are slips: the sample says so
    assert found["backward chaining"].any() and not sample["backward chaining"].any()
