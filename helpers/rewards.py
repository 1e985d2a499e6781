"""The two rewards. TRL calls them with whole batches; the first reads the text alone."""

import re
from fractions import Fraction
from reprlib import repr as short

from helpers.arithmetic import MAX_LENGTH, as_puzzle, evaluate, written_numbers
from helpers.prompts import completion_text, parse_completion

PRECISION = 100_000  # 1 / tolerance

# [0-9] and re.ASCII, not \d and \s alone: those also match other scripts' digits and spaces.
ANSWER = re.compile(r"[0-9+\-*/().=\s]*", re.ASCII)
RIGHT_SIDE = re.compile(r"\s*-?[0-9]{1,12}(\.[0-9]{1,12})?\s*", re.ASCII)


def strict_format_reward_func(completions, **kwargs):
    r"""Score the form of each completion, whatever its arithmetic.

    Parameters
    ----------
    completions : list of str or list of list of dict
        One completion each, as plain text or as a list of one message (with no content: ""; with
        a call of a tool, or several: an error). What else TRL passes is not used.

    Returns
    -------
    list of float
        1.0 when the whole completion is ``<think>...</think>\n<answer>...</answer>`` and the
        answer is one non-empty line of digits, ``+ - * / ( ) . =`` and white space with an ``=``;
        0.1 when only the structure holds; else 0.0.
    """
    return grade_batch(format_score, completions)


def equation_reward_func(prompts, completions, target, nums, **kwargs):
    """Score the arithmetic of each completion: 1.0 for a solution, else 0.0.

    Parameters
    ----------
    prompts, **kwargs
        Not used: the puzzle comes from the data set's columns, not from the text.
    completions : list of str or list of list of dict
        As for `strict_format_reward_func`.
    target, nums : list of int, list of list of int
        The puzzles, one for each completion. Whole numbers of any type, see `as_puzzle`; rows
        padded with nulls or negative numbers are refused.

    Returns
    -------
    list of float
        1.0 where the only ``<answer>`` holds one equation whose left side uses every given number
        exactly once and no other, and whose value, exactly computed, equals both the right side
        and the target within 1e-5.

    Raises
    ------
    TypeError, ValueError
        Where the batch does not fit together, or a row is no puzzle: never graded as wrong.
    """
    return grade_batch(is_correct, completions, nums, target)


def grade_batch(score, completions, *puzzles):
    """Return the score of each completion's text, with its puzzle of the columns nums and target.

    Raises
    ------
    TypeError, ValueError
        Where a column is none, or of another length, or a row of it is not what it should be.
    """
    columns = dict(zip(("completions", "nums", "target"), (completions, *puzzles), strict=False))
    for name, column in columns.items():
        if isinstance(column, str | dict) or not hasattr(column, "__len__") or (
                getattr(column, "ndim", 1) == 0):
            raise TypeError(f"{name} is {short(column)} ({type(column).__name__}): give a list, "
                            "with one for each completion")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"the batch does not fit together ({lengths}): give one of each")
    scores = []
    try:
        for value in map(score, map(completion_text, completions), *puzzles):
            scores.append(float(value))
    except (TypeError, ValueError) as error:
        row = len(scores)
        given = "".join(f", {name} {short(list(column)[row])}" for name, column in columns.items()
                        if name != "completions")
        raise type(error)(f"row {row} of the batch{given}: {error}") from error
    return scores


def format_score(text):
    """Return the format reward of one completion's text: 0.0, 0.1 or 1.0."""
    answer = parse_completion(text).answer
    if answer is None:
        return 0.0
    one_line = len(answer.strip().splitlines()) == 1
    return 1.0 if one_line and "=" in answer and ANSWER.fullmatch(answer) else 0.1


def is_correct(text, nums, target):
    """Return whether a completion's text solves the puzzle. Only what is no puzzle is an error."""
    nums, goal = as_puzzle(nums, target)
    equation = parse_completion(text).equation
    if equation is None or len(equation) > 2 * MAX_LENGTH or equation.count("=") != 1:
        return False
    left, right = equation.split("=")
    if not RIGHT_SIDE.fullmatch(right):
        return False
    stated = Fraction(right) if "." in right else int(right)
    if abs(stated - goal) > 1:  # most wrong answers are refused here, before the slower checks
        return False
    if sorted(written_numbers(left)) != sorted(map(str, nums)):  # as text: 1.5 is not 1 and 5
        return False
    try:
        value = evaluate(left)
    except ValueError:
        return False
    return near(value, goal) and near(value, stated)


def near(a, b):
    """Return whether two exact numbers differ by at most 1e-5: a right side may be rounded."""
    return a == b or abs(a - b) * PRECISION <= 1
