"""The solver against a brute force written without it, against published counts, and for speed."""

import random
import re
import time
from fractions import Fraction
from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from helpers.arithmetic import evaluate
from helpers.paths import ROOT
from helpers.solver import blocks, exact_integers, hits, label, library, solutions, solve
from lab.puzzle_sets import solvable_whole

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"


def brute_force(nums, target):
    """{function: (solved with + and - only?, with whole values only?)}: pairs of numbers joined in
    every order with Fractions; each value carries its function, known by its values at a random
    point, one for each way to permute the equal numbers."""
    rng = random.Random(1)
    point = [Fraction(rng.randrange(10**6, 10**7)) for _ in nums]
    orders = [order for order in permutations(range(len(nums)))
              if all(nums[i] == nums[k] for i, k in enumerate(order))]
    found = {}

    def join(items):
        if len(items) == 1:
            value, function, plain, whole = items[0]
            if value == target:
                key = min(function)
                was = found.get(key, (False, False))
                found[key] = (was[0] or plain, was[1] or whole)
            return
        for i in range(len(items)):
            for k in range(len(items)):
                if i == k:
                    continue
                (a, f, p, w), (b, g, q, v) = items[i], items[k]
                rest = [item for m, item in enumerate(items) if m not in (i, k)]
                made = [(a - b, [x - y for x, y in zip(f, g, strict=True)], p and q)]
                if i < k:
                    made += [(a + b, [x + y for x, y in zip(f, g, strict=True)], p and q),
                             (a * b, [x * y for x, y in zip(f, g, strict=True)], False)]
                if b != 0:
                    made.append((a / b, [x / y for x, y in zip(f, g, strict=True)], False))
                for value, function, plain in made:
                    whole = w and v and value.denominator == 1
                    join([*rest, (value, function, plain, whole)])

    join([(Fraction(x), [point[order[i]] for order in orders], True, True)
          for i, x in enumerate(nums)])
    return found


def draws():
    rng = random.Random(7)
    puzzles = []
    for low, high, n, times in ((1, 12, 2, 40), (0, 9, 3, 150), (1, 99, 3, 100), (1, 99, 4, 15),
                                (0, 5, 4, 30), (1, 3, 4, 10)):
        for _ in range(times):
            nums = [rng.randint(low, high) for _ in range(n)]
            puzzles.append((nums, rng.randint(0, 3 * high if high < 20 else 100)))
    return [*puzzles, ([5, 5, 5, 5], 5), ([5, 5, 5, 5], 0), ([3, 3, 8, 8], 24), ([0, 0, 0], 0),
            ([4, 4, 7, 3], 28), ([1, 5, 5, 5, 3], 3), ([2, 2, 3, 7, 7], 3), ([0, 3, 3, 2, 9], 0)]


def test_number_of_expressions_is_oeis_a140606():
    assert [len(library(n).roots) for n in (2, 3, 4, 5)] == [6, 68, 1170, 27142]
    with pytest.raises(ValueError, match="2 to 5"):
        library(6)


def test_label_solutions_and_solve_agree_with_brute_force():
    puzzles = draws()
    table = label(pd.DataFrame(puzzles, columns=["nums", "target"]), progress=False)
    zero = repeats = 0
    for (nums, target), row in zip(puzzles, table.itertuples(), strict=True):
        found = brute_force(nums, target)
        assert row.n_solutions == len(found), (nums, target)
        assert row.solvable == bool(found)
        assert row.needs_mul_div == (not any(plain for plain, _ in found.values()))
        whole = any(whole for _, whole in found.values())
        assert solvable_whole(np.array([nums]), np.array([target]))[0] == whole, (nums, target)
        texts = solutions(nums, target)
        assert len(set(texts)) == len(texts) == len(found), (nums, target, texts)
        for text in texts:
            assert evaluate(text) == target
            assert sorted(map(int, re.findall(r"\d+", text))) == sorted(nums)
        assert solve(nums, target) == (texts[0] if texts else None)
        zero += any("- " in text and evaluate(text) == 0 for text in texts)
        repeats += len(set(nums)) < len(nums)
    assert zero and repeats > 50 and table["solvable"].sum() > 60  # the draw tests something


@pytest.mark.parametrize("nums, target, texts", [
    ([1, 1], 1, ["1 * 1", "1 / 1"]),
    ([5, 3, 3], 5, ["5 + 3 - 3", "5 * 3 / 3"]),
    ([9, 4, 2], 7, ["9 + 2 - 4", "9 - 4 / 2"]),
    ([8, 6, 7], 14, ["7 * (8 - 6)"]),
    ([6, 8, 7], 13, []),
    ([1, 2], 3, ["2 + 1"]),
])
def test_what_counts_as_one_solution(nums, target, texts):
    assert solutions(nums, target) == texts


