"""The summary of a table, and the recorded summary of the public set."""

import json

import pandas as pd
import pytest

from helpers import dataset
from helpers.paths import DATA, ROOT
from lab.facts import (
    card,
    chance_of_a_guess,
    describe,
    different_expressions,
    main,
    record_facts,
    usual_splits,
)

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"
RECORDED = json.loads((DATA / "public_set_facts.json").read_text(encoding="utf-8"))


def test_a_table_with_known_defects():
    puzzles = pd.DataFrame({
        "nums": [[1, 2, 3], [3, 2, 1], [1, 2, 3], [1, 1, 1, 1]] * 500,
        "target": [6, 6, 7, 90] * 500,
    })
    facts = describe(puzzles)
    assert facts["rows"] == {"rows": 2000, "rows of 3 numbers": 1500, "rows of 4 numbers": 500}
    assert facts["solvability"] == {"solvable": 0.75,
                                    "solvable with whole intermediate values": 0.75}
    assert facts["repeats"] == {"rows that repeat an earlier row exactly": 1996,
                                "rows that repeat an earlier puzzle": 1997,
                                "distinct multisets of numbers": 2}
    assert facts["difficulty"]["3 numbers: need * or /"] == 0.33333  # the target 7
    assert facts["difficulty"]["4 numbers: need * or /"] == 1
    assert set(facts["leakage"].values()) == {1.0}
    assert facts["ranges"]["largest target"] == 90
    assert facts["ranges"]["targets of 22 or less"] == 0.75


def test_the_usual_splits_cut_where_they_say():
    puzzles = pd.DataFrame({"nums": [[1, 2, 3]] * dataset.ROWS, "target": range(dataset.ROWS)})
    sizes = {name: (len(train), test["target"].min(), len(test))
             for name, (train, test) in usual_splits(puzzles).items()}
    assert sizes["first / next 1,024"] == (327_680, 327_680, 1024)
    assert sizes["all but / last 128"] == (490_236, 490_236, 128)
    assert sizes["all but / random 500"][::2] == (489_864, 500)
    for train, test in usual_splits(puzzles).values():
        assert not set(train.index) & set(test.index)
    twice = pd.concat([puzzles[:1500], puzzles[:1500]])  # every label of the index stands twice
    for train, test in usual_splits(twice).values():
        assert len(train) + len(test) == 3000 and not set(train.index) & set(test.index)
    with pytest.raises(ValueError, match="1999 puzzles are too few.*load"):
        usual_splits(puzzles[:1999])


def test_the_recorded_facts_are_those_of_the_public_set(tmp_path):
    if not PUBLIC.exists():
        pytest.skip(f"needs a copy of the public set at {PUBLIC.parent.name}/{PUBLIC.name}")
    record_facts(PUBLIC, tmp_path / "facts.json")
    again = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert again.pop("command") == "python -m lab.facts"
    assert {**again, "date": ""} == {k: v for k, v in {**RECORDED, "date": ""}.items()
                                     if k != "command"}
    assert again["facts"]["rows"]["rows"] == dataset.ROWS


def test_only_the_public_set_is_recorded(tmp_path):
    other = DATA / "puzzles" / "3to4-test.parquet"
    with pytest.raises(ValueError, match="3to4-test.parquet is not the known public set"):
        record_facts(other, tmp_path / "facts.json")
    assert not (tmp_path / "facts.json").exists()


@pytest.mark.parametrize("pattern, n", [((0, 1, 2), 68), ((0, 1, 2, 3), 1170), ((0, 1), 6)])
def test_different_numbers_have_all_expressions(pattern, n):
    assert different_expressions(pattern) == n


def test_equal_numbers_leave_fewer_expressions():
    # a + a, a - a, a * a, a / a: two of the six are written twice
    assert different_expressions((0, 0)) == 4
    labelled = pd.DataFrame({"nums": [[4, 4], [4, 3]], "n_solutions": [1, 1]})
    assert chance_of_a_guess(labelled).tolist() == [1 / 4, 1 / 6]


def test_the_card_has_a_column_for_each_set_and_record():
    puzzles = pd.DataFrame({"nums": [[1, 2, 3]] * 2000, "target": [6] * 2000})
    rows = [line.split(" | ") for line in card({"mine": puzzles}, {
        "public": RECORDED["facts"]}).splitlines()]
    table = {row[0].lstrip("| "): [cell.rstrip(" |") for cell in row[1:]] for row in rows}
    assert table["rows"] == ["2,000", "490,364"]
    assert table["3 numbers: a random expression is right"] == ["4.41 %", "1.6 %"]  # 3 of 68
    assert table["rows of 4 numbers"] == ["", "249,732"]


def test_the_card_of_the_shipped_sets_writes_no_file(capsys, monkeypatch):
    monkeypatch.setattr("lab.facts.record_facts", None)
    main(["--card"])
    shown = capsys.readouterr().out
    assert "| rows | 4,073 | 23,000 | 490,364 |" in shown
    assert "3 random numbers: 3.6% solvable" in shown
