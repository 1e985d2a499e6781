"""Canonical forms, and splits that cannot leak."""


import pandas as pd
import pytest

from helpers.paths import ROOT
from helpers.puzzles import canonical, leakage, split_by_numbers
from helpers.solver import label
from lab.puzzle_sets import generate

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def forms(puzzles):
    return [canonical(*row) for row in zip(puzzles["nums"], puzzles["target"], strict=True)]


def test_canonical_ignores_the_order_only():
    assert canonical([3, 1, 2], 6) == canonical([2, 3, 1], 6) == ((1, 2, 3), 6)
    assert canonical([3, 1, 2], 6) != canonical([3, 1, 2], 5)


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
