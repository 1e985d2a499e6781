"""Solve Countdown puzzles exactly: no rounding anywhere, whatever the size of the numbers.

What counts as one solution, and which divisions are allowed, stands in `helpers.expressions`.
"""

from fractions import Fraction
from itertools import combinations, product

import numpy as np

from helpers.expressions import MOST_NUMBERS, blocks, exact_integers, hits, library


def _check(nums, target, most):
    for x in (*nums, target):
        if not isinstance(x, (int, np.integer)) or isinstance(x, bool) or x < 0:
            raise ValueError(f"numbers {list(nums)}, target {target!r}: {x!r} is not a whole number"
                             " of 0 or more; give the numbers and the target as such")
    if not 2 <= len(nums) <= most:
        raise ValueError(f"numbers {list(nums)}: there are {len(nums)}, this takes 2 to {most}")


def _parts(tree, join, split, sign=1):
    """The operands of a whole chain: (1, operand), or (-1, operand) where it is split off."""
    if isinstance(tree, tuple) and tree[0] in (join, split):
        yield from _parts(tree[1], join, split, sign)
        yield from _parts(tree[2], join, split, sign if tree[0] == join else -sign)
    else:
        yield sign, tree


def _write(tree, flip=True):
    """Write a tree with as few parentheses as it takes, and with `flip` no part of it negative.

    Returns (text, value, flipped, whole): `flipped` when the text is minus the tree, `whole` when
    every intermediate value is an integer.
    """
    if not isinstance(tree, tuple):
        return str(tree), Fraction(tree), False, True
    adds = tree[0] in "+-"
    parts, flipped, whole = [], False, True
    for sign, part in _parts(tree, *("+-" if adds else "*/")):
        text, value, part_flipped, part_whole = _write(part, flip)
        whole = whole and part_whole
        if adds:
            sign = -sign if part_flipped else sign
        else:
            flipped = flipped != part_flipped
            text = f"({text})" if isinstance(part, tuple) else text
        parts.append((sign, value, text))
    if adds:
        total = sum(sign * value for sign, value, _ in parts)
        flipped = flip and (total < 0 or all(sign < 0 for sign, _, _ in parts))
        if flipped:
            total, parts = -total, [(-sign, value, text) for sign, value, text in parts]
    else:
        total = Fraction(1)
        for sign, value, _ in parts:
            total = total * value if sign > 0 else total / value
    parts.sort(key=lambda part: (-part[0], -part[1], part[2]))
    joint = {1: " + ", -1: " - "} if adds else {1: " * ", -1: " / "}
    text = parts[0][2] + "".join(joint[sign] + text for sign, _, text in parts[1:])
    return text, total, flipped, whole and total.denominator == 1


def _search(leaves, target, pattern):
    """All solutions for `leaves`, numbers or trees, as (rank, text), the simplest first."""
    values = [-value if flipped else value for _, value, flipped, _ in map(_write, leaves)]
    tops, bottoms = [v.numerator for v in values], [v.denominator for v in values]
    kind = exact_integers(len(leaves), max(map(abs, tops + bottoms)), target)
    nums, target, bottoms = (np.array(x, kind) for x in ([tops], [target], [bottoms]))
    lib = library(len(leaves))

    def tree(node):
        op, i, j = lib.nodes[node]
        return (op, tree(i), tree(j)) if op else leaves[node]

    found = []
    for which, valid in hits(nums, target, pattern, bottoms=bottoms):
        for node in which[valid[:, 0]]:
            text, _, flipped, whole = _write(tree(node))
            if flipped:  # 0, as a product: minus the tree is another expression
                text = _write(tree(node), flip=False)[0]
            rank = not whole, text.count("("), "/" in text, "*" in text, len(text)
            found.append((rank, text))
    return sorted(found)


def solutions(nums, target):
    """Every distinct solution of one puzzle.

    Parameters
    ----------
    nums : sequence of int
        2 to 5 non-negative integers, each of which is to be used once.
    target : int
        The value to reach.

    Returns
    -------
    list of str
        One expression a solution, e.g. ``"7 * (8 - 6)"``; those with whole intermediate values
        and few parentheses come first.
    """
    _check(nums, target, MOST_NUMBERS)
    nums = sorted(map(int, nums))
    pattern = tuple(sorted(set(nums)).index(x) for x in nums)
    return [text for _, text in _search(nums, int(target), pattern)]


