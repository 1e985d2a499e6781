"""Every wrong completion has one kind."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.rewards import is_correct
from lab.mistakes import FORMED, KINDS, kind, kinds

NUMS, TARGET = [8, 6, 7], 14
ANSWERS = {
    "(8 - 6) * 7 = 14": "right",
    "8 + 6 * 7 = 50": "wrong value",
    "8 + 6 * 7 = 14": "false equation",
    "8 + 6 = 14": "number missing",
    "7 + 7 = 14": "number twice",  # 8 and 6 are missing, too: the first in the list is named
    "8 * 7 - 6 * 7 = 14": "number twice",
    "8 + 6 + 0 * 7 = 14": "other number",
    "2 * 7 = 14": "other number",
    "14": "malformed",
    "8 / (7 - 7) * 6 = 14": "malformed",
    "8 + 6 = 14 = 14": "malformed",
    "8 +* 6 = 14": "malformed",
    "": "malformed",
    "__import__('os') = 14": "malformed",
}


@pytest.mark.parametrize(("answer", "wanted"), ANSWERS.items())
def test_every_fault_has_its_kind(answer, wanted):
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    assert kind(text, NUMS, TARGET, 20, 144) == wanted
    assert (wanted == "right") == is_correct(text, NUMS, TARGET)


def test_cut_off_is_told_from_malformed_by_the_length():
    text = "<think>8 + 6 = 14, 14"
    assert kind(text, NUMS, TARGET, 144, 144) == "cut off"
    assert kind(text, NUMS, TARGET, 143, 144) == kind(text, NUMS, TARGET) == "malformed"


@given(st.text(alphabet="0123456789+-*/(). =<>think/answer\n", max_size=80))
def test_any_text_has_one_kind(text):
    assert kind(text, NUMS, TARGET, 9, 9) in KINDS
    assert kind(f"<answer>{text}</answer>", NUMS, TARGET, 9, 9) in KINDS


def test_a_table_has_a_kind_a_row_in_the_order_of_the_kinds():
    frame = pd.DataFrame({
        "completion": [f"<answer>{answer}</answer>" for answer in ANSWERS] + ["8 + 6"],
        "nums": [np.array(NUMS)] * 14 + [[8.0, 6.0, 7.0]], "target": [*[14] * 14, 14],
        "tokens": [*[9] * 14, 144]}, index=range(3, 18))
    found = kinds(frame, 144)
    assert found.tolist() == [*ANSWERS.values(), "cut off"] and found.name == "kind"
    assert list(found.cat.categories) == list(KINDS) and found.index.equals(frame.index)
    assert kinds(frame)[17] == "malformed"
    assert set(FORMED) == set(KINDS) - {"cut off", "malformed"}


@pytest.mark.parametrize("target", [14.5, None, "14"])
def test_what_is_no_puzzle_is_refused_and_not_rounded(target):
    with pytest.raises((TypeError, ValueError), match=r"14\.5|None|'14'"):
        kind("<answer>(8 - 6) * 7 = 14</answer>", NUMS, target)
    frame = pd.DataFrame({"completion": ["8"], "nums": [NUMS], "target": [target], "tokens": 9})
    with pytest.raises((TypeError, ValueError)):
        kinds(frame)
