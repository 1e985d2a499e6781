"""What is wrong with a completion: one kind each, so that the kinds add up to all completions."""

from collections import Counter
from fractions import Fraction

import pandas as pd

from helpers.arithmetic import as_puzzle, evaluate, written_numbers
from helpers.prompts import parse_completion
from helpers.rewards import RIGHT_SIDE, is_correct, near

KINDS = {
    "right": "the equation reward pays",
    "wrong value": "uses every number once and holds, but does not give the target",
    "false equation": "uses every number once, but its two sides differ",
    "number missing": "a given number is not used, or not as often as it is given",
    "number twice": "a given number is used more often than it is given",
    "other number": "a number that is not given",
    "cut off": "the longest completion allowed, and no answer was closed",
    "malformed": "not exactly one answer that holds one equation of numbers",
}
FORMED = tuple(KINDS)[:6]  # one equation that can be evaluated, whatever it says


def kind(text, nums, target, tokens=0, limit=None):
    """Return the one kind of `KINDS` that a completion belongs to; only what is no puzzle raises.

    Where several faults come together the first of these is named: other number, number twice,
    number missing, false equation, wrong value.

    Parameters
    ----------
    text : str
        The completion.
    nums, target : sequence of int, int
        The puzzle.
    tokens, limit : int, optional
        The completion's length, and the longest allowed; without these nothing is cut off.
    """
    nums, target = as_puzzle(nums, target)
    if is_correct(text, nums, target):
        return "right"
    equation = parse_completion(text).equation
    if equation is None and limit is not None and tokens >= limit:
        return "cut off"
    left, equals, right = (equation or "").partition("=")
    if not equals or not RIGHT_SIDE.fullmatch(right):
        return "malformed"
    used, given = Counter(written_numbers(left)), Counter(map(str, nums))
    try:
        value = evaluate(left)
    except ValueError:
        return "malformed"
    if set(used) - set(given):
        return "other number"
    if used - given:
        return "number twice"
    if given - used:
        return "number missing"
    return "wrong value" if near(value, Fraction(right)) else "false equation"


def kinds(frame, limit=None):
    """Return the kind of every graded row (``completion, nums, target, tokens``), categorical.

    ``limit`` is the longest completion allowed, in tokens.
    """
    found = [kind(row.completion, row.nums, row.target, row.tokens, limit)
             for row in frame.itertuples()]
    return pd.Series(pd.Categorical(found, categories=list(KINDS)), index=frame.index, name="kind")
