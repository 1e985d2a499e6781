"""The generator, the list of all puzzles, and the shipped files."""

import time
from itertools import combinations_with_replacement

import pandas as pd
import pyarrow.parquet as pq
import pytest

from helpers.paths import DATA
from helpers.puzzles import canonical, leakage
from helpers.solver import label, solve
from lab import puzzle_sets
from lab.puzzle_sets import build, enumerate_puzzles, generate, split_by_numbers

FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def forms(puzzles):
    return [canonical(*row) for row in zip(puzzles["nums"], puzzles["target"], strict=True)]


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


class Listed(Exception):
    """A domain would be listed whole."""


@pytest.fixture
def listing(monkeypatch):
    def grid(*domain):
        raise Listed

    monkeypatch.setattr(puzzle_sets, "_grid", grid)
    return monkeypatch


def test_the_size_guard_of_generate(listing):
    """A small domain is listed, a large one is drawn from: by its rows, and by its work."""
    small = {"counts": 2, "low": 7, "high": 7, "target_low": 0}  # a row for each target
    with pytest.raises(Listed):
        generate(1, target_high=999_999, **small)
    with pytest.raises(ValueError, match="of 99 distinct .* widen"):  # 0, 1, 14 and 49 are there
        generate(99, target_high=1_000_000, **small)
    work = 20 * 6  # targets x expressions of two numbers
    listing.setattr(puzzle_sets, "_WORK", work)
    with pytest.raises(Listed):
        generate(1, target_high=19, **small)
    listing.setattr(puzzle_sets, "_WORK", work - 1)
    assert len(generate(1, target_high=19, **small)) == 1
    with pytest.raises(ValueError, match="widen"):  # six numbers are never listed
        generate(1, counts=6, low=1, high=1, target_low=50, target_high=50)


def test_the_size_guard_of_enumerate_puzzles(listing):
    with pytest.raises(Listed):
        enumerate_puzzles(2, 7, 7, 1, 5_000_000)
    with pytest.raises(ValueError, match="5,000,001 puzzles of 2 numbers are too many"):
        enumerate_puzzles(2, 7, 7, 0, 5_000_000)
    listing.setattr(puzzle_sets, "_WORK", 12)  # 20 targets x 6 expressions
    with pytest.raises(Listed):
        enumerate_puzzles(2, 7, 7, 1, 20)
    with pytest.raises(ValueError, match="21 puzzles"):
        enumerate_puzzles(2, 7, 7, 0, 20)


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


def test_the_shipped_files_are_what_the_command_makes(tmp_path):
    build(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    shipped = sorted((DATA / "puzzles").glob("*.parquet"))
    assert [path.name for path in shipped] == made
    assert sum(path.stat().st_size for path in shipped) < 1_500_000
    for path in shipped:
        assert pq.read_table(path).equals(pq.read_table(tmp_path / path.name)), path.name
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


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


def test_the_split_is_the_same_on_every_machine():
    """Rows and sums of the targets: pinned, as the shipped parts and caches depend on them."""
    puzzles = label(generate(400, low=1, high=9, seed=5), progress=False)
    parts = split_by_numbers(puzzles, FRACTIONS, seed=1)
    assert {name: (len(part), part["target"].sum()) for name, part in parts.items()} == {
        "train": (277, 10496), "validation": (42, 1718), "test": (81, 2929)}


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}, {"a": 1, "b": 0}])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="share"):
        split_by_numbers(generate(5), fractions)