def test_the_sign_of_a_sum_is_written_in_one_way():
    """A sum is turned round where it is negative, or 0 with no positive part; else not."""
    texts = set(solutions([0, 0, 3, 5], 0))
    assert len(texts) == len(brute_force([0, 0, 3, 5], 0)) == 170
    assert {"0 * (3 - 5) - 0", "0 / (3 - 5) - 0"} <= texts  # not the other's text twice
    assert {"0 - (5 - 3) * 0", "0 - 0 / (5 - 3)", "(0 - 0) * (3 - 5)"} <= texts
    assert not {"0 + 0 * (3 - 5)", "(5 - 3) * (0 - 0)"} & texts


def test_undefined_expressions_are_no_solutions():
    # 3 / (2 + 1 / (5 - 5)) would be 0 if one divided by zero
    assert len(brute_force([1, 2, 3, 5, 5], 0)) == len(solutions([1, 2, 3, 5, 5], 0)) > 0
    assert solutions([0, 0], 1) == []


def test_fractions_only_where_they_are_needed():
    assert solve([3, 3, 8, 8], 24) == "8 / (3 - 8 / 3)"
    assert solve([1, 5, 5, 5], 24) == "5 * (5 - 1 / 5)"
    assert not solvable_whole(np.array([[3, 3, 8, 8]]), np.array([24]))[0]


def test_six_numbers_are_exact_and_quick():
    rng = random.Random(3)
    start = time.perf_counter()
    for _ in range(10):
        nums = [rng.randint(1, 99) for _ in range(6)]
        text = solve(nums, 777)
        assert evaluate(text) == 777 and sorted(map(int, re.findall(r"\d+", text))) == sorted(nums)
    assert solve([1, 1, 1, 1, 1, 1], 97) is None
    assert solve([1, 3, 3, 8, 8, 24], 24) is not None
    assert time.perf_counter() - start < 30


def test_huge_numbers_are_exact():
    big = 10**18 + 9
    table = pd.DataFrame({"nums": [[big, big, 3], [big, 2, 1], [2**40, 2**40, 2**16]],
                          "target": [3, 2 * big, 2**16 + 2]})
    assert label(table, progress=False)["n_solutions"].tolist() == [2, 2, 0]
    assert solutions([big, 2, 1], 2 * big - 1) == [f"{big} * 2 - 1"]
    factor = 2**32 + 1
    assert solve([factor, factor], factor**2 % 2**64) is None  # where 64 bits would wrap around
    assert solve([factor, factor], factor**2) == f"{factor} * {factor}"


@pytest.mark.parametrize("count, largest, target, kind", [
    (2, 2**20, 2**20, np.int64), (2, 2**20, 2**21, object), (2, 2**30, 0, np.int64),
    (2, 2**31, 0, object), (3, 2**19, 1, np.int64), (3, 2**20, 1, object), (5, 2**11, 8, object),
    (5, 2**11, 1, np.int64), (2, 0, 2**60, np.int64), (2, 0, 2**61, object),
])
def test_64_bits_are_used_only_where_they_hold_every_product(count, largest, target, kind):
    """The largest is a quotient's numerator: all numbers but one added up, times the others."""
    assert exact_integers(count, largest, target) is kind
    if kind is np.int64:
        nums, goal = np.full((1, count), largest), np.array([target])
        pattern = (0,) * count
        exact = hits(nums.astype(object), goal.astype(object), pattern)
        for (which, found), (same, true) in zip(hits(nums, goal, pattern), exact, strict=True):
            assert which.tolist() == same.tolist() and found.tolist() == true.tolist()


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_blocks_are_all_rows_in_order_and_fit_the_cache(n):
    rows = np.arange(200_003)
    pieces = list(blocks(rows, n))
    assert np.array_equal(np.concatenate(pieces), rows)
    sizes = [len(piece) * len(library(n).roots) for piece in pieces]
    assert 300_000 < sizes[0] <= 400_000 and max(sizes) == sizes[0]


@pytest.mark.parametrize("nums, target", [
    ([1], 1), ([], 1), ([1] * 7, 7), ([1, -2], 3), ([1, 2.0], 3), ([1, 2], -1), ([1, True], 2),
    ([1, "2"], 3),
])
def test_bad_puzzles_are_refused(nums, target):
    with pytest.raises(ValueError, match="whole number|takes 2 to"):
        solve(nums, target)


def test_the_public_set_in_two_minutes(capsys):
    if not PUBLIC.exists():
        pytest.skip(f"needs a copy of the public set at {PUBLIC.parent.name}/{PUBLIC.name}")
    puzzles = pd.read_parquet(PUBLIC)
    start = time.perf_counter()
    table = label(puzzles)
    assert time.perf_counter() - start < 120
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert len(table) == 490_364 and table["solvable"].all()
    nums = table["nums"].map(sorted)
    count = nums.map(len)
    plain = 1 - table["needs_mul_div"].groupby(count).mean()
    assert plain.round(3).to_dict() == {3: 0.713, 4: 0.347}
    repeated = (nums.map(set).map(len) < count).groupby(count).mean()
    assert repeated.round(3).to_dict() == {3: 0.038, 4: 0.056}
    for n in (3, 4):
        rows = count == n
        arrays = np.array(nums[rows].tolist()), table["target"][rows].to_numpy()
        assert solvable_whole(*arrays).all()  # integer intermediates always suffice
