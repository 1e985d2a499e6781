"""Load puzzle tables, say where they came from, and refuse broken ones.

The public set stays on the Hub; what the repository ships was made by lab/puzzle_sets.py.
"""

import hashlib
import math
import os
import re
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers import solver
from helpers.arithmetic import as_puzzle
from helpers.paths import DATA, RUNS, given_path, show
from helpers.prompts import EXAMPLE

REPO = "Jiayi-Pan/Countdown-Tasks-3to4"
REVISION = "408f70d177020686d34a56bba5952feb45aaaee4"
FILE = "data/train-00000-of-00001.parquet"
SHA256 = "a1b37bea0f439c858b11b908daa682e521f13f9592f1866b08650f58b730d126"
ROWS = 490_364
PARTS = ("train", "validation", "test")
SHIPPED = ("cpu", "3to4")
FEWEST = 10  # sets of numbers in a file of one's own
LOCAL = DATA / "Countdown-Tasks-3to4.parquet"  # the public set's file, for those who have it


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
    given = list(zip(*(table[name].to_pylist() if arrow else table[name].tolist()
                       for name in names), strict=True))
    rows, problems = [], {}
    for i, (nums, target) in enumerate(given):
        try:
            rows.append(as_puzzle(nums, target))
            if not 2 <= len(nums) <= 6:
                problems[i] = f"{len(nums)} numbers, not 2 to 6"
            elif target < 0:
                problems[i] = "a negative target"
        except (TypeError, ValueError) as error:
            problems[i] = error
    if not given:
        raise ValueError(f"{where}: no rows; load another file or make it again")
    frame = pd.DataFrame([] if problems else rows, columns=names)
    if check_solvable and not problems:
        six = frame["nums"].map(len) > solver.MOST_NUMBERS
        solved = solver.label(frame[~six])["solvable"].to_dict()
        solved |= {i: solver.solve(*rows[i]) for i in frame.index[six]}
        problems = {i: "a target that cannot be reached" for i in frame.index if not solved[i]}
    if problems:
        shown = "; ".join(f"row {i}, {given[i][0]!r} -> {given[i][1]!r}: {problem}"
                          for i, problem in list(problems.items())[:3])
        more = " and so on" if len(problems) > 3 else ""
        raise ValueError(f"{where}: {len(problems)} of {len(given)} rows are no puzzles ({shown}"
                         f"{more}). Repair or remove these rows, or load another file; nothing "
                         "was dropped")
    others = table.drop_columns(names).to_pandas() if arrow else table.drop(columns=names)
    return frame.join(others.reset_index(drop=True))  # by position, whatever the index was


KINDS = {  # what is given in place of a Parquet file, by its first characters
    b"PAR1": "damaged or cut off; download it again",
    b"version https://git-lfs": "a Git LFS pointer, not the file; fetch it with `git lfs pull`",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK": "a ZIP archive; unpack it first",
    b"<": "a web page (HTML); download the file itself",
    b"{": 'JSON; convert it with pandas.read_json (for JSON lines: lines=True) and to_parquet',
    b"[": "JSON; convert it with pandas.read_json and to_parquet",
    b"": "text or another format, such as CSV; convert it with pandas and to_parquet",
}


def read_table(path, where):
    """Read a Parquet file, called `where` in an error message, as a pyarrow.Table."""
    path = Path(path).resolve()
    again = ("make the shipped files again with `python -m lab.puzzle_sets`"
             if path.is_relative_to(DATA) else 'give "shipped", "hub" or another Parquet file')
    if path.is_dir():
        raise ValueError(f"{where} is a folder: give the path of one Parquet file")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {path}; check the path, or {again}")
    try:
        return pq.read_table(path, partitioning=None)  # a folder named a=1 is no column
    except (pa.ArrowException, OSError) as error:
        with path.open("rb") as file:
            head = file.read(100).lstrip()
        kind = next(kind for start, kind in KINDS.items() if head.startswith(start))
        kind = kind if head else "empty; download it again"
        raise ValueError(f"{where} is not a whole Parquet file. It is {kind}, or {again}"
                         ) from error


