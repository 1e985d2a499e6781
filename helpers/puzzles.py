"""Tell puzzles apart, and split them so that nothing leaks from training to test.

A puzzle is a row of a table: `nums`, the numbers as a list, and `target`. The order of the numbers
does not matter to the game: two rows are the same puzzle when their canonical forms are equal.
"""

from collections import Counter

import numpy as np

from helpers import solver


def canonical(nums, target):
    """The canonical form of a puzzle, equal for two rows exactly when they are the same puzzle.

    Parameters
    ----------
    nums, target : sequence of int, int
        The given numbers, in any order, and the value to reach.

    Returns
    -------
    tuple
        ``(sorted numbers as a tuple, target)``.
    """
    return tuple(sorted(int(x) for x in nums)), int(target)


def _multisets(puzzles):
    return [tuple(sorted(nums)) for nums in puzzles["nums"]]


def split_by_numbers(puzzles, fractions, seed=0):
    """Split puzzles so that no multiset of numbers is in two parts, and all parts are alike.

    The puzzles of one multiset are a group. The groups are dealt out, largest first, each to the
    part that most lacks what the group holds: puzzles of so many numbers that need * or /, or not.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns `nums` and `target`; solved on the way where `needs_mul_div` is missing.
    fractions : dict of str to float
        The share of each part, e.g. ``{"train": 0.7, "validation": 0.1, "test": 0.2}``, sum 1.
    seed : int
        The same arguments and seed give the same split.

    Returns
    -------
    dict of str to pandas.DataFrame
        The parts, rows in their original order with their original columns, newly indexed.

    Raises
    ------
    ValueError
        Where the fractions are not positive or do not sum to 1.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions {fractions}: give each part a positive share, together 1")
    labelled = puzzles if "needs_mul_div" in puzzles else solver.label(puzzles, progress=False)
    strata = list(zip(puzzles["nums"].map(len), labelled["needs_mul_div"], strict=True))
    groups = {}
    for row, key in enumerate(_multisets(puzzles)):
        groups.setdefault(key, []).append(row)
    totals = Counter(strata)
    missing = {name: {s: share * total for s, total in totals.items()}
               for name, share in fractions.items()}
    rows_of, members = {name: [] for name in fractions}, list(groups.values())
    members = [members[i] for i in np.random.default_rng(seed).permutation(len(members))]
    for rows in sorted(members, key=len, reverse=True):  # stable: equal sizes stay shuffled
        held = [strata[row] for row in rows]
        part = max(fractions, key=lambda name: sum(
            missing[name][s] / (fractions[name] * totals[s]) for s in held))
        rows_of[part] += rows
        for s in held:
            missing[part][s] -= 1
    return {name: puzzles.iloc[sorted(rows)].reset_index(drop=True)
            for name, rows in rows_of.items()}


def leakage(train, test):
    """How much of a test set is also in the training set.

    Parameters
    ----------
    train, test : pandas.DataFrame
        Columns `nums` and `target`.

    Returns
    -------
    dict of str to float
        `puzzles`: the share of test rows whose puzzle, whatever the order of its numbers, is in
        training too; `multisets`: the share of test rows whose numbers are, whatever the target.
    """
    if test.empty:
        raise ValueError("the test set is empty, so it has no shares: give at least one row")
    known, asked = (list(zip(_multisets(table), table["target"], strict=True))
                    for table in (train, test))
    known_puzzles, known_sets = set(known), {nums for nums, _ in known}
    return {"puzzles": sum(pair in known_puzzles for pair in asked) / len(test),
            "multisets": sum(nums in known_sets for nums, _ in asked) / len(test)}
