"""Loading: where a table came from is said, a broken one is refused, the shipped files are ours."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from helpers import dataset
from helpers.paths import DATA, ROOT
from helpers.profiles import PROFILES
from helpers.prompts import EXAMPLE
from helpers.puzzles import canonical, leakage
from helpers.training import prompt_dataset

PUBLIC = ROOT.parent / "shared" / "data" / "Countdown-Tasks-3to4.parquet"
GOOD = {"nums": [[1, 2, 3], [4, 5, 6, 7]], "target": [6, 22]}
SHOWN = {canonical(EXAMPLE["nums"], EXAMPLE["target"])}  # the puzzle that every prompt solves


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
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset.urllib.request, "urlopen", refuse)


def write(path, **columns):
    pq.write_table(pa.table({**GOOD, **columns}), path)
    return path


def load(path):
    return dataset.validate(dataset.read_table(path, path.name), path.name, check_solvable=True)


def test_without_a_network_it_is_said_at_once(no_network):
    start = time.perf_counter()
    with pytest.raises(OSError, match="no network in this test"):
        dataset.download_public()
    assert time.perf_counter() - start < 8


class Hub(BaseHTTPRequestHandler):
    """Answer like the Hub, until the file's body is sent."""

    protocol_version = "HTTP/1.1"
    fault, body = "", b"PAR1" + bytes(996)

    def do_HEAD(self):
        if self.fault == "no HTTP":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", dataset.REVISION)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.body[:100])
        self.wfile.flush()
        if self.fault == "stalls":
            self.server.over.wait()
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def hub(handler, folder):
    """Serve like the Hub; give the variables under which a process asks this server only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.over, server.daemon_threads = threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {key: value for key, value in os.environ.items()
                 if not key.startswith(("HF_", "COUNTDOWN_")) and "proxy" not in key.lower()}
    variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder),
                  "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
                  "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        yield variables
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fault, named", [
    ("stalls", "ReadTimeout"), ("cuts", "RemoteProtocolError"), ("no HTTP", "BadStatusLine")])
def test_a_connection_that_breaks_in_the_middle_is_no_crash(tmp_path, fault, named):
    source = """
from helpers import dataset
try:
    dataset.download_public()
except OSError as error:
    print(type(error.__cause__ or error).__name__)
