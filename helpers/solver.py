"""Solve Countdown puzzles exactly: no rounding anywhere, whatever the size of the numbers.

`library` lists all expressions of a few numbers, once. `hits` evaluates them for thousands of
puzzles at a time. `label` counts those that hit the target, `solutions` and `solve` write them.

Two expressions are the same when they are the same rational function of the given numbers, equal
numbers being interchangeable. So ``a - (b - c)`` is ``a - b + c``, while ``5 + 3 - 3`` and
``5 * 3 / 3`` are two.

Every product is held as one fraction, numerators first: ``a / (b / c)`` as ``a * c / b``. This
form divides by zero only where every equivalent form does; such an expression is no solution.
"""

import random
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from math import prod
from types import SimpleNamespace

import numpy as np

from helpers.arithmetic import combine

MOST_NUMBERS = 5  # there are 27,142 expressions of five numbers and 793,002 of six
_PRIME = 2**61 - 1


@cache
def library(n):
    """All inequivalent expressions of `n` labelled numbers, 2 to 5.

    Two are taken as equal when they agree at a random point modulo a large prime; with five
    numbers the probability of any false match is below 1e-8.

    Returns `nodes`, each ``(op, left, right)`` with two earlier nodes (the first `n` are the
    numbers, with op ""); `marks`, their values at the random point; `roots`, the range of those
    that use all numbers, 6, 68, 1170 or 27142 (OEIS A140606); `inner`, the nodes between the
    numbers and the roots, grouped `_by_operation`.
    """
    if not 2 <= n <= MOST_NUMBERS:
        raise ValueError(f"expressions of {n} numbers are not listed: use 2 to {MOST_NUMBERS}")
    nodes, marks = [("", i, i) for i in range(n)], random.Random(0).sample(range(1, _PRIME), n)
    using, inner = {1 << i: [i] for i in range(n)}, []  # the numbers used, as bits -> nodes
    for size in range(2, n + 1):
        start = len(nodes)
        for chosen in combinations(range(n), size):
            mask, seen = sum(1 << i for i in chosen), {}
            for part in (part for part in range(1, mask) if part & mask == part):
                for op, i, j in product("+-*/", using[part], using[mask ^ part]):
                    # one fraction a product: an operand of * or / is never itself a quotient
                    quotients = op in "*/" and "/" in (nodes[i][0], nodes[j][0])
                    if not quotients and (op in "-/" or i < j):
                        seen.setdefault(_mark(op, marks[i], marks[j]), (op, i, j))
            using[mask] = range(len(nodes), len(nodes) + len(seen))
            nodes += seen.values()
            marks += seen
        inner += _by_operation(nodes, range(start, len(nodes))) if size < n else []
    return SimpleNamespace(nodes=nodes, marks=marks, inner=inner, roots=using[2**n - 1])


def _mark(op, left, right):
    top, bottom = combine(op, (left, 1), (right, 1))
    return top * (pow(bottom, -1, _PRIME) if op == "/" else 1) % _PRIME


def _by_operation(nodes, which):
    """Group the nodes `which`: for each op index arrays (op, nodes, left operands, right ones)."""
    return [(op, *np.array([(k, *nodes[k][1:]) for k in which if nodes[k][0] == op]).T)
            for op in "+-*/"]


@cache
def _distinct_roots(pattern):
    """Roots of the library, by operation: one of those that swaps of equal numbers join."""
    n, lib = len(pattern), library(len(pattern))
    root_of = {mark: k for k, mark in enumerate(lib.marks[lib.roots.start :])}
    swaps = []  # of neighbours: these make every permutation of equal numbers
    for i in np.flatnonzero(np.diff(pattern) == 0):
        marks = lib.marks[:n]
        marks[i], marks[i + 1] = marks[i + 1], marks[i]
        for op, left, right in lib.nodes[n:]:
            marks.append(_mark(op, marks[left], marks[right]))
        swaps.append(np.array([root_of[mark] for mark in marks[lib.roots.start :]]))
    first = np.arange(len(lib.roots))
    for image in swaps * n:  # as many rounds as a bubble sort, which makes any permutation
        first = np.minimum(first, first[image])
    return _by_operation(lib.nodes, np.unique(first) + lib.roots.start)


