"""All expressions of a few numbers, built once and evaluated exactly for thousands of puzzles.

Two expressions are the same when they are the same rational function of the given numbers, equal
numbers being interchangeable. So ``a - (b - c)`` is ``a - b + c``, while ``5 + 3 - 3`` and
``5 * 3 / 3`` are two.

Division by zero: every product is held as one fraction, numerators first (``a / (b / c)`` as
``a * c / b``). An expression is valid when this form divides by nothing that is zero, which is so
exactly when any of its equivalent forms avoids it.
"""

import random
from functools import cache
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np

MOST_NUMBERS = 5  # there are 27,142 expressions of five numbers and 793,002 of six
_PRIME = 2**61 - 1
_BLOCK = 400_000  # expressions x puzzles evaluated at a time: fits the processor's cache


def _combine(op, left, right):
    """Apply `op` to two fractions: pairs (numerator, denominator) of integers or arrays."""
    (a, b), (c, d) = left, right
    if op == "+":
        return a * d + c * b, b * d
    if op == "-":
        return a * d - c * b, b * d
    return (a * c, b * d) if op == "*" else (a * d, b * c)


@cache
def library(n):
    """All inequivalent expressions of `n` labelled numbers.

    Two are taken as equal when they agree at a random point modulo a large prime; with five
    numbers the probability of any false match is below 1e-8.

    Parameters
    ----------
    n : int
        How many numbers, 2 to 5.

    Returns
    -------
    SimpleNamespace
        `nodes`, a list of ``(op, left, right)`` whose operands are earlier nodes (the first `n`
        are the numbers themselves, with op ""); `roots`, the range of nodes that use all numbers,
        6, 68, 1170 and 27142 of them (OEIS A140606); `marks`, each node's value at the random
        point; `additive`, one bool a root, + and - only; `levels`, the inner nodes as index arrays
        (op, nodes, left, right), operands first.
    """
    if not 2 <= n <= MOST_NUMBERS:
        raise ValueError(f"expressions of {n} numbers are not listed: use 2 to {MOST_NUMBERS}")
    rng = random.Random(0)
    nodes, marks = [("", i, i) for i in range(n)], [rng.randrange(1, _PRIME) for _ in range(n)]
    using = {1 << i: [i] for i in range(n)}  # the numbers used, as bits -> nodes
    starts = []
    for size in range(2, n + 1):
        starts.append(len(nodes))
        for chosen in combinations(range(n), size):
            mask = sum(1 << i for i in chosen)
            seen = {}
            for part in (part for part in range(1, mask) if part & mask == part):
                for op, i, j in product("+-*/", using[part], using[mask ^ part]):
                    # one fraction a product: an operand of * or / is never itself a quotient
                    quotients = op in "*/" and "/" in (nodes[i][0], nodes[j][0])
                    if quotients or (op in "+*" and i > j):
                        continue
                    top, bottom = _combine(op, (marks[i], 1), (marks[j], 1))
                    mark = top * (pow(bottom, -1, _PRIME) if op == "/" else 1) % _PRIME
                    seen.setdefault(mark, (op, i, j))
            using[mask] = range(len(nodes), len(nodes) + len(seen))
            nodes += seen.values()
            marks += seen
    additive = [True] * n
    for op, i, j in nodes[n:]:
        additive.append(op in "+-" and additive[i] and additive[j])
    ops, left, right = (np.array(column) for column in zip(*nodes, strict=True))
    levels = []
    for first, last in zip(starts, starts[1:], strict=False):
        for op in "+-*/":
            which = first + np.flatnonzero(ops[first:last] == op)
            levels.append((op, which, left[which], right[which]))
    return SimpleNamespace(
        nodes=nodes, roots=range(starts[-1], len(nodes)), marks=marks, levels=levels,
        additive=np.array(additive[starts[-1]:]), ops=ops, left=left, right=right,
    )


@cache
def _distinct_roots(pattern):
    """Roots of the library, grouped by operation: one of those that swaps of equal numbers join.

    `pattern` tells which of the sorted numbers are equal: (0, 1, 1) for a < b = b.
    """
    n = len(pattern)
    lib = library(n)
    roots = np.array(lib.roots)
    root_of = {mark: k for k, mark in enumerate(lib.marks[roots[0]:])}
    swaps = []  # of neighbours: these make every permutation of equal numbers
    for i in np.flatnonzero(np.diff(pattern) == 0):
        values = [(mark, 1) for mark in lib.marks[:n]]
        values[i], values[i + 1] = values[i + 1], values[i]
        for op, left, right in lib.nodes[n:]:
            pair = _combine(op, values[left], values[right])
            values.append((pair[0] % _PRIME, pair[1] % _PRIME))
        marks = (a * pow(b, -1, _PRIME) % _PRIME for a, b in values[roots[0]:])
        swaps.append(np.array([root_of[mark] for mark in marks]))
    group = np.arange(len(roots))
    while any((group[image] < group).any() for image in swaps):
        for image in swaps:
            group = np.minimum(group, group[image])
    roots = roots[np.unique(group)]
    by_op = ((op, roots[lib.ops[roots] == op]) for op in "+-*/")
    return [(op, which, lib.left[which], lib.right[which]) for op, which in by_op if len(which)]


def exact_integers(count, largest, target):
    """The array type that holds every product of a puzzle exactly.

    Parameters
    ----------
    count, largest, target : int
        How many numbers, the largest of them (or of their denominators), and the target.

    Returns
    -------
    type
        numpy.int64, else object: Python's own integers, slower and without limit.
    """
    bound = 2 ** (count - 1) * max(int(largest), 1) ** count * max(int(target), 1)
    return np.int64 if bound < 2**62 else object


def blocks(rows, n):
    """Cut `rows` (an array) into pieces to be evaluated at a time for `n` numbers."""
    size = max(_BLOCK // len(library(n).roots), 1)
    return (rows[k : k + size] for k in range(0, len(rows), size))


def hits(nums, target, pattern, whole=False, bottoms=None):
    """Find the expressions that reach the target.

    Parameters
    ----------
    nums : numpy.ndarray, shape (puzzles, n)
        The numbers, of a type that `exact_integers` allows.
    target : numpy.ndarray, shape (puzzles,)
        The targets.
    pattern : tuple of int
        Which numbers are equal, e.g. (0, 1, 1) where every row is a < b = b.
    whole : bool
        Accept only expressions whose intermediate values are all integers.
    bottoms : numpy.ndarray, shape (puzzles, n), optional
        Denominators, where `nums` are the numerators of fractions.

    Yields
    ------
    tuple of numpy.ndarray
        For each operation the roots of the library, (roots,), and which of them reach the target,
        bool (roots, puzzles).
    """
    n = len(pattern)
    lib = library(n)
    top = np.empty((lib.roots.start, len(nums)), nums.dtype)
    bottom = np.ones_like(top)
    top[:n] = nums.T
    if bottoms is not None:
        bottom[:n] = bottoms.T
    for op, which, i, j in lib.levels:
        a, b = _combine(op, (top[i], bottom[i]), (top[j], bottom[j]))
        good = b != 0
        if whole:
            divisor = np.where(good, b, 1)
            good &= a % divisor == 0
            a, b = a // divisor, good.astype(b.dtype)
        # 0/0 stands for "no value", and stays 0/0 whatever is done with it
        top[which], bottom[which] = np.where(good, a, 0), np.where(good, b, 0)
    for op, which, i, j in _distinct_roots(pattern):
        a, b = _combine(op, (top[i], bottom[i]), (top[j], bottom[j]))
        yield which, (a == target * b) & (b != 0)