"""
    with hub(type("Faulty", (Hub,), {"fault": fault}), tmp_path) as variables:
        child = subprocess.run([sys.executable, "-c", source], env=variables, cwd=ROOT, text=True,
                               capture_output=True, timeout=180)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == named


def test_a_damaged_copy_in_the_cache_is_fetched_again(no_network, monkeypatch, tmp_path):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(write(tmp_path / "mine.parquet").read_bytes()[:-9])
    asked = []

    def download(local_files_only=False, force_download=False, **pinned):
        asked.append((local_files_only, force_download))
        return str(cut if local_files_only else tmp_path / "mine.parquet")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(OSError, match="no network"):
        dataset.download_public()
    assert asked == [(True, False)]
    monkeypatch.setattr(dataset.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    assert dataset.download_public() == str(tmp_path / "mine.parquet")
    assert asked[1:] == [(True, False), (False, True)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="is damaged"):
        dataset.download_public()


def test_the_public_copy_is_recognised(public, tmp_path):
    assert hashlib.sha256(public.read_bytes()).hexdigest() == dataset.SHA256
    assert dataset.unlike_public(public) == ""
    assert "bytes, another checksum" in dataset.unlike_public(write(tmp_path / "mine.parquet"))
    puzzles = dataset.validate(dataset.read_table(public, "public"), "public")
    assert len(puzzles) == dataset.ROWS and isinstance(puzzles["nums"][0], list)


NO_PARQUET = {
    "empty": (b"", "It is empty; download it again"),
    "csv": (b"nums,target\n", "text or another format, such as CSV; convert it with pandas"),
    "json lines": (b'{"nums": [1, 2], "target": 3}\n', "JSON.*read_json.*lines=True"),
    "json": (b' [{"nums": [1, 2], "target": 3}]', "JSON; convert it"),
    "page": (b"\n<!doctype html><title>404</title>", r"a web page \(HTML\)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "a Git LFS pointer, not the file; fetch it with `git lfs pull`"),
    "gzip": (gzip.compress(b"PAR1"), "compressed with gzip; unpack"),
    "zip": (b"PK\x03\x04", "a ZIP archive; unpack"),
}


@pytest.mark.parametrize("data, kind", NO_PARQUET.values(), ids=NO_PARQUET)
def test_what_is_no_parquet_file_is_named(tmp_path, data, kind):
    path = tmp_path / "mine.parquet"
    path.write_bytes(data)
    whole = "mine.parquet is not a whole Parquet file. (It is )?"
    with pytest.raises(ValueError, match=f'{whole}{kind}.*or give "shipped", "hub" or another'):
        load(path)


def test_a_cut_file_a_folder_and_no_file_say_what_to_do(tmp_path):
    whole = write(tmp_path / "mine.parquet").read_bytes()
    for cut in (len(whole) - 20, len(whole) // 2, 4):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut.parquet is not .* It is damaged or cut off; dow"):
            load(tmp_path / "cut.parquet")
    with pytest.raises(ValueError, match="is a folder: give the path of one Parquet file"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/absent.*check the path.*shipped"):
        load(tmp_path / "absent.parquet")
    with pytest.raises(FileNotFoundError, match="python -m lab.puzzle_sets"):
        dataset.load_split("cpu", "tset")
    for url in ("https://huggingface.co/x.parquet", "s3://bucket/x.parquet", "file:///x.parquet"):
        with pytest.raises(ValueError, match=f"'{url}' is a URL: download the file first"):
            dataset.load_split(url, "test")


NO_PUZZLES = [
    ({"nums": [[1, 2, 3], []]}, r"row 1, \[\] -> 22: nums is \[\] \(list\), no list of numbers"),
    ({"nums": [[1, 2, 3], [4]]}, r"row 1, \[4\] -> 22: 1 numbers, not 2 to 6"),
    ({"nums": [[1, 2, 3], [1] * 7]}, "7 numbers, not 2 to 6"),
    ({"nums": [[1, -2, 3], [4, 5]]}, r"row 0.*: -2 \(int\) is not a whole number of 0 or more"),
    ({"nums": [[1.0, 2.5], [4.0, 5.0]]}, r"2\.5 \(float\) is not a whole number"),
    ({"nums": [[1, 10**12], [4, 5]]}, r"1000000000000 \(int\) is not .* 12 digits at most"),
    ({"nums": [["1", "2"], ["3", "4"]]}, r"2 of 2 .*row 0.*'1' \(str\) is not a number: convert"),
    ({"nums": [1, 2]}, r"row 0, 1 -> 6: nums is 1 \(int\), no list"),
    ({"nums": ["[44, 19, 35]", "[1, 2]"]}, r"row 0, '\[44, 19, 35\]' -> 6: nums is '\[44, 19, 35"
     r"\]' \(str\), no list of numbers: read text with json.loads"),
    ({"nums": [[[1, 2], [3]], [[4, 5]]]}, r"\[1, 2\] \(list\) is not a number"),
    ({"nums": [[True, False], [True, True]]}, r"True \(bool\) is not a number"),
    ({"nums": [[Decimal("1.5"), Decimal("2.0")], [4, 5]]},
     r"Decimal\('1.5'\) \(Decimal\) is not a whole number"),
    ({"nums": [[1.0, float("nan")], [4.0, 5.0]]}, r"nan \(float\) is a null"),
    ({"nums": [[1.0, float("inf")], [4.0, 5.0]]}, r"inf \(float\) is not a whole number"),
    ({"nums": [[1, 2], None]}, r"row 1, None -> 22: nums is None \(NoneType\), no list"),
    ({"nums": [[1, 2], [3, None]]}, r"row 1.* -> 22: (None \(NoneType\)|nan \(float\)) is a null"),
    ({"target": [6, None]}, r"1 of 2 rows.*row 1.*(None \(NoneType\)|nan \(float\)) is a null"),
    ({"target": [6, -22]}, "row 1.*: a negative target"),
    ({"target": [6.5, 22.0]}, r"1 of 2 rows.*row 0.*6\.5 \(float\) is not a whole number"),
    ({"target": ["98", "22"]}, r"'98' \(str\) is not a number: convert text with int\(\) first"),
    ({"target": [True, False]}, r"True \(bool\) is not a number"),
    ({"target": [6, 23_000]}, "1 of 2 rows.*row 1.*a target that cannot be reached"),
]


@pytest.mark.parametrize("columns, message", NO_PUZZLES)
def test_bad_rows_are_named(tmp_path, columns, message):
    path = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=f"bad.parquet: .*{message}.*nothing was dropped"):
        load(path)
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        dataset.validate(pd.DataFrame({**GOOD, **columns}), "mine", check_solvable=True)


def test_a_set_of_numbers_is_none():
    with pytest.raises(ValueError, match=r"nums is \{4, 5\} \(set\), no list of numbers"):
        dataset.validate(pd.DataFrame({"nums": [{4, 5}], "target": [9]}), "mine")


def test_only_the_first_three_bad_rows_are_shown():
    for count in (1, 3, 4):
        table = pd.DataFrame({"nums": [[1, 2]] * 5, "target": [3] * (5 - count) + [-1] * count})
        with pytest.raises(ValueError, match=f"{count} of 5 rows are no puzzles") as error:
            dataset.validate(table, "mine")
        assert str(error.value).count(": a negative target") == min(count, 3)
        assert ("and so on" in str(error.value)) == (count > 3)


WHOLE = {
    "double": {"nums": pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]),
               "target": pa.array([6.0, 22.0])},
    "half": {"target": pa.array(np.array([6, 22], np.float16))},
    "decimal": {"target": pa.array([Decimal("6.00"), Decimal(22)], pa.decimal128(9, 2)),
                "nums": pa.array([list(map(Decimal, nums)) for nums in GOOD["nums"]])},
    "unsigned": {"target": pa.array([6, 22], pa.uint8())},
}


@pytest.mark.parametrize("columns", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_of_other_types_are_numbers(tmp_path, columns):
    write(tmp_path / "mine.parquet", **columns)
    for puzzles in (load(tmp_path / "mine.parquet"), dataset.validate(
            pd.read_parquet(tmp_path / "mine.parquet"), "mine")):
        assert puzzles["nums"].tolist() == GOOD["nums"] and puzzles["target"].tolist() == [6, 22]
        assert {type(n) for nums in puzzles["nums"] for n in nums} == {int}
        assert puzzles["target"].dtype == np.int64


def test_whole_numbers_of_python_are_numbers():
    table = pd.DataFrame({"nums": [(1, 2.0, Fraction(3)), np.array([4., 5, 6, 7])],
                          "target": [np.float32(6), Decimal(22)]})
    puzzles = dataset.validate(table, "mine")
    assert puzzles["nums"].tolist() == GOOD["nums"] and puzzles["target"].tolist() == [6, 22]
    assert {type(n) for nums in puzzles["nums"] for n in nums} == {int}


ROWS = pd.DataFrame({"nums": [[1, 2, 3], [2, 3, 4], [4, 5, 6]], "target": [6, 9, 15],
                     "source": ["six", "nine", "fifteen"]})
INDEXED = {
    "reordered": ROWS.iloc[[2, 0, 1]],
    "filtered": ROWS[ROWS["target"] > 6],
    "sorted": ROWS.sort_values("source"),
    "named": ROWS.set_index(pd.Index([3, 1, 2], name="id")),
    "of text": ROWS.set_index("source", drop=False),
    "of two levels": ROWS.set_index(pd.MultiIndex.from_tuples([(1, 2), (0, 1), (1, 2)])),
    "with a step": ROWS.set_index(pd.RangeIndex(10, 4, -2)),
    "with duplicates": ROWS.set_index(pd.Index([1, 1, 0])),
    "concatenated": pd.concat([ROWS[1:], ROWS[:2]]),
}


@pytest.mark.parametrize("frame", INDEXED.values(), ids=INDEXED)
def test_other_columns_stand_beside_their_own_puzzle(tmp_path, frame):
    frame.to_parquet(tmp_path / "mine.parquet")
    expected = frame.reset_index(drop=True).to_dict("list")
    for puzzles in (load(tmp_path / "mine.parquet"),
                    dataset.validate(frame, "mine", check_solvable=True)):
        assert puzzles.to_dict("list") == expected
        assert puzzles.index.equals(pd.RangeIndex(len(frame)))


def test_a_target_that_was_saved_as_the_index_is_found(tmp_path):
    ROWS.set_index("target").to_parquet(tmp_path / "mine.parquet")
    puzzles = load(tmp_path / "mine.parquet")
    assert puzzles.to_dict("list") == ROWS.to_dict("list")


def test_a_path_that_looks_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "year=2020").mkdir()
    puzzles = load(write(tmp_path / "year=2020" / "mine.parquet"))
    assert list(puzzles) == ["nums", "target"]


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
    with pytest.raises(ValueError, match=r"1 of 2 .*\(row 0.*97: a target that cannot"):
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
    for name in ("cpu", "3to4"):
        for part in dataset.PARTS:
            rows = dataset.load_split(name, part)
            shown = (tuple(sorted(EXAMPLE["nums"])), EXAMPLE["target"])
            pairs = zip(rows["nums"], rows["target"], strict=True)
            assert shown not in {(tuple(sorted(nums)), int(target)) for nums, target in pairs}


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """A fresh folder of runs, and no file of the public set in data/."""
    monkeypatch.setattr(dataset, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(dataset, "LOCAL", tmp_path / "Countdown-Tasks-3to4.parquet")
    return tmp_path / "runs"


def split(name):
    return {part: dataset.load_split(name, part) for part in dataset.PARTS}


def puzzles_of(table):
    return [canonical(*pair) for pair in zip(table["nums"], table["target"], strict=True)]


def check_split(parts, puzzles):
    """Every puzzle of a table is in one part, once, and no numbers are in two parts."""
    assert list(parts) == list(dataset.PARTS) and all(map(len, parts.values()))
    dealt = [puzzle for rows in parts.values() for puzzle in puzzles_of(rows)]
    assert len(dealt) == len(set(dealt)) and set(dealt) == puzzles
    for one, other in combinations(parts.values(), 2):
        assert leakage(one, other) == {"puzzles": 0, "multisets": 0}


def test_the_public_set_is_split_without_leaks(public, runs, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "LOCAL", public)
    monkeypatch.setattr(dataset, "download_public", None)  # the file at hand comes first
    first = dataset.load_split("public", "test")
    said = capsys.readouterr().out
    assert "490,364 rows of the public set" in said and said.count("\n") == 1
    start = time.perf_counter()
    parts = split("public")
    assert time.perf_counter() - start < 6  # 1 s on two idle cores
    assert parts["test"].equals(first) and not capsys.readouterr().out
    tested = {nums for nums, _ in puzzles_of(dataset.load_split("3to4", "test"))}
    everything = set(puzzles_of(pd.read_parquet(public))) - SHOWN
    check_split(parts, {puzzle for puzzle in everything if puzzle[0] not in tested})
    assert len(parts["train"]) > 440_000
    assert 990 <= len(parts["test"]) <= 1000 and 490 <= len(parts["validation"]) <= 500
    for part in ("test", "validation"):
        for other in dataset.PARTS:  # nobody trained on these
            assert leakage(dataset.load_split("3to4", other), parts[part])["multisets"] == 0
    content = json.dumps([parts["test"]["nums"].tolist(), parts["test"]["target"].tolist()])
    assert hashlib.sha256(content.encode()).hexdigest()[:12] == "c7048f6d2cce"  # everywhere
    assert dataset.load_split(public, "test").equals(first)  # by its path it is the same set
    assert len(list((runs / "puzzles").iterdir())) == 3


@pytest.fixture
def mine(tmp_path):
    """A file of one's own: 301 puzzles, and each of them again with its numbers turned round."""
    rows = dataset.load_split("cpu", "test")[["nums", "target"]].head(300)
    rows.loc[300] = EXAMPLE  # without its completion
    turned = rows.assign(nums=rows["nums"].map(lambda nums: nums[::-1]))
    path = tmp_path / "mine.parquet"
    pd.concat([rows, turned]).to_parquet(path, index=False)
    return path