def exact_integers(count, largest, target):
    """The array type that holds every product of a puzzle exactly: numpy.int64, else object.

    Takes how many numbers there are, the largest of them (or of their denominators), and the
    target; object stands for Python's own integers, slower and without limit.
    """
    bound = 2 ** (count - 1) * max(int(largest), 1) ** count * max(int(target), 1)
    return np.int64 if bound < 2**62 else object


def blocks(rows, n):
    """Cut `rows` (an array) into pieces to be evaluated at a time for `n` numbers."""
    size = max(400_000 // len(library(n).roots), 1)  # what fits the processor's cache
    return (rows[k : k + size] for k in range(0, len(rows), size))


def hits(nums, target, pattern, whole=False, bottoms=None):
    """Find the expressions that reach the target.

    Parameters
    ----------
    nums, target, pattern : numpy.ndarray (puzzles, n), numpy.ndarray (puzzles,), tuple of int
        The numbers and the targets, of a type that `exact_integers` allows, and which numbers are
        equal: (0, 1, 1) where every row is a < b = b.
    whole, bottoms : bool, numpy.ndarray (puzzles, n)
        Whether all intermediate values have to be integers; denominators, where `nums` are the
        numerators of fractions.

    Yields
    ------
    tuple of numpy.ndarray, shapes (roots,) and (roots, puzzles)
        Some roots of the library, for each operation, and whether they reach the targets.
    """
    n, lib = len(pattern), library(len(pattern))
    top, bottom = np.empty((2, lib.roots.start, len(nums)), nums.dtype)
    top[:n], bottom[:n] = nums.T, 1 if bottoms is None else bottoms.T
    for op, which, i, j in lib.inner:
        a, b = combine(op, (top[i], bottom[i]), (top[j], bottom[j]))
        good = b != 0
        if whole:
            divisor = np.where(good, b, 1)
            good &= a % divisor == 0
            a, b = a // divisor, good.astype(b.dtype)
        # 0/0 stands for "no value", and stays 0/0 whatever is done with it
        top[which], bottom[which] = np.where(good, a, 0), np.where(good, b, 0)
    for op, which, i, j in _distinct_roots(pattern):
        a, b = combine(op, (top[i], bottom[i]), (top[j], bottom[j]))
        yield which, (a == target * b) & (b != 0)


def _checked(nums, target, most):
    """A puzzle's sorted numbers, target and pattern (as in `hits`), or a ValueError."""
    for x in (*nums, target):
        if not isinstance(x, (int, np.integer)) or isinstance(x, bool) or x < 0:
            raise ValueError(f"numbers {list(nums)}, target {target!r}: {x!r} is not a whole number"
                             " of 0 or more; give the numbers and the target as such")
    if not 2 <= len(nums) <= most:
        raise ValueError(f"numbers {list(nums)}: there are {len(nums)}, this takes 2 to {most}")
    nums = sorted(map(int, nums))
    return nums, int(target), tuple(map(nums.index, nums))


def label(puzzles, progress=True):
    """Solve every puzzle of a table.

    Parameters
    ----------
    puzzles, progress : pandas.DataFrame, bool
        Columns `nums` (2 to 5 non-negative integers a row) and `target`; show a progress bar.

    Returns
    -------
    pandas.DataFrame
        A copy with the columns `solvable` (bool), `needs_mul_div` (bool: no solution with + and -
        only; also True where there is none at all) and `n_solutions` (int).
    """
    from tqdm.auto import tqdm

    alike = {}
    for row, puzzle in enumerate(zip(puzzles["nums"], puzzles["target"], strict=True)):
        nums, target, pattern = _checked(*puzzle, MOST_NUMBERS)
        alike.setdefault(pattern, []).append((row, target, *nums))
    total, additive = np.zeros(len(puzzles), np.int64), np.zeros(len(puzzles), bool)
    with tqdm(total=len(puzzles), disable=not progress, desc="solving", unit_scale=True) as bar:
        for pattern, found in alike.items():
            largest, target = max(x[-1] for x in found), max(x[1] for x in found)
            table = np.array(found, exact_integers(len(pattern), largest, target))
            rows, target, nums = table[:, 0].astype(int), table[:, 1], table[:, 2:]
            signs = np.array(list(product((1, -1), repeat=len(pattern))))  # with + and - only
            additive[rows] = (nums @ signs.T == target[:, None]).any(axis=1)
            for block in blocks(np.arange(len(rows)), len(pattern)):
                for _, valid in hits(nums[block], target[block], pattern):
                    total[rows[block]] += np.count_nonzero(valid, axis=0)
                bar.update(len(block))
    return puzzles.assign(solvable=total > 0, needs_mul_div=~additive, n_solutions=total)


def solutions(nums, target):
    """Every distinct solution of one puzzle.

    Parameters
    ----------
    nums, target : sequence of int, int
        2 to 5 non-negative integers, each of which is to be used once, and the value to reach.

    Returns
    -------
    list of str
        For instance ``"7 * (8 - 6)"``; whole intermediate values and few parentheses come first.
    """
    return [text for _, text in sorted(_search(*_checked(nums, target, MOST_NUMBERS)))]


def solve(nums, target):
    """One solution of a puzzle, the first of `solutions`, or None; of six numbers, too.

    Of six it is one with whole intermediate values where there is one, not always the simplest.
    """
    nums, target, _ = _checked(nums, target, MOST_NUMBERS + 1)
    if len(nums) <= MOST_NUMBERS:
        return next(iter(solutions(nums, target)), None)
    # of six numbers some two meet first: try each such pair as one number of a puzzle of five
    nums, rests, best = nums[::-1], {}, []
    for (i, a), (j, b) in combinations(enumerate(nums), 2):
        rests[a, b] = rests[b, a] = nums[:i] + nums[i + 1 : j] + nums[j + 1 :]
    for op, ((a, b), rest) in product("+-*/", rests.items()):
        if (op in "-/" or a >= b) and (op, b) != ("/", 0):
            best = sorted([*best, *_search([(op, a, b), *rest], target, tuple(range(5)))])[:1]
            if best and not best[0][0][0]:  # whole: good enough
                break
    return best[0][1] if best else None


def _search(leaves, target, pattern):
    """Yield the solutions for `leaves`, numbers or trees, as (rank, text): simple ones rank low."""
    n, lib = len(leaves), library(len(leaves))
    values = [(sign * value).as_integer_ratio() for _, value, sign, _ in map(_write, leaves)]
    kind = exact_integers(n, max(abs(x) for pair in values for x in pair), target)
    tops, bottoms = np.array([values], kind).transpose(2, 0, 1)

    def tree(node):
        op, i, j = lib.nodes[node]
        return (op, tree(i), tree(j)) if op else leaves[node]

    for which, valid in hits(tops, np.array([target], kind), pattern, bottoms=bottoms):
        for node in which[valid[:, 0]]:
            text, _, sign, whole = _write(tree(node))
            if sign < 0:  # 0, as a product: minus the tree is another expression
                text = _write(tree(node), flip=False)[0]
            yield (not whole, text.count("("), "/" in text, "*" in text, len(text)), text


def _write(tree, flip=True):
    """Write a tree with as few parentheses as it takes, and with `flip` no part of it negative.

    Returns (text, its value, sign, whole): the tree is `sign`, 1 or -1, times the text; `whole`
    tells whether every intermediate value is an integer.
    """
    if not isinstance(tree, tuple):
        return str(tree), Fraction(tree), 1, True
    join, split = "+-" if tree[0] in "+-" else "*/"
    chain, parts, sign, whole = [(1, tree)], [], 1, True
    while chain:
        way, part = chain.pop()  # `way` is -1 where the part is subtracted or divided by
        if isinstance(part, tuple) and part[0] in (join, split):
            chain += (way, part[1]), (way if part[0] == join else -way, part[2])
            continue
        text, value, part_sign, part_whole = _write(part, flip)
        whole = whole and part_whole
        if join == "+":
            way *= part_sign
        else:
            sign *= part_sign
            text = f"({text})" if isinstance(part, tuple) else text
        parts.append((way, value, text))
    total = (sum(way * value for way, value, _ in parts) if join == "+" else
             prod(value**way for way, value, _ in parts))
    if flip and (total < 0 or all(way < 0 for way, _, _ in parts)):  # sums only
        sign, total, parts = -1, -total, [(-way, value, text) for way, value, text in parts]
    parts.sort(key=lambda part: (-part[0], -part[1], part[2]))
    text = " ".join(f"{join if way > 0 else split} {text}" for way, _, text in parts)
    return text[2:], total, sign, whole and total.denominator == 1
