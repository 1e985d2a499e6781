"""The generator, the list of all puzzles, and splits that cannot leak."""

import time
from itertools import combinations_with_replacement

import pandas as pd
import pytest

from helpers.paths import ROOT
from helpers.puzzles import canonical, enumerate_puzzles, generate, leakage, split_by_numbers
from helpers.solver import label, solve

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def forms(puzzles):
    return [canonical(*row) for row in zip(puzzles["nums"], puzzles["target"], strict=True)]


def test_canonical_ignores_the_order_only():
    assert canonical([3, 1, 2], 6) == canonical([2, 3, 1], 6) == ((1, 2, 3), 6)
    assert canonical([3, 1, 2], 6) != canonical([3, 1, 2], 5)


def test_generated_puzzles_are_distinct_solvable_and_in_range():
    puzzles = generate(1000, seed=3)
    assert list(puzzles.columns) == ["nums", "target"] and len(puzzles) == 1000
    assert puzzles["nums"].map(len).value_counts().to_dict() == {3: 500, 4: 500}
    assert len(set(forms(puzzles))) == 1000
    assert puzzles["target"].between(10, 100).all()
    assert puzzles["nums"].explode().between(1, 99).all()
    assert any(nums != sorted(nums) for nums in puzzles["nums"])
    labelled = label(puzzles, progress=False)
    assert labelled["solvable"].all()
    plain = 1 - labelled["needs_mul_div"].groupby(puzzles["nums"].map(len)).mean()
    assert abs(plain[3] - 0.713) < 0.08 and abs(plain[4] - 0.347) < 0.08  # as in the public set


@pytest.mark.parametrize("count", [2, 5, 6])
def test_other_counts_and_ranges(count):
    puzzles = generate(20, counts=(count,), low=5, high=30, target_low=1, target_high=200, seed=1)
    assert len(puzzles) == len(set(forms(puzzles))) == 20
    for nums, target in zip(puzzles["nums"], puzzles["target"], strict=True):
        assert len(nums) == count and min(nums) >= 5 and max(nums) <= 30 and 1 <= target <= 200
        assert solve(nums, target) is not None


def test_the_seed_decides():
    assert generate(50, seed=1).equals(generate(50, seed=1))
    assert not generate(50, seed=1).equals(generate(50, seed=2))


@pytest.mark.parametrize("arguments", [
    {"counts": 2, "low": 1, "high": 3, "target_low": 1, "target_high": 9},
    {"counts": (3,), "low": 5, "high": 5, "target_low": 1, "target_high": 200},
    {"counts": 4, "low": 10**9, "high": 10**12},
    {"counts": 6, "low": 1, "high": 2, "target_low": 1, "target_high": 3},
    {"counts": 2, "low": 50, "high": 60, "target_low": 30, "target_high": 40},
])
def test_a_domain_that_is_too_small_says_so_soon(arguments):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="widen the ranges or ask for fewer"):
        generate(10_000, **arguments)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("arguments", [
    {"n_puzzles": 0}, {"n_puzzles": 1.5}, {"counts": ()}, {"counts": (1, 3)}, {"counts": (7,)},
    {"counts": (3, 3)}, {"low": 9, "high": 1}, {"low": -1}, {"high": 2.5},
    {"target_low": 50, "target_high": 40}, {"counts": "34"},
])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="give|say|ask|name"):
        generate(**{"n_puzzles": 5, **arguments})


def test_a_whole_small_domain():
    puzzles = enumerate_puzzles(3, 1, 5, 1, 20)
    assert len(set(forms(puzzles))) == len(puzzles)
    expected = {(nums, target) for nums in combinations_with_replacement(range(1, 6), 3)
                for target in range(1, 21) if solve(nums, target)}
    assert set(forms(puzzles)) == expected
    with pytest.raises(ValueError, match="narrow the ranges"):
        enumerate_puzzles(4, 1, 99, 10, 100)
    everything = generate(len(expected), counts=3, low=1, high=5, target_low=1, target_high=20)
    assert set(forms(everything)) == expected


def test_the_cpu_set_is_quick():
    start = time.perf_counter()
    puzzles = enumerate_puzzles(3, 1, 12, 1, 60)
    assert len(puzzles) == 4074 and time.perf_counter() - start < 10


def test_the_split_is_grouped_stratified_and_seeded():
    puzzles = label(generate(1200, low=1, high=15, seed=5), progress=False)
    parts = split_by_numbers(puzzles, FRACTIONS, seed=1)
    assert list(parts) == list(FRACTIONS)
    assert sorted(form for part in parts.values() for form in forms(part)) == sorted(forms(puzzles))
    for name, part in parts.items():
        assert abs(len(part) / len(puzzles) - FRACTIONS[name]) < 0.01
        assert abs(part["needs_mul_div"].mean() - puzzles["needs_mul_div"].mean()) < 0.03
        assert abs((part["nums"].map(len) == 3).mean() - 0.5) < 0.03
        others = pd.concat([other for key, other in parts.items() if key != name])
        assert leakage(others, part) == {"puzzles": 0, "multisets": 0}
    again = split_by_numbers(puzzles.drop(columns="needs_mul_div"), FRACTIONS, seed=1)
    assert [forms(part) for part in again.values()] == [forms(part) for part in parts.values()]
    assert forms(split_by_numbers(puzzles, FRACTIONS, seed=2)["test"]) != forms(parts["test"])


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="share"):
        split_by_numbers(generate(5), fractions)


def test_leakage_counts_other_orders_and_other_targets():
    train = pd.DataFrame({"nums": [[1, 2, 3], [4, 5, 6]], "target": [6, 15]})
    test = pd.DataFrame({"nums": [[3, 2, 1], [6, 5, 4], [7, 8, 9], [9, 9, 9]],
                         "target": [6, 7, 8, 9]})
    assert leakage(train, test) == {"puzzles": 0.25, "multisets": 0.5}
    with pytest.raises(ValueError, match="empty"):
        leakage(train, test[:0])


def test_the_usual_splits_of_the_public_set_leak():
    if not PUBLIC.exists():
        pytest.skip(f"needs a copy of the public set at {PUBLIC.parent.name}/{PUBLIC.name}")
    puzzles = pd.read_parquet(PUBLIC)
    tinyzero = leakage(puzzles[:327_680], puzzles[327_680 : 327_680 + 1024])
    assert {key: round(share, 3) for key, share in tinyzero.items()} == {
        "puzzles": 0.104, "multisets": 0.331}
    last = leakage(puzzles[:-128], puzzles[-128:])
    assert {key: round(share, 3) for key, share in last.items()} == {
        "puzzles": 0.117, "multisets": 0.375}
    drawn = puzzles.sample(500, random_state=0)
    shares = leakage(puzzles.drop(drawn.index), drawn)
    assert 0.12 < shares["puzzles"] < 0.22 and 0.36 < shares["multisets"] < 0.5
    keys = forms(puzzles)
    assert len(keys) - len(set(keys)) == 40_794 and len({nums for nums, _ in keys}) == 358_636