def test_a_file_of_ones_own_is_split_the_same_whatever_its_order(mine, runs, tmp_path):
    table = pd.read_parquet(mine)
    parts = split(mine)
    check_split(parts, set(puzzles_of(table)) - SHOWN)
    groups = {part: rows["nums"].map(sorted).map(tuple).nunique() for part, rows in parts.items()}
    count = sum(groups.values())
    assert groups["test"] == count // 5 and groups["validation"] == count // 10
    table.sample(frac=1, random_state=1).to_parquet(tmp_path / "shuffled.parquet")
    for part, rows in split(str(tmp_path / "shuffled.parquet")).items():
        assert set(puzzles_of(rows)) == set(puzzles_of(parts[part]))


def test_parts_are_kept_until_the_file_changes(mine, runs, tmp_path, capsys):
    parts = split(mine)
    written = {path: path.stat().st_mtime_ns for path in (runs / "puzzles").iterdir()}
    assert len(written) == 3 and capsys.readouterr().out.count(" split into ") == 1
    for part, rows in split(mine).items():
        assert rows.equals(parts[part]) and type(rows["nums"][0]) is list
    assert {path: path.stat().st_mtime_ns for path in written} == written
    test = next(path for path in written if path.stem.endswith("-test"))
    for damaged in (b"", test.read_bytes()[:-9]):
        test.write_bytes(damaged)
        assert dataset.load_split(mine, "test").equals(parts["test"])
    write(mine, nums=[[1, 2], [2, 3]], target=[3, 5])
    with pytest.raises(ValueError, match="mine.parquet holds 2 different sets of numbers, too few"):
        dataset.load_split(mine, "test")


