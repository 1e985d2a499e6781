"""Puzzles and prompts that no training showed: more numbers, other ranges, other wordings.

The tiny model of the CPU profile knows the prompt's sentences as one token each, and numbers up to
144. Any other word is lost to it, so its prompts can be cut and put in another order, but not be
said in other words; that is for a pretrained model.
"""

import pandas as pd

from helpers.dataset import load_split
from helpers.prompts import EXAMPLE, build_messages
from lab.puzzle_sets import enumerate_puzzles, generate

# What the shipped sets hold: numbers and targets, both ends included.
RANGES = {"cpu": {"low": 1, "high": 12, "target_low": 1, "target_high": 60},
          "3to4": {"low": 1, "high": 99, "target_low": 10, "target_high": 100}}
_WIDER = {"cpu": {"high": 20, "counts": (3,)}, "3to4": {"high": 250, "counts": (3, 4)}}


def puzzle_sets(name, size=300, seed=0):
    """Return sets of solvable puzzles that differ from the trained ones in one way each.

    Parameters
    ----------
    name : str
        The shipped set that the model was trained on: "cpu" or "3to4".
    size : int
        At most this many puzzles a set.
    seed : int
        Seed of the draw.

    Returns
    -------
    dict of str to pandas.DataFrame
        Columns ``nums`` and ``target``. No set holds a multiset of numbers that was trained on.
    """
    if name not in RANGES:
        raise ValueError(f"no puzzle set is called {name!r}; choose one of {', '.join(RANGES)}")
    ranges, found = RANGES[name], {}
    for count, word in ((4, "four"), (5, "five"), (6, "six")):
        if count > 4 or name == "cpu":  # the shipped set 3to4 has four numbers already
            found[f"{word} numbers"] = generate(size, (count,), seed=seed, **ranges)
    high, counts = _WIDER[name]["high"], _WIDER[name]["counts"]
    wide = generate(3 * size, counts, seed=seed, **(ranges | {"high": high}))
    above = [max(nums) > ranges["high"] for nums in wide["nums"]]
    found[f"numbers to {high}"] = wide[above]
    top = ranges["target_high"]
    if name == "cpu":
        held_out = {tuple(sorted(nums)) for nums in load_split(name, "test")["nums"]}
        far = enumerate_puzzles(3, 1, 12, top + 1, 144)
        far = far[[tuple(nums) in held_out for nums in far["nums"]]]
        found[f"targets {top + 1} to 144"] = far
    else:
        far = generate(size, (3, 4), seed=seed,
                       **(ranges | {"target_low": top + 1, "target_high": 999}))
        found[f"targets {top + 1} to 999"] = far
    trained = {tuple(sorted(nums)) for nums in load_split(name, "train")["nums"]}
    for key, rows in found.items():
        new = [tuple(sorted(nums)) not in trained for nums in rows["nums"]]
        rows = pd.DataFrame(rows[["nums", "target"]][new])
        found[key] = rows.sample(min(size, len(rows)), random_state=seed).reset_index(drop=True)
    return found


def _without_system(nums, target):
    return build_messages(nums, target)[1:]


def _without_instructions(nums, target):
    system, user = build_messages(nums, target)
    lines = user["content"].split("\n")
    return [system, {**user, "content": "\n".join(lines[:2])}]


def _target_first(nums, target):
    system, user = build_messages(nums, target)
    numbers, goal, rest = user["content"].split("\n", 2)
    return [system, {**user, "content": f"\n{goal}\n{numbers}\n{rest}"}]


def _other_words(nums, target):
    listed = ", ".join(str(int(n)) for n in nums)
    asked = (
        f"Here is a little arithmetic game. You hold these cards: {listed}. Reach {int(target)} by "
        "adding, subtracting, multiplying or dividing; each card has to be played, and only once. "
        "Put your scratch work between <think> and </think>, start a new line, and put the "
        "finished equation between <answer> and </answer>. With the cards 8, 6, 7 and the goal 14 "
        f"it would look like this:\n{EXAMPLE['completion']}"
    )
    return [{"role": "system", "content": "You are good at mental arithmetic."},
            {"role": "user", "content": asked}]


def wordings(name):
    """Return the prompts to compare, as functions of numbers and target that give messages.

    Parameters
    ----------
    name : str
        The shipped set that the model was trained on; "cpu" leaves out what its tokenizer cannot
        read.
    """
    found = {
        "as trained": build_messages,
        "no system message": _without_system,
        "no instructions": _without_instructions,
        "target before numbers": _target_first,
    }
    return found if name == "cpu" else found | {"other words": _other_words}