def solve(nums, target):
    """One solution of a puzzle, or None where there is none.

    Parameters
    ----------
    nums : sequence of int
        2 to 6 non-negative integers, each of which is to be used once.
    target : int
        The value to reach.

    Returns
    -------
    str or None
        For instance ``"7 * (8 - 6)"``: whole intermediate values where possible, few parentheses.
    """
    _check(nums, target, MOST_NUMBERS + 1)
    if len(nums) <= MOST_NUMBERS:
        return next(iter(solutions(nums, target)), None)
    # of six numbers some two meet first: try each such pair as one number of a puzzle of five
    nums, best = sorted(map(int, nums), reverse=True), None
    pairs = {(nums[i], nums[j]): nums[:i] + nums[i + 1 : j] + nums[j + 1 :]
             for i, j in combinations(range(6), 2)}
    for op, ((a, b), rest) in product("+-*/", pairs.items()):
        for left, right in ((a, b), (b, a)) if op in "-/" else ((a, b),):
            if op == "/" and right == 0:
                continue
            found = _search([(op, left, right), *rest], int(target), tuple(range(5)))
            if found and (best is None or found[0] < best):
                best = found[0]
            if best and not best[0][0]:  # whole: good enough
                return best[1]
    return best[1] if best else None


def solvable_whole(nums, target):
    """Which puzzles can be solved with whole intermediate values.

    Parameters
    ----------
    nums : numpy.ndarray of int, shape (puzzles, n)
        The numbers, n from 2 to 5.
    target : numpy.ndarray of int, shape (puzzles,)
        The targets.

    Returns
    -------
    numpy.ndarray of bool, shape (puzzles,)
        True where there is such a solution.
    """
    n = nums.shape[1]
    kind = exact_integers(n, nums.max(), target.max())
    nums, target = nums.astype(kind), target.astype(kind)
    found = np.zeros(len(nums), bool)
    for block in blocks(np.arange(len(nums)), n):
        for _, valid in hits(nums[block], target[block], tuple(range(n)), whole=True):
            found[block] |= valid.any(axis=0)
    return found


def label(puzzles, progress=True):
    """Solve every puzzle of a table.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns `nums` (2 to 5 non-negative integers a row) and `target`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        A copy with the columns `solvable` (bool), `needs_mul_div` (bool: no solution with + and -
        only; also True where there is none at all) and `n_solutions` (int).
    """
    from tqdm.auto import tqdm

    rows_of = {}
    for row, (nums, target) in enumerate(zip(puzzles["nums"], puzzles["target"], strict=True)):
        _check(nums, target, MOST_NUMBERS)
        rows_of.setdefault(len(nums), []).append(row)
    total, additive = np.zeros((2, len(puzzles)), np.int64)
    with tqdm(total=len(puzzles), disable=not progress, desc="solving", unit_scale=True) as bar:
        for n, rows in rows_of.items():
            chosen, rows = puzzles.iloc[rows], np.array(rows)
            every = [sorted(map(int, nums)) for nums in chosen["nums"]]
            kind = exact_integers(n, max(nums[-1] for nums in every), chosen["target"].max())
            nums, target = np.array(every, kind), chosen["target"].to_numpy(kind)
            changes = (nums[:, 1:] != nums[:, :-1]).cumsum(axis=1)
            kinds, kind_of = np.unique(changes, axis=0, return_inverse=True)
            for k, pattern in enumerate(kinds.tolist()):  # which numbers are equal
                for block in blocks(np.flatnonzero(kind_of.ravel() == k), n):
                    where = rows[block]
                    for which, valid in hits(nums[block], target[block], (0, *pattern)):
                        plain = library(n).additive[which - library(n).roots.start]
                        total[where] += np.count_nonzero(valid, axis=0)
                        additive[where] += np.count_nonzero(valid[plain], axis=0)
                    bar.update(len(block))
    return puzzles.assign(solvable=total > 0, needs_mul_div=additive == 0, n_solutions=total)
