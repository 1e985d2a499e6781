"""Canonical forms, and what leaks."""

import pandas as pd
import pytest

from helpers.paths import ROOT
from helpers.puzzles import canonical, leakage

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"


def test_canonical_ignores_the_order_only():
    assert canonical([3, 1, 2], 6) == canonical([2, 3, 1], 6) == ((1, 2, 3), 6)
    assert canonical([3, 1, 2], 6) != canonical([3, 1, 2], 5)


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
    keys = [canonical(*row) for row in zip(puzzles["nums"], puzzles["target"], strict=True)]
    assert len(keys) - len(set(keys)) == 40_794 and len({nums for nums, _ in keys}) == 358_636
