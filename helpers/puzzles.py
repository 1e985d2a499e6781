"""Make Countdown puzzles, and split them so that nothing leaks from training to test.

A puzzle is a row of a table: `nums`, the numbers as a list, and `target`. The order of the numbers
does not matter to the game: two rows are the same puzzle when their canonical forms are equal.
"""

from itertools import combinations_with_replacement
from math import comb

import numpy as np
import pandas as pd

from helpers import solver
from helpers.expressions import MOST_NUMBERS, exact_integers, library

_WORK = 200_000_000  # expressions x puzzles: a few seconds of solving
_PATIENCE = 10  # batches in a row without one new puzzle


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


def _whole(*values):
    return all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in values)


def _check_ranges(counts, low, high, target_low, target_high):
    for name, first, last in (("numbers", low, high), ("targets", target_low, target_high)):
        if not _whole(first, last) or not 0 <= first <= last < 2**62:
            raise ValueError(f"{name} from {first!r} to {last!r}: give two whole numbers of 0 or "
                             "more (below 2**62), the smaller one first")
    if not counts or not _whole(*counts) or not set(counts) <= set(range(2, 7)):
        raise ValueError(f"counts={counts!r}: say how many numbers a puzzle has, one or more of "
                         "2 to 6, for example (3, 4)")


def _grid_size(count, low, high, target_low, target_high):
    """How many puzzles there are, solvable or not, and the work of solving them all."""
    rows = comb(high - low + count, count) * (target_high - target_low + 1)
    return rows, rows * (len(library(count).roots) if count <= MOST_NUMBERS else 100 * _WORK)


def _grid(count, low, high, target_low, target_high):
    """All puzzles, solvable or not: sorted numbers (rows, count) and targets (rows,)."""
    nums = np.array(list(combinations_with_replacement(range(low, high + 1), count)))
    targets = np.arange(target_low, target_high + 1)
    return nums.repeat(len(targets), axis=0), np.tile(targets, len(nums))


def enumerate_puzzles(count, low, high, target_low, target_high):
    """Every solvable puzzle of a small domain, once.

    Parameters
    ----------
    count : int
        How many numbers a puzzle has, 2 to 5.
    low, high : int
        The smallest and the largest number, both included.
    target_low, target_high : int
        The smallest and the largest target, both included.

    Returns
    -------
    pandas.DataFrame
        `nums` (sorted) and `target`, in ascending order, with the columns that
        `helpers.solver.label` adds.

    Raises
    ------
    ValueError
        For bad ranges, or a domain too large to list.
    """
    domain = count, low, high, target_low, target_high
    _check_ranges((count,), *domain[1:])
    rows, work = _grid_size(*domain)
    if work > 10 * _WORK or rows > 5_000_000:
        raise ValueError(f"{rows:,} puzzles of {count} numbers are too many to solve one by one: "
                         "narrow the ranges, or draw a sample of them with generate()")
    nums, targets = _grid(*domain)
    table = solver.label(pd.DataFrame({"nums": nums.tolist(), "target": targets}), progress=False)
    return table[table["solvable"]].reset_index(drop=True)


def _drawn(n_puzzles, count, domain, rng):
    """`n_puzzles` distinct solvable puzzles of `count` numbers, as rows (numbers, target)."""
    low, high, target_low, target_high = domain
    rows, work = _grid_size(count, *domain)
    kept, idle = {}, 0
    if work <= _WORK and rows <= 1_000_000:  # few enough to look at every one
        nums, targets = _grid(count, *domain)
        good = np.flatnonzero(solver.solvable_whole(nums, targets))
        for row in rng.permutation(good)[:n_puzzles]:
            kept[row] = rng.permutation(nums[row]).tolist(), int(targets[row])
    else:
        # of six numbers the first two are added up: for the solver a puzzle of five
        held = min(count, MOST_NUMBERS)
        slow = 30 if exact_integers(count, high, target_high) is object else 1
        batch = min(max(_WORK // 10 // len(library(held).roots), 1), 20_000) // slow
        while len(kept) < n_puzzles and idle < _PATIENCE:
            before = len(kept)
            nums = rng.integers(low, high, (batch, count), endpoint=True)
            targets = rng.integers(target_low, target_high, batch, endpoint=True)
            leaves = nums
            if count > held:
                leaves = np.column_stack([nums[:, 0] + nums[:, 1], nums[:, 2:]])
            for row in np.flatnonzero(solver.solvable_whole(leaves, targets)):
                if len(kept) < n_puzzles:
                    puzzle = nums[row].tolist(), int(targets[row])
                    kept.setdefault(canonical(*puzzle), puzzle)
            idle = idle + 1 if len(kept) == before else 0
    if len(kept) < n_puzzles:
        raise ValueError(f"only {len(kept)} of {n_puzzles} distinct solvable puzzles of {count} "
                         f"numbers from {low} to {high} with targets {target_low} to {target_high}"
                         " were found: widen the ranges or ask for fewer")
    return list(kept.values())


def generate(n_puzzles, counts=(3, 4), low=1, high=99, target_low=10, target_high=100, seed=0):
    """Draw distinct puzzles that can be solved with whole intermediate values.

    Numbers and target are drawn uniformly, and kept when the solver reaches the target. Where the
    ranges are narrow, the puzzles are drawn from the list of all of them instead.

    Parameters
    ----------
    n_puzzles : int
        How many, shared out evenly among `counts`.
    counts : sequence of int
        How many numbers a puzzle has, each 2 to 6.
    low, high : int
        The smallest and the largest number, both included.
    target_low, target_high : int
        The smallest and the largest target, both included.
    seed : int
        The same arguments and seed give the same puzzles.

    Returns
    -------
    pandas.DataFrame
        `nums` (list of int, in random order) and `target` (int), `n_puzzles` rows in random order.

    Raises
    ------
    ValueError
        For bad arguments, or where the ranges hold too few solvable puzzles.
    """
    counts = (counts,) if isinstance(counts, int) else tuple(counts)
    domain = low, high, target_low, target_high
    _check_ranges(counts, *domain)
    if not _whole(n_puzzles) or n_puzzles < 1:
        raise ValueError(f"n_puzzles={n_puzzles!r}: ask for a whole number of puzzles, 1 or more")
    if len(set(counts)) < len(counts):
        raise ValueError(f"counts={counts!r}: name each count once")
    rng = np.random.default_rng(seed)
    rows = []
    for i, count in enumerate(counts):
        share = n_puzzles // len(counts) + (i < n_puzzles % len(counts))
        rows += _drawn(share, count, domain, rng) if share else []
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return pd.DataFrame(rows, columns=["nums", "target"])


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
