"""Loading: where a table came from is said, a broken one is refused, the shipped files are ours."""

import hashlib
import time
import urllib.error

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from helpers import dataset
from helpers.paths import ROOT
from helpers.puzzles import leakage

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"
GOOD = {"nums": [[1, 2, 3], [4, 5, 6, 7]], "target": [6, 22]}


@pytest.fixture
def public():
    if not PUBLIC.exists():
        pytest.skip(f"needs a copy of the public set at {PUBLIC.parent.name}/{PUBLIC.name}")
    return PUBLIC


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.delenv("COUNTDOWN_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset.urllib.request, "urlopen", refuse)


def write(path, **columns):
    pq.write_table(pa.table({**GOOD, **columns}), path)
    return path


def test_without_a_network_the_shipped_set_is_used_at_once(no_network, capsys):
    start = time.perf_counter()
    puzzles = dataset.load_puzzles()
    assert time.perf_counter() - start < 8
    said = capsys.readouterr().out
    assert "could not be reached" in said and "COUNTDOWN_DATA" in said
    assert f"Puzzles: {len(puzzles):,} rows, the set shipped as data/puzzles/3to4" in said
    assert set(puzzles["nums"].map(len)) == {3, 4}


def test_the_hub_asked_for_by_name_is_an_error_without_a_network(no_network, monkeypatch):
    with pytest.raises(RuntimeError, match="check the network, or set COUNTDOWN_DATA"):
        dataset.load_puzzles("hub")
    monkeypatch.setenv("COUNTDOWN_DATA", "hub")
    with pytest.raises(RuntimeError, match="check the network"):
        dataset.load_puzzles()


def test_the_environment_variable_chooses(no_network, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COUNTDOWN_DATA", str(write(tmp_path / "mine.parquet")))
    puzzles = dataset.load_puzzles()
    assert puzzles["nums"].tolist() == GOOD["nums"]
    said = capsys.readouterr().out
    assert "mine.parquet" in said and "not the known public set" in said
    assert str(tmp_path) not in said and said.count("\n") == 1
    monkeypatch.setenv("COUNTDOWN_DATA", "shipped")
    assert len(dataset.load_puzzles()) > 20_000


def test_the_public_copy_is_recognised(public, monkeypatch, capsys, tmp_path):
    assert hashlib.sha256(public.read_bytes()).hexdigest() == dataset.SHA256
    puzzles = dataset.load_puzzles(public)
    assert len(puzzles) == dataset.ROWS and isinstance(puzzles["nums"][0], list)
    said = capsys.readouterr().out
    assert "490,364 rows" in said and f"the public set {dataset.REPO}" in said and "not" not in said
    monkeypatch.setattr(dataset, "download_public", lambda: public)
    assert len(dataset.load_puzzles("hub")) == dataset.ROWS
    said = capsys.readouterr().out
    assert "from the Hub" in said and "NOT" not in said
    monkeypatch.setattr(dataset, "download_public", lambda: write(tmp_path / "changed.parquet"))
    dataset.load_puzzles("hub")
    assert "Puzzles: 2 rows" in (said := capsys.readouterr().out)
    assert "NOT the known file of 490,364 rows" in said


def test_broken_files_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"):
        dataset.load_puzzles(tmp_path / "absent.parquet")
    whole = write(tmp_path / "whole.parquet").read_bytes()
    for name, data in (("cut", whole[:-20]), ("empty", b""), ("text", b"nums,target\n")):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.parquet is not a whole Parquet file.*again"):
            dataset.load_puzzles(path)
    with pytest.raises(FileNotFoundError, match="python -m lab.puzzle_sets"):
        dataset.load_split("cpu", "tset")


@pytest.mark.parametrize("columns, message", [
    ({"nums": [[1, 2, 3], []]}, "1 rows with an empty list of numbers .row 1"),
    ({"nums": [[1, 2, 3], [4]]}, "1 numbers, not 2 to 6"),
    ({"nums": [[1, 2, 3], [1] * 7]}, "7 numbers, not 2 to 6"),
    ({"nums": [[1, -2, 3], [4, 5]]}, "negative or not an integer .row 0"),
    ({"nums": [[1.0, 2.5], [4.0, 5.0]]}, "negative or not an integer"),
    ({"nums": [[0.0, 2.0], [4.0, 5.0]]}, "negative or not an integer"),
    ({"nums": [["1", "2"], ["3", "4"]]}, "negative or not an integer"),
    ({"nums": [1, 2]}, "not a list"),
    ({"nums": [[1, 2], None]}, "null value .row 1"),
    ({"nums": [[1, 2], [3, None]]}, "null value .row 1"),
    ({"target": [6, None]}, "1 rows with a null value .row 1"),
    ({"target": [6, -22]}, "target that is negative"),
    ({"target": [6.5, 22.0]}, "target that is negative or not an integer"),
    ({"target": [6, 23_000]}, "1 rows with a target that cannot be reached .row 1"),
])
def test_bad_rows_are_named(tmp_path, columns, message):
    path = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=f"bad.parquet: .*{message}.*nothing was dropped"):
        dataset.load_puzzles(path)
    if "cannot" not in message:
        with pytest.raises(ValueError, match=f"mine: .*{message}"):
            dataset.validate(pd.DataFrame({**GOOD, **columns}), "mine")


def test_missing_columns_and_rows_are_named():
    with pytest.raises(ValueError, match=r"mine: no column target among \['nums', 'goal'\]"):
        dataset.validate(pd.DataFrame(GOOD).rename(columns={"target": "goal"}), "mine")
    with pytest.raises(ValueError, match="no rows"):
        dataset.validate(pa.table(GOOD).slice(0, 0), "mine")


def test_validate_keeps_good_tables_as_they_are():
    frame = pd.DataFrame({**GOOD, "note": ["a", "b"]}, index=[5, 9])
    before = frame.copy(deep=True)
    checked = dataset.validate(frame, "mine", check_solvable=True)
    assert frame.equals(before)
    assert checked.reset_index(drop=True).to_dict("list") == {**GOOD, "note": ["a", "b"]}
    arrays = pd.DataFrame({"nums": [np.array([1, 2, 3])], "target": [6]})
    assert dataset.validate(arrays, "mine")["nums"].tolist() == [[1, 2, 3]]
    six = pd.DataFrame({"nums": [[1, 1, 1, 1, 1, 1], [1, 2]], "target": [97, 3]})
    with pytest.raises(ValueError, match="1 rows with a target that cannot be reached .row 0"):
        dataset.validate(six, "mine", check_solvable=True)


@pytest.mark.parametrize("name", ["cpu", "3to4"])
def test_the_shipped_splits_do_not_leak(name):
    parts = {part: dataset.load_split(name, part) for part in dataset.PARTS}
    for part, puzzles in parts.items():
        assert puzzles["solvable"].all() and (puzzles["n_solutions"] > 0).all()
        others = pd.concat([other for key, other in parts.items() if key != part])
        assert leakage(others, puzzles) == {"puzzles": 0, "multisets": 0}
        if name == "3to4":
            assert abs((puzzles["nums"].map(len) == 3).mean() - 0.5) < 0.01
    assert len(parts["test"]) >= 800


def test_the_shipped_puzzles_are_not_the_public_ones(public):
    known = pd.read_parquet(public)
    for part in dataset.PARTS:
        ours = dataset.load_split("3to4", part)
        # four numbers can be drawn in so many ways that few are met twice by chance
        assert leakage(known, ours[ours["nums"].map(len) == 4])["puzzles"] < 0.05


def test_the_puzzle_in_the_prompt_is_not_tested_on():
    from helpers.prompts import EXAMPLE

    for name in ("cpu", "3to4"):
        for part in dataset.PARTS:
            rows = dataset.load_split(name, part)
            shown = (tuple(sorted(EXAMPLE["nums"])), EXAMPLE["target"])
            pairs = zip(rows["nums"], rows["target"], strict=True)
            assert shown not in {(tuple(sorted(nums)), int(target)) for nums, target in pairs}
