"""Make Countdown puzzles, and split them so that nothing leaks from training to test.

A puzzle is a row of a table: `nums`, the numbers as a list, and `target`. The order of the numbers
does not matter to the game: two rows are the same puzzle when their canonical forms are equal.
"""


import numpy as np

from helpers import solver


def canonical(nums, target):
    """The canonical form of a puzzle, equal for two rows exactly when they are the same puzzle.

    Parameters
    ----------
    nums : sequence of int
        The given numbers, in any order.
    target : int
        The value to reach.

    Returns
    -------
    tuple
        ``(sorted numbers as a tuple, target)``.
    """
    return tuple(sorted(int(x) for x in nums)), int(target)


def _multisets(puzzles):
    return [tuple(sorted(nums)) for nums in puzzles["nums"]]


def split_by_numbers(puzzles, fractions, seed=0, stratify=None):
    """Split puzzles so that no multiset of numbers is in two parts.

    The groups are dealt out, largest first, each to the part that most lacks what the group holds.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns `nums` and `target`; solved on the way where `needs_mul_div` is missing and
        `stratify` is not given.
    fractions : dict of str to float
        The share of each part, e.g. ``{"train": 0.7, "validation": 0.1, "test": 0.2}``, sum 1.
    seed : int
        The same arguments and seed give the same split.
    stratify : sequence, optional
        One stratum a puzzle; by default its count of numbers and whether it needs * or /.

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
    if stratify is None:
        labelled = puzzles if "needs_mul_div" in puzzles else solver.label(puzzles, progress=False)
        stratify = list(zip(puzzles["nums"].map(len), labelled["needs_mul_div"], strict=True))
    groups, keys = {}, _multisets(puzzles)
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    strata = {stratum: i for i, stratum in enumerate(sorted(set(stratify)))}
    stratum_of = [strata[stratum] for stratum in stratify]
    totals = np.bincount(stratum_of, minlength=len(strata)).tolist()
    names = list(fractions)
    missing = [[fractions[name] * total for total in totals] for name in names]
    rows_of = [[] for _ in names]
    members = list(groups.values())
    members = [members[i] for i in np.random.default_rng(seed).permutation(len(members))]
    for rows in sorted(members, key=len, reverse=True):  # stable: equal sizes stay shuffled
        held = [stratum_of[row] for row in rows]
        need = [sum(lack[s] / (fractions[name] * totals[s]) for s in held)
                for name, lack in zip(names, missing, strict=True)]
        part = need.index(max(need))
        rows_of[part] += rows
        for s in held:
            missing[part][s] -= 1
    parts = [{keys[row] for row in rows} for rows in rows_of]
    assert sum(map(len, parts)) == len(set().union(*parts)), "a multiset of numbers is in two parts"
    return {name: puzzles.iloc[sorted(rows)].reset_index(drop=True)
            for name, rows in zip(names, rows_of, strict=True)}


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
    known = _multisets(train)
    known_puzzles, known_sets = set(zip(known, train["target"], strict=True)), set(known)
    asked = _multisets(test)
    puzzles = sum(pair in known_puzzles for pair in zip(asked, test["target"], strict=True))
    multisets = sum(nums in known_sets for nums in asked)
    return {"puzzles": puzzles / len(test), "multisets": multisets / len(test)}
