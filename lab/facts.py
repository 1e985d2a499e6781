"""Measure a table of puzzles: ranges, solvability, difficulty, repeats, leaks.

``python -m lab.facts`` measures the public set for data/public_set_facts.json. With ``--card`` it
measures the two shipped sets instead, and prints them beside that record as a table.
"""

import argparse
import json
from datetime import date
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.dataset import (
    FILE,
    PARTS,
    REPO,
    REVISION,
    SHA256,
    SHIPPED,
    download_public,
    load_split,
    read_table,
    unlike_public,
    validate,
)
from helpers.paths import DATA
from helpers.puzzles import canonical, leakage
from helpers.solver import hits, label, library
from lab.puzzle_sets import solvable_whole

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
    puzzles = puzzles.reset_index(drop=True)  # drop() below goes by label
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
    labelled = label(puzzles[["nums", "target"]], progress=False)
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
        whole += solvable_whole(nums, rows["target"].to_numpy()).sum()
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


@cache
def different_expressions(pattern):
    """How many expressions of a puzzle's numbers differ: fewer where some numbers are equal.

    Parameters
    ----------
    pattern : tuple of int
        Which numbers are equal, as for `helpers.solver.hits`: (0, 1, 1) for a < b = b.
    """
    any_puzzle = np.array([pattern]) + 1, np.array([1])
    return sum(len(which) for which, _ in hits(*any_puzzle, pattern))


def chance_of_a_guess(labelled):
    """The chance that one of a puzzle's different expressions, drawn blindly, is a solution.

    Parameters
    ----------
    labelled : pandas.DataFrame
        Columns `nums` and `n_solutions`.

    Returns
    -------
    pandas.Series
        A share for each row. `describe` divides by the number of expressions of different numbers,
        and so gives a little less where some are equal.
    """
    patterns = labelled["nums"].map(sorted).map(lambda nums: tuple(map(nums.index, nums)))
    return labelled["n_solutions"] / patterns.map(different_expressions)


def solvable_at_random(count, draws=20_000, seed=0):
    """The share of solvable ones among random puzzles: numbers 1 to 99, targets 10 to 100."""
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame({"nums": rng.integers(1, 99, (draws, count), endpoint=True).tolist(),
                          "target": rng.integers(10, 100, draws, endpoint=True)})
    return _share(label(drawn, progress=False)["solvable"])


def card(sets, recorded):
    """Write facts of several sets as a Markdown table, a column a set.

    Parameters
    ----------
    sets : dict of str to pandas.DataFrame
        Tables of puzzles by name.
    recorded : dict of str to dict
        More columns, as `describe` gives them, by name.

    Returns
    -------
    str
        The table; an empty cell where a set has no such puzzles, or a record no such fact.
    """
    columns = {}
    for name, puzzles in sets.items():
        labelled = label(puzzles[["nums", "target"]], progress=False)
        chances = chance_of_a_guess(labelled).groupby(labelled["nums"].map(len)).mean()
        columns[name] = describe(puzzles) | {"equal numbers counted": {
            f"{n} numbers: one of the different expressions is right": round(float(p), 5)
            for n, p in chances.items()}}
    written = {name: {fact: f"{x:,}" if isinstance(x, int) else f"{100 * x:.3g} %"
                      for group in groups.values() for fact, x in group.items()}
               for name, groups in (recorded | columns).items()}  # the record's order of facts
    facts = pd.DataFrame(written).fillna("")[[*sets, *recorded]]
    lines = [["", *facts.columns], ["---"] * (facts.shape[1] + 1), *facts.reset_index().to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def record_facts(source, destination):
    """Measure the public set, and write the result with its origin as JSON.

    Parameters
    ----------
    source : path or None
        A copy of the public set's file; None fetches it from the Hub.
    destination : path
        The file to write.

    Raises
    ------
    ValueError
        Where the file is not the known public set.
    """
    path = Path(source) if source else Path(download_public())
    table, different = read_table(path, path.name), unlike_public(path)
    if different:
        raise ValueError(f"{path.name} is not the known public set ({different}): leave the file "
                         f"name out to fetch revision {REVISION[:7]} from the Hub")
    measured = {
        "source": {"repository": REPO, "revision": REVISION, "file": FILE, "sha256": SHA256},
        "date": date.today().isoformat(),
        "command": "python -m lab.facts",
        "facts": describe(validate(table, path.name)),
    }
    Path(destination).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def main(argv=None):
    """Measure the public set for data/public_set_facts.json, or the shipped sets for a table.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.facts",
                                     description=main.__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", help="a copy of the public set's file; without it the "
                        "Hub's is fetched")
    parser.add_argument("--card", action="store_true",
                        help="print the shipped sets beside the recorded public one; write nothing")
    options, file = parser.parse_args(argv), DATA / "public_set_facts.json"
    if not options.card:
        record_facts(options.file, file)
        return
    # shuffled: one after the other, the parts would make any split by position one by numbers
    sets = {name: pd.concat([load_split(name, part) for part in PARTS]).sample(
        frac=1, random_state=0, ignore_index=True) for name in SHIPPED}
    print(card(sets, {"public": json.loads(file.read_text(encoding="utf-8"))["facts"]}))
    for n in (3, 4):
        print(f"\n{n} random numbers: {solvable_at_random(n):.1%} solvable")


if __name__ == "__main__":
    main()