def download_public():
    """Path of the public set's file in the Hub's cache; an OSError where it cannot be had."""
    import httpx  # what the Hub's client stands on
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    pinned = {"repo_id": REPO, "filename": FILE, "repo_type": "dataset", "revision": REVISION}
    damaged = ""
    try:
        path = hf_hub_download(**pinned, local_files_only=True)
        damaged = unlike_public(path)
        if not damaged:
            return path
        if constants.HF_HUB_OFFLINE:
            raise OSError(f"its file in the cache, {path}, is damaged: {damaged}")
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
    # without a network the client retries for half a minute; this gives up at once
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with suppress(urllib.error.HTTPError):  # an answer, whatever it says
            urllib.request.urlopen(request, timeout=5).close()
        return hf_hub_download(**pinned, force_download=bool(damaged))
    except (httpx.HTTPError, HTTPException, RuntimeError) as error:  # RuntimeError: of hf_xet
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def unlike_public(path):
    """How a file differs from the known public set: "" where it does not."""
    known = _checksum(path) == SHA256
    return "" if known else f"{Path(path).stat().st_size:,} bytes, another checksum"


def _refuse_url(text):
    if "://" in str(text):
        raise ValueError(f"{text!r} is a URL: download the file first, and give its path")


def _checksum(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _own_file(given):
    _refuse_url(given)
    return given_path(given) if isinstance(given, str) else Path(given).expanduser().resolve()


def load_split(name, part):
    """Load one part of a set of puzzles, e.g. ``load_split("cpu", "test")``.

    What is not shipped is split by a checksum of each puzzle's numbers: the same on every machine,
    and no multiset of numbers is in two parts. A puzzle is kept once, whatever the order of its
    numbers; the one that every prompt solves is left out. Test gets a fifth of the multisets and
    validation a tenth, but at most 1,000 and 500 puzzles. No multiset of the shipped 3to4 set is in
    the public validation or test part, and none of its test part in the public train part: who
    trains on the one can be tested on the other.

    Parameters
    ----------
    name : str or path
        A shipped set, "cpu" (all puzzles of three numbers 1 to 12, targets 1 to 60) or "3to4"
        (three and four numbers 1 to 99, targets 10 to 100); "public", from the file `LOCAL` or
        else the Hub; or a Parquet file, perhaps with ``#`` and the first 16 digits of its SHA-256:
        then no other will do. Parts that were split are kept in runs/puzzles.
    part : str
        One of its `PARTS`.

    Returns
    -------
    pandas.DataFrame
        Columns `nums`, `target` and, if shipped, `solvable`, `needs_mul_div` and `n_solutions`.

    Raises
    ------
    ValueError, OSError
        For no table of puzzles, or one too small to split; for a file that cannot be had.
    """
    if name in SHIPPED:
        file = f"puzzles/{name}-{part}.parquet"
        return validate(read_table(DATA / file, f"data/{file}"), f"data/{file}")
    if part not in PARTS:
        raise ValueError(f"no part is called {part!r}; choose one of {', '.join(PARTS)}")
    marked = re.fullmatch("(.+)#([0-9a-f]{16})", str(name))  # as `puzzles_for` returns it
    path = LOCAL if name == "public" else _own_file(marked[1] if marked else name)
    digest = _checksum(path) if path.is_file() else ""
    if name == "public":
        if digest not in ("", SHA256):
            raise ValueError(f"{show(LOCAL)} is not the known public set: delete or rename it, and "
                             "the Hub's is taken; or give its path, to train on it as it is")
        digest = SHA256
    key = marked[2] if marked else digest[:16]
    folder = RUNS / "puzzles"  # "split1" is the way to split: another way needs another name
    files = {each: folder / f"split1-{key}-{each}.parquet" for each in PARTS}
    with suppress(pa.ArrowException, OSError):  # not there yet, or damaged
        return pd.DataFrame(pq.read_table(files[part]).to_pydict())
    if key != digest[:16]:
        raise FileNotFoundError(f"{path} is not the file that this run was trained on (checksum "
                                f"{key}), and its parts are not in {show(folder)}: put it back "
                                "there, or train anew on what is there now, under another name")
    if name == "public" and not path.is_file():
        path = download_public()
        if different := unlike_public(path):
            raise OSError(f"the Hub gave another file: {different}")
    where = f"the public set {REPO}" if digest == SHA256 else path.name
    puzzles = validate(read_table(path, where), where, check_solvable=digest != SHA256)
    parts = _split(puzzles, where, digest == SHA256)
    folder.mkdir(parents=True, exist_ok=True)
    for each, rows in parts.items():
        partial = folder / f"{files[each].name}.{os.getpid()}.partial"
        rows.to_parquet(partial, index=False)
        partial.replace(files[each])  # a kill leaves no half file under the name
    print(f"{len(puzzles):,} rows of {where} split into " + ", ".join(
        f"{len(rows):,} {each}" for each, rows in parts.items()) + f" puzzles in {show(folder)}")
    return parts[part]


def _split(puzzles, where, public):
    def key(nums):  # sorted by it, the multisets are shuffled
        return hashlib.sha256(repr(sorted(nums)).encode()).hexdigest()

    rows = puzzles[["nums", "target"]].assign(key=puzzles["nums"].map(key))
    shown = (rows["key"] == key(EXAMPLE["nums"])) & (rows["target"] == EXAMPLE["target"])
    rows = rows[~shown].drop_duplicates(["key", "target"])
    ours = {part: load_split("3to4", part)["nums"].map(key) if public else () for part in PARTS}
    sizes = rows.groupby("key").size()
    free = sizes.drop([each for part in PARTS for each in ours[part]], errors="ignore")
    if len(free) < FEWEST:  # two test sets: an interval needs them
        raise ValueError(f"{where} holds {len(free)} different sets of numbers, too few for train, "
                         f"validation and test: give at least {FEWEST}, better 100 or more")
    count, part_of = len(free), pd.Series("train", sizes.index)
    part_of[sizes.index.isin(ours["test"])] = "none"
    for part, most, share in (("test", 1000, 5), ("validation", 500, 10)):
        taken = max(1, min(count // share, free.cumsum().searchsorted(most, "right")))
        part_of[free.index[:taken]] = part
        free = free.iloc[taken:]
    dealt = rows.pop("key").map(part_of)
    return {part: rows[dealt == part].reset_index(drop=True) for part in PARTS}


def puzzles_for(profile, asked="auto"):
    """Return what to put into a profile's `puzzles`: a name for `load_split`, once it was tried.

    A file of one's own is named with its checksum, so that a run knows it if it changes.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What is to train on them.
    asked : str or path
        "shipped"; "public"; a Parquet file; or "auto": under a100 the public set, unless
        COUNTDOWN_DATA is "shipped" or (which is printed) it cannot be had, else the shipped one.

    Raises
    ------
    ValueError, OSError, RuntimeError
        As `load_split`; if the profile's model lacks the words for the numbers; if the public set,
        asked for by name, cannot be had.
    """
    word, default = str(asked).strip().lower() or "auto", "3to4" if profile.needs_gpu else "cpu"
    shipped = profile.puzzles if profile.puzzles in SHIPPED else default
    ours = os.environ.get("COUNTDOWN_DATA", "").strip().lower() == "shipped"
    if word in ("shipped", shipped) or word == "auto" and (ours or profile.name != "a100"):
        return shipped
    name = "public" if word in ("auto", "public", "hub") else str(_own_file(asked))
    most = 0 if profile.needs_gpu else profile.cold_start.max_value  # the tiny model's last word
    unread = (f"the model of profile {profile.name} has no words for values above {most}, so it "
              f"takes numbers to {math.isqrt(most)} and targets to {most} only, and {name} has "
              'larger ones; give "shipped" or another file, or take a profile with a GPU')
    if most and name == "public":
        raise ValueError(unread)
    try:
        # one part tells that all are there; only the tiny model's words need every row
        rows = pd.concat([load_split(name, part) for part in (PARTS if most else PARTS[-1:])])
    except OSError as error:
        if name != "public":
            raise
        advice = f"check the network, or put its file at {show(LOCAL)}"
        if word != "auto":
            raise RuntimeError(f"the public set could not be had ({error}): {advice}, or give "
                               '"shipped" or the path of a Parquet file') from error
        kind = type(error.__cause__ or error).__name__
        print(f"The public set could not be had ({kind}); training on the shipped set {shipped}. "
              f"For the public set {advice}.")
        return shipped
    if most and (rows["nums"].map(max).max() > math.isqrt(most) or rows["target"].max() > most):
        raise ValueError(unread)
    return name if name == "public" else f"{name}#{_checksum(name)[:16]}"