def test_ten_sets_of_numbers_are_enough_and_nine_are_too_few(runs, tmp_path):
    path = tmp_path / "few.parquet"
    rows = pd.DataFrame({"nums": [[n, n + 1] for n in range(1, 11)] + [[2, 1], [4, 3]],
                         "target": [2 * n + 1 for n in range(1, 11)] + [2, 7]})
    rows.to_parquet(path)
    parts = split(path)
    check_split(parts, set(puzzles_of(rows)))
    assert len(set(parts["test"]["nums"].map(tuple))) >= 2  # what an interval needs
    rows.drop(9).to_parquet(path)
    with pytest.raises(ValueError, match="few.parquet holds 9 .* give at least 10"):
        dataset.load_split(path, "train")
    write(path, target=[6, 23_000])
    with pytest.raises(ValueError, match="few.parquet: .*a target that cannot be reached"):
        dataset.load_split(path, "train")
    assert len(list((runs / "puzzles").iterdir())) == 3  # of the first file


def test_a_target_of_zero_is_a_puzzle():
    frame = dataset.validate(pd.DataFrame({"nums": [[3, 3]], "target": [0]}), "mine", True)
    assert frame["target"].tolist() == [0]
    with pytest.raises(ValueError, match="a negative target"):
        dataset.validate(pd.DataFrame({"nums": [[3, 3]], "target": [-1]}), "mine")


