"""What the tries of a thought are worth: how many use the numbers, are right, and are new.

A try is a line that holds a calculation (`lab.habits`). It need not reach the target to be useful.

``python -m lab.useful smollm2-seed0 cpu-seed0`` counts in the completions of recorded runs.
"""

import argparse

import pandas as pd

from helpers.prompts import completion_text, parse_completion
from helpers.rewards import equation_reward_func
from helpers.runs import read_config
from lab.habits import is_true, legal, tries
from lab.report import find_run


def right(steps):
    """Return whether each of a try's calculations gives what is written."""
    return all(map(is_true, steps))


def useful(text, nums):
    """Return the different tries of a completion that are legal and right, as a set of steps."""
    return {one.steps for one in tries(text) if legal(one.steps, nums) and right(one.steps)}


def tries_reward(most):
    """Return a reward that also pays, where the puzzle is not solved, for useful tries.

    Parameters
    ----------
    most : int
        So many useful tries are paid in full; fewer in proportion.

    Returns
    -------
    callable
        1.0 for a completion that solves the puzzle; for another that gives an answer, useful tries
        / most, at most 1.0; else 0.0: so what is cut off is paid nothing.
    """
    def useful_tries(prompts, completions, target, nums, **kwargs):
        solved = equation_reward_func(prompts, completions, target, nums)
        texts = map(completion_text, completions)
        return [1.0 if yes else 0.0 if parse_completion(text).answer is None
                else min(1.0, len(useful(text, given)) / most)
                for yes, text, given in zip(solved, texts, nums, strict=True)]

    return useful_tries


def count(frame, limit):
    """Count the tries of graded completions.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `helpers.evaluation.sample_completions`.
    limit : int
        The longest completion allowed, in tokens.

    Returns
    -------
    pandas.DataFrame
        One row for each stage, temperature and number of given numbers: the shares of completions
        that are solved, solved with one try, and cut off; tries a completion; the shares of tries
        that are legal, right, and useful (both, and new); and useful tries a completion.
    """
    rows = []
    for row in frame.itertuples():
        found = [(one.steps, legal(one.steps, row.nums), right(one.steps))
                 for one in tries(row.completion)]
        rows.append({
            "stage": row.stage, "temperature": row.temperature, "numbers": len(row.nums),
            "completions": 1, "solved": row.correct, "at once": row.correct and len(found) == 1,
            "cut off": row.tokens >= limit, "tries": len(found),
            "legal": sum(uses for _, uses, _ in found), "right": sum(true for *_, true in found),
            "useful": len({steps for steps, uses, true in found if uses and true})})
    keys = ["stage", "temperature", "numbers"]
    table = pd.DataFrame(rows).groupby(keys, sort=False).sum()
    for column in ("solved", "at once", "cut off"):
        table[column] /= table["completions"]
    for column in ("legal", "right"):
        table[column] /= table["tries"]
    table["useful share"] = table["useful"] / table["tries"]
    for column in ("tries", "useful"):
        table[column] /= table["completions"]
    return table.sort_index(ascending=[False, True, True])


def main():
    """Read the command line and print one table a run."""
    parser = argparse.ArgumentParser(prog="python -m lab.useful", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder, or a name under data/")
    for name in parser.parse_args().runs:
        try:
            run = find_run(name)
        except ValueError as error:
            parser.error(str(error))
        frame = pd.read_parquet(run / "evaluation.parquet")
        if "completion" not in frame:
            parser.error(f"{name} kept no completions to count in: give a run that did")
        limit = read_config(run)["profile"]["max_completion_length"]
        print(f"{name}\n{count(frame, limit).round(3).to_string()}\n")


if __name__ == "__main__":
    main()
