"""Load puzzle tables, say where they came from, and refuse broken ones.

The public set stays on the Hub; what the repository ships was made by lab/puzzle_sets.py.
"""

import hashlib
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers import solver
from helpers.paths import DATA

REPO = "Jiayi-Pan/Countdown-Tasks-3to4"
REVISION = "408f70d177020686d34a56bba5952feb45aaaee4"
FILE = "data/train-00000-of-00001.parquet"
SHA256 = "a1b37bea0f439c858b11b908daa682e521f13f9592f1866b08650f58b730d126"
ROWS = 490_364
PARTS = ("train", "validation", "test")
_OTHERWISE = 'set COUNTDOWN_DATA to "shipped" or to a local Parquet file to do without the Hub'


def _problem(nums, target):
    """What is wrong with one row, or None."""
    if nums is None or target is None or target != target:  # NaN differs from itself
        return "a null value"
    if not isinstance(nums, list):
        return "nums is not a list"
    if not 2 <= len(nums) <= 6:
        return f"{len(nums)} numbers, not 2 to 6" if nums else "an empty list of numbers"
    for x in nums:
        if type(x) is not int or x < 0:
            return "a null value" if x is None else "a number that is negative or not an integer"
    if type(target) is not int or target < 0:
        return "a target that is negative or not an integer"
    return None


def validate(table, where, check_solvable=False):
    """Check a table of puzzles.

    Parameters
    ----------
    table : pyarrow.Table or pandas.DataFrame
        Should have `nums` (2 to 6 non-negative integers a row) and `target` (one of them).
    where : str
        What the table is called in an error message.
    check_solvable : bool
        Solve every puzzle too.

    Returns
    -------
    pandas.DataFrame
        All rows and columns, `nums` as lists of int.

    Raises
    ------
    ValueError
        Where a column is missing or a row is no puzzle, naming the first such rows.
    """
    arrow, names = isinstance(table, pa.Table), ["nums", "target"]
    columns = table.column_names if arrow else list(table.columns)
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"{where}: no column {' or '.join(missing)} among {columns}; a table"
                         " of puzzles has nums (a list of integers) and target (an integer)")
    # not by to_pandas, which makes integers beside a null floats
    nums, target = (table[name].to_pylist() if arrow else table[name].tolist() for name in names)
    nums = [x.tolist() if hasattr(x, "tolist") else x for x in nums]
    others = table.drop_columns(names).to_pandas() if arrow else table.drop(columns=names)
    frame = pd.DataFrame({"nums": nums, "target": target}, dtype=object)
    frame = frame.join(others.reset_index(drop=True))
    if frame.empty:
        raise ValueError(f"{where}: no rows; load another file or make it again")
    problems = list(map(_problem, nums, target))
    if check_solvable and not any(problems):
        six = frame["nums"].map(len) > solver.MOST_NUMBERS
        solved = solver.label(frame[~six])["solvable"].to_dict()
        solved |= {i: solver.solve(nums[i], target[i]) for i in frame.index[six]}
        problems = [None if solved[i] else "a target that cannot be reached" for i in frame.index]
    if any(problems):
        # a null goes first: in a table of pandas the integers beside it have become floats
        problem = min(filter(None, problems), key=lambda problem: "null" not in problem)
        rows = [i for i, other in enumerate(problems) if other == problem]
        shown = "; ".join(f"row {i}: nums {nums[i]}, target {target[i]}" for i in rows[:3])
        more = " and so on" if len(rows) > 3 else ""
        raise ValueError(f"{where}: {len(rows)} rows with {problem} ({shown}{more}). Repair or "
                         "remove these rows, or load another file; nothing was dropped")
    return frame.astype({"target": "int64"})


def read_table(path, where):
    """Read a Parquet file, called `where` in an error message, as a pyarrow.Table."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: there is no such file; check the path, or make the "
                                "shipped files again with `python -m lab.puzzle_sets`")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} is not a whole Parquet file (is it truncated?): download it "
                         "again, or make the shipped files again with `python -m lab.puzzle_sets`"
                         ) from error


def download_public():
    """Path of the public set's file in the Hub's cache; an OSError where it cannot be had."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    pinned = {"repo_id": REPO, "filename": FILE, "repo_type": "dataset", "revision": REVISION}
    try:
        return hf_hub_download(**pinned, local_files_only=True)
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
    # without a network the client retries for half a minute; this gives up at once
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    with suppress(urllib.error.HTTPError):  # an answer, whatever it says
        urllib.request.urlopen(request, timeout=5).close()
    return hf_hub_download(**pinned)


def unlike_public(path):
    """How a file differs from the known public set: "" where it does not."""
    data = Path(path).read_bytes()
    known = hashlib.sha256(data).hexdigest() == SHA256
    return "" if known else f"{len(data):,} bytes, another checksum"


def load_puzzles(source=None):
    """Load a table of puzzles and print in one line where it came from.

    Parameters
    ----------
    source : str or path, optional
        "hub", the public set at its pinned revision; "shipped", all parts of this repository's
        3to4 set, shuffled; or a Parquet file. By default what the environment variable
        COUNTDOWN_DATA says, else the Hub, else (with no network) the shipped set.

    Returns
    -------
    pandas.DataFrame
        Columns `nums` (list of int) and `target` (int), and the file's other columns.

    Raises
    ------
    FileNotFoundError, RuntimeError, ValueError
        Where the file is missing, the Hub cannot be reached, or the table is not one of puzzles.
    """
    source = source or os.environ.get("COUNTDOWN_DATA") or None
    if source in ("hub", None):
        try:
            path, source = download_public(), "hub"
        except OSError as error:
            if source:
                raise RuntimeError(f"the Hub's {REPO} could not be reached: check the network, or "
                                   f"{_OTHERWISE}") from error
            print(f"The Hub could not be reached ({type(error).__name__}); using the shipped set. "
                  f"For the public set check the network; {_OTHERWISE}.")
            source = "shipped"
    if source == "hub":
        frame = validate(read_table(path, f"the Hub's {REPO}"), f"the Hub's {REPO}")
        different = unlike_public(path)
        origin = f"the public set {REPO}, revision {REVISION[:7]}, from the Hub"
        origin += f" - NOT the known file of {ROWS:,} rows: {different}" if different else ""
    elif source == "shipped":
        frame = pd.concat([load_split("3to4", part) for part in PARTS])
        # one after the other, the parts would make any split by position a split by numbers
        frame = frame.sample(frac=1, random_state=0, ignore_index=True)
        origin = "the set shipped as data/puzzles/3to4-*.parquet"
    else:
        path = Path(source).expanduser()
        table, different = read_table(path, path.name), unlike_public(path)
        frame = validate(table, path.name, check_solvable=bool(different))
        known = f"not the known public set ({different})" if different else f"the public set {REPO}"
        origin = f"the local file {path.name}, {known}"
    print(f"Puzzles: {len(frame):,} rows, {origin}.")
    return frame


def load_split(name, part):
    """Load one shipped file, e.g. ``load_split("cpu", "test")``.

    Parameters
    ----------
    name, part : str
        The set, "cpu" (all puzzles of three numbers 1 to 12, targets 1 to 60) or "3to4" (three and
        four numbers 1 to 99, targets 10 to 100), and one of its `PARTS`.

    Returns
    -------
    pandas.DataFrame
        Columns `nums`, `target`, `solvable`, `needs_mul_div` and `n_solutions`.
    """
    file = f"puzzles/{name}-{part}.parquet"
    return validate(read_table(DATA / file, f"data/{file}"), f"data/{file}")

