"""The two rewards. TRL calls them with whole batches; both read the text and nothing else."""

import re
from fractions import Fraction

from helpers.arithmetic import MAX_LENGTH, evaluate, written_numbers
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
        One completion each, as plain text or as chat messages. What else TRL passes is not used.

    Returns
    -------
    list of float
        1.0 when the whole completion is ``<think>...</think>\n<answer>...</answer>`` and the
        answer is one non-empty line of digits, ``+ - * / ( ) . =`` and white space with an ``=``;
        0.1 when only the structure holds; else 0.0.
    """
    return [format_score(completion_text(completion)) for completion in completions]


def equation_reward_func(prompts, completions, target, nums, **kwargs):
    """Score the arithmetic of each completion: 1.0 for a solution, else 0.0.

    Parameters
    ----------
    prompts, **kwargs
        Not used: the puzzle comes from the data set's columns, not from the text.
    completions : list of str or list of list of dict
        One completion each, as plain text or as chat messages.
    target, nums : list of int, list of list of int
        The puzzles.

    Returns
    -------
    list of float
        1.0 where the only ``<answer>`` holds one equation whose left side uses every given number
        exactly once and no other, and whose value, exactly computed, equals both the right side
        and the target within 1e-5.
    """
    return [
        float(is_correct(completion_text(completion), numbers, goal))
        for completion, numbers, goal in zip(completions, nums, target, strict=True)
    ]


def format_score(text):
    """Return the format reward of one completion's text: 0.0, 0.1 or 1.0."""
    answer = parse_completion(text).answer
    if answer is None:
        return 0.0
    one_line = len(answer.strip().splitlines()) == 1
    return 1.0 if one_line and "=" in answer and ANSWER.fullmatch(answer) else 0.1


def is_correct(text, nums, target):
    """Return whether one completion's text solves the puzzle; never raises on any text."""
    equation = parse_completion(text).equation
    if equation is None or len(equation) > 2 * MAX_LENGTH or equation.count("=") != 1:
        return False
    left, right = equation.split("=")
    if not RIGHT_SIDE.fullmatch(right):
        return False
    stated, goal = Fraction(right) if "." in right else int(right), int(target)
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
