"""Count habits of thought in completions by stated rules: what a model does, not what it means.

The four habits are those of Gandhi et al. 2025, "Cognitive Behaviors that Enable Self-Improving
Reasoners" (arXiv 2503.01307). There a large model judges the texts; here rules do, so that anyone
can count again, and data/habits.parquet holds a sample that was read, to see what the rules miss.
"""

import re
from collections import Counter
from dataclasses import dataclass

import pandas as pd

HABITS = {
    "verification": "a calculation, and before the next one a word that judges it",
    "backtracking": "after a verdict of failure, a try that was not written before",
    "sub-goals": "a number other than the target is named as what is needed next",
    "backward chaining": "a calculation starts from the target, which is no given number and no "
                         "result so far, or the text says that it works backwards",
}
_CALCULATION = re.compile(r"([0-9]{1,9}) *([-+*/×x]) *([0-9]{1,9}) *= *(-?[0-9]{1,9})", re.ASCII)
_FAILURE = re.compile(
    r"\bno\b|\bnope\b|\bnot (?:equal|the target|what|it|correct|right|enough|work)"
    r"|n't (?:work|equal)|\bwrong\b|\bincorrect\b|\btoo (?:high|low|big|small|large|much|little)\b",
    re.I)
_SUCCESS = re.compile(
    r"\byes\b|\bcorrect\b|\bthis works\b|\bthat works\b|\bwhich is the target\b|\bmatches\b", re.I)
_GOAL = re.compile(
    r"\b(?:need|want|must|aim|try|trying|goal|remaining|left)\b[^.\n=]{0,24}?"
    r"\b(?:get|make|reach|for|form|obtain|find|is|another|a|to)? ?\b([0-9]{1,9})\b",
    re.I | re.ASCII)
_BACKWARDS = re.compile(r"\bwork(?:s|ing)? back|\bbackwards?\b|\bin reverse\b", re.I)


@dataclass(frozen=True)
class Try:
    """One line of a thought that holds a calculation.

    Attributes
    ----------
    steps : tuple
        Its calculations, each ``(left, operator, right, result)``, sides of + and * in order.
    verdict : str or None
        "yes" or "no" where a word judges it, before the next calculation.
    """

    steps: tuple
    verdict: str | None


def thought_of(text):
    """Return a completion's thought, cut off or not."""
    return text.split("</think>")[0].split("<answer>")[0].removeprefix("<think>")


def tries(text):
    """Take a completion's thought apart into its tries, one a line that holds a calculation.

    A line without a calculation belongs to the try before it: so a verdict may stand on the next
    line.
    """
    found = []  # [steps, words]
    for line in thought_of(text).split("\n"):
        steps = []
        for match in _CALCULATION.finditer(line):
            left, operator, right, result = match.groups()
            operator = "*" if operator in "×x" else operator
            sides = (int(left), int(right))
            sides = tuple(sorted(sides)) if operator in "+*" else sides
            steps.append((sides[0], operator, sides[1], int(result)))
        words = _CALCULATION.sub(" ", line)
        if steps:
            found.append([tuple(steps), words])
        elif found:
            found[-1][1] += "\n" + words
    return [Try(steps, _verdict(words)) for steps, words in found]


def _verdict(words):
    if _FAILURE.search(words):
        return "no"
    return "yes" if _SUCCESS.search(words) else None


def habits(text, nums, target):
    """Return which of `HABITS` a completion shows, as a dict of bool.

    Parameters
    ----------
    text : str
        The completion.
    nums : sequence of int
        The given numbers.
    target : int
        The number to reach.
    """
    found, seen, failed, again, backward = tries(text), set(), False, False, False
    for one in found:
        again = again or (failed and one.steps not in seen)
        seen.add(one.steps)
        failed = failed or one.verdict == "no"
        known = {int(n) for n in nums}
        for left, _, right, result in one.steps:
            backward = backward or (target in (left, right) and target not in known)
            known.add(result)
    thought = thought_of(text)
    named = {int(n) for n in _GOAL.findall(_CALCULATION.sub(" ", thought))}
    return {
        "verification": any(one.verdict for one in found),
        "backtracking": again,
        "sub-goals": bool(named - {int(target), *(int(n) for n in nums)}),
        "backward chaining": backward or bool(_BACKWARDS.search(thought)),
    }


def count_habits(frame):
    """Return one row of bools a completion, with a column for each habit.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``completion, nums, target``.
    """
    rows = [habits(row.completion, [int(n) for n in row.nums], int(row.target))
            for row in frame.itertuples()]
    return pd.DataFrame(rows, index=frame.index, columns=list(HABITS))


def is_true(step):
    """Return whether a calculation gives what is written."""
    left, sign, right, result = step
    if sign == "/":
        return right != 0 and left == right * result
    return {"+": left + right, "-": left - right, "*": left * right}[sign] == result


def legal(steps, nums):
    """Return whether a try's steps use every given number once, and each result before the last."""
    pool = Counter(int(n) for n in nums)
    for left, _, right, result in steps:
        for side in (left, right):
            if not pool[side]:
                return False
            pool[side] -= 1
        pool[result] += 1
    return len(steps) == len(nums) - 1


def search_quality(text, nums, target):
    """Count what is right in a thought: steps, verdicts, and tries that use each number once.

    Returns
    -------
    dict of int
        ``steps`` and those whose result is ``true``; ``verdicts`` and those that are ``sound``
        (yes exactly where the try's last result is the target); ``tries``, the ``different`` ones,
        and the ``legal`` ones, which use every given number once and no other.
    """
    found = tries(text)
    steps = [step for one in found for step in one.steps]
    sound = [(one.verdict == "yes") == (one.steps[-1][3] == target) for one in found if one.verdict]
    return {"steps": len(steps), "true": sum(map(is_true, steps)), "verdicts": len(sound),
            "sound": sum(sound), "tries": len(found), "different": len({o.steps for o in found}),
            "legal": sum(legal(one.steps, nums) for one in found)}
