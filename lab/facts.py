"""Describe a table of puzzles in a few numbers: ranges, solvability, difficulty, repeats, leaks."""

import pandas as pd

from helpers import solver
from helpers.expressions import library
from helpers.puzzles import canonical, leakage

_FEWEST = 2_000  # rows; the random 500 would be most of a smaller table


def usual_splits(puzzles):
    """Split a table in the three ways that are in use for the public set.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns `nums` and `target`, 2,000 rows or more.

    Returns
    -------
    dict of str to tuple of pandas.DataFrame
        Training and test part of each: TinyZero's first 327,680 rows and the next 1,024 (of a
        table of another length the same share of rows, and the next 1,024), all but the last 128
        rows and these, all but 500 rows drawn at random and these.

    Raises
    ------
    ValueError
        For a table that is too small.
    """
    if len(puzzles) < _FEWEST:
        raise ValueError(f"{len(puzzles)} puzzles are too few for the usual splits: load a table "
                         f"of {_FEWEST:,} or more, for instance the shipped set")
    cut = len(puzzles) * 327_680 // 490_364
    drawn = puzzles.sample(500, random_state=0)
    return {
        "first / next 1,024": (puzzles[:cut], puzzles[cut : cut + 1024]),
        "all but / last 128": (puzzles[:-128], puzzles[-128:]),
        "all but / random 500": (puzzles.drop(drawn.index), drawn),
    }


def describe(puzzles):
    """Summarise a table of puzzles, solving every one.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns `nums` (2 to 5 integers a row) and `target`, 2,000 rows or more.

    Returns
    -------
    dict of str to dict of str to (int or float)
        Groups of named facts. Counts are int, shares (0 to 1, five decimals) are float.

    Raises
    ------
    ValueError
        For a table that is too small.
    """
    splits = usual_splits(puzzles)
    labelled = solver.label(puzzles[["nums", "target"]], progress=False)
    size = labelled["nums"].map(len)
    numbers, targets = labelled["nums"].explode().astype(int), labelled["target"]
    pairs = list(zip(labelled["nums"], targets, strict=True))
    as_written = {(tuple(nums), target) for nums, target in pairs}
    distinct = {canonical(*pair) for pair in pairs}
    ranges = {
        "smallest number": int(numbers.min()), "largest number": int(numbers.max()),
        "smallest target": int(targets.min()), "largest target": int(targets.max()),
        "numbers of 11 or less": _share(numbers <= 11),
        "numbers of 89 or more": _share(numbers >= 89),
        "targets of 22 or less": _share(targets <= 22),
        "targets of 88 or more": _share(targets >= 88),
    }
    difficulty, whole = {}, 0
    for n, rows in labelled.groupby(size):
        nums = pd.DataFrame(rows["nums"].tolist()).to_numpy()
        whole += solver.solvable_whole(nums, rows["target"].to_numpy()).sum()
        many = rows["n_solutions"]
        difficulty |= {
            f"{n} numbers: need * or /": _share(rows["needs_mul_div"]),
            f"{n} numbers: have one solution": _share(many == 1),
            f"{n} numbers: most solutions": int(many.max()),
            f"{n} numbers: a random expression is right": _share(many / len(library(n).roots)),
        }
    leaks = {}
    for name, (train, test) in splits.items():
        shares = leakage(train, test)
        leaks |= {f"{name}: {what}": round(share, 5) for what, share in shares.items()}
    counts = {f"rows of {n} numbers": int(k) for n, k in size.value_counts().sort_index().items()}
    return {
        "rows": {"rows": len(puzzles)} | counts,
        "ranges": ranges,
        "solvability": {
            "solvable": _share(labelled["solvable"]),
            "solvable with whole intermediate values": round(float(whole / len(labelled)), 5),
        },
        "difficulty": difficulty,
        "repeats": {
            "rows that repeat an earlier row exactly": len(puzzles) - len(as_written),
            "rows that repeat an earlier puzzle": len(puzzles) - len(distinct),
            "distinct multisets of numbers": len({nums for nums, _ in distinct}),
        },
        "leakage": leaks,
    }


def _share(flags):
    return round(float(flags.mean()), 5)