def test_a_run_knows_its_file_when_it_is_gone_or_changed(mine, runs):
    name = dataset.puzzles_for(PROFILES["smollm2"], mine)
    parts = {part: dataset.load_split(name, part) for part in dataset.PARTS}
    grown = pd.concat([pd.read_parquet(mine), dataset.load_split("3to4", "validation").head(80)])
    grown.to_parquet(mine)
    for _ in range(2):  # another file lies there; then none does, as on another machine
        assert all(dataset.load_split(name, part).equals(rows) for part, rows in parts.items())
        mine.unlink(missing_ok=True)
    for path in (runs / "puzzles").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="not the file that this run was trained on"):
        dataset.load_split(name, "test")
    grown.to_parquet(mine)
    assert dataset.puzzles_for(PROFILES["smollm2"], mine) != name


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_kill_while_the_parts_are_written_leaves_no_half_file(runs, tmp_path):
    path = DATA / "puzzles" / "3to4-validation.parquet"
    source = f"""
import resource, signal
from helpers import dataset
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends it within a write
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
dataset.load_split({str(path)!r}, "test")
"""
    child = subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=180, env=os.environ | {
        "COUNTDOWN_RUNS": str(runs), "PYTHONDONTWRITEBYTECODE": "1"})
    left = list((runs / "puzzles").iterdir())
    assert child.returncode == -signal.SIGXFSZ
    assert [file.suffix for file in left] == [".partial"] and left[0].stat().st_size
    check_split(split(path), set(puzzles_of(pd.read_parquet(path))))


class Whole(Hub):
    """Send the whole file."""

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.body)


def test_the_hubs_file_is_split_once_and_then_needs_no_hub(tmp_path):
    body = (DATA / "puzzles" / "cpu-train.parquet").read_bytes()  # stands for the public set
    source = f"""
from pathlib import Path
from helpers import dataset, profiles
dataset.SHA256, dataset.LOCAL = {hashlib.sha256(body).hexdigest()!r}, Path("nowhere")
name = dataset.puzzles_for(profiles.PROFILES["a100"])
print(name, *[len(dataset.load_split(name, part)) for part in dataset.PARTS])
"""

    def ask(variables, runs):
        return subprocess.run([sys.executable, "-c", source], cwd=ROOT, text=True, timeout=180,
                              env=variables | {"COUNTDOWN_RUNS": str(tmp_path / runs)},
                              check=True, capture_output=True).stdout.splitlines()

    with hub(type("Whole", (Whole,), {"body": body}), tmp_path / "cache") as variables:
        said, answer = ask(variables, "runs")
    assert " split into " in said and re.fullmatch(r"public \d{4} \d{3} \d{3}", answer)
    variables["HF_HOME"] = str(tmp_path / "another machine's")
    assert ask(variables, "runs") == [answer]
    said, answer = ask(variables, "other runs")
    assert said.startswith("The public set could not be had (") and answer.startswith("3to4 ")


