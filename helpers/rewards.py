"""The two rewards. TRL calls them with whole batches; both read the text and nothing else."""

import re
from fractions import Fraction

from helpers.arithmetic import MAX_LENGTH, evaluate
from helpers.prompts import completion_text, parse_completion

TOLERANCE = Fraction(1, 100_000)

# [0-9] and re.ASCII, not \d and \s alone: those also match other scripts' digits and spaces.
_ANSWER = re.compile(r"[0-9+\-*/().=\s]*", re.ASCII)
_LEFT = re.compile(r"[0-9+\-*/().\s]*", re.ASCII)
_RIGHT = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,12})?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+")


def strict_format_reward_func(completions, **kwargs):
    r"""Score the form of each completion, whatever its arithmetic.

    Parameters
    ----------
    completions : list of str or list of list of dict
        One completion each, as plain text or as chat messages.
    **kwargs
        Whatever else TRL passes; not used.

    Returns
    -------
    list of float
        1.0 when the whole completion is ``<think>...</think>\n<answer>...</answer>`` and the
        answer is one non-empty line of digits, ``+ - * / ( ) . =`` and white space with an ``=``;
        0.1 when only the structure holds; else 0.0.
    """
    return [_format_score(completion_text(completion)) for completion in completions]


def equation_reward_func(prompts, completions, target, nums, **kwargs):
    """Score the arithmetic of each completion: 1.0 for a solution, else 0.0.

    Parameters
    ----------
    prompts : list
        Not used: the puzzle comes from the data set's columns, not from the text.
    completions : list of str or list of list of dict
        One completion each, as plain text or as chat messages.
    target : list of int
        The puzzles' targets.
    nums : list of list of int
        The puzzles' numbers.
    **kwargs
        Whatever else TRL passes; not used.

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


def is_correct(text, nums, target):
    """Return whether one completion's text solves the puzzle; never raises on any text."""
    equation = parse_completion(text).equation
    if equation is None or equation.count("=") != 1 or len(equation) > 2 * MAX_LENGTH:
        return False
    left, right = equation.split("=")
    right = right.strip()
    if not _LEFT.fullmatch(left) or not _RIGHT.fullmatch(right):
        return False
    if "." in left:  # 1.5 is not the numbers 1 and 5
        return False
    found = _NUMBER.findall(left)
    if len(found) != len(nums) or sorted(map(int, found)) != sorted(nums):
        return False
    try:
        value = evaluate(left)
    except ValueError:
        return False
    return abs(value - target) <= TOLERANCE and abs(value - Fraction(right)) <= TOLERANCE


def _format_score(text):
    answer = parse_completion(text).answer
    if answer is None:
        return 0.0
    lines = [line for line in answer.split("\n") if line.strip()]
    well_formed = len(lines) == 1 and "=" in answer and _ANSWER.fullmatch(answer)
    return 1.0 if well_formed else 0.1