def test_without_a_network_the_a100_trains_on_the_shipped_set(no_network, runs, capsys):
    profile = PROFILES["a100"]
    assert dataset.puzzles_for(profile) == dataset.puzzles_for(profile, "") == "3to4"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0] == said[1]
    assert "(URLError); training on the shipped set 3to4" in said[0]
    assert f"or put its file at {dataset.LOCAL}" in said[0]
    for word in ("public", " Hub "):
        with pytest.raises(RuntimeError, match="could not be had .*: check the network, or put"):
            dataset.puzzles_for(profile, word)


def test_the_shipped_set_is_taken_without_asking_the_hub(no_network, runs, monkeypatch, capsys):
    for name, shipped in (("cpu", "cpu"), ("cpu-short", "cpu"), ("smollm2", "3to4")):
        assert dataset.puzzles_for(PROFILES[name]) == shipped
    a100 = PROFILES["a100"]
    assert dataset.puzzles_for(a100, "Shipped ") == "3to4"
    assert dataset.puzzles_for(replace(a100, puzzles="public"), "shipped") == "3to4"  # run again
    monkeypatch.setenv("COUNTDOWN_DATA", "shipped")
    assert dataset.puzzles_for(a100) == "3to4" and not capsys.readouterr().out
    with pytest.raises(RuntimeError, match="could not be had"):  # what a cell says counts more
        dataset.puzzles_for(a100, "public")


@pytest.mark.parametrize("asked", ["auto", "public"])
def test_another_file_in_the_public_sets_place_is_an_error(no_network, runs, asked):
    write(dataset.LOCAL)
    with pytest.raises(ValueError, match="is not the known public set: delete or rename it, and"):
        dataset.puzzles_for(PROFILES["a100"], asked)
    with pytest.raises(ValueError, match="or give its path, to train on it as it is"):
        dataset.load_split("public", "test")


def test_a_path_is_checked_at_once(mine, runs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    profile = PROFILES["smollm2"]
    for given in (mine, str(mine), " mine.parquet "):
        name = dataset.puzzles_for(profile, given)
        assert name.startswith(f"{mine.resolve()}#")
    assert len(prompt_dataset(dataset.load_split(name, "train"))[0]["nums"]) == 3
    with pytest.raises(FileNotFoundError, match="absent.parquet; check the path"):
        dataset.puzzles_for(profile, "absent.parquet")
    with pytest.raises(ValueError, match="is a folder"):
        dataset.puzzles_for(profile, tmp_path)
    with pytest.raises(ValueError, match="is a URL"):
        dataset.puzzles_for(profile, "https://huggingface.co/x.parquet")
    with pytest.raises(ValueError, match="choose one of train, validation, test"):
        dataset.load_split(mine, "tset")


@pytest.mark.parametrize("name", ["cpu", "cpu-short"])
def test_the_tiny_model_refuses_what_it_has_no_words_for(name, mine, no_network, runs, tmp_path):
    profile = PROFILES[name]
    with pytest.raises(ValueError, match=f"profile {name} has no words.* 144.*numbers to 12"):
        dataset.puzzles_for(profile, "public")
    assert re.fullmatch(re.escape(str(mine.resolve())) + "#[0-9a-f]{16}",
                        dataset.puzzles_for(profile, mine))
    rows = dataset.load_split("3to4", "validation")
    for column, large in (("nums", rows), ("target", pd.DataFrame(
            {"nums": [[12, 12, n] for n in range(1, 12)], "target": [145] + [144 - n for n in range(
                2, 12)]}))):
        large.to_parquet(tmp_path / f"{column}.parquet")
        with pytest.raises(ValueError, match=f"and .*{column}.parquet has larger ones; give \"shi"):
            dataset.puzzles_for(profile, tmp_path / f"{column}.parquet")
