"""Tell puzzles apart, and count what leaks from training to test.

A puzzle is a row of a table: `nums`, the numbers as a list, and `target`. The order of the numbers
does not matter to the game: two rows are the same puzzle when their canonical forms are equal.
"""


def canonical(nums, target):
    """The canonical form of a puzzle, equal for two rows exactly when they are the same puzzle.

    Parameters
    ----------
    nums, target : sequence of int, int
        The given numbers, in any order, and the value to reach.

    Returns
    -------
    tuple
        ``(sorted numbers as a tuple, target)``.
    """
    return tuple(sorted(int(x) for x in nums)), int(target)


def multisets(puzzles):
    """The sorted numbers of each row, as a tuple."""
    return [tuple(sorted(nums)) for nums in puzzles["nums"]]


def leakage(train, test):
    """How much of a test set is also in the training set.

    Parameters
    ----------
    train, test : pandas.DataFrame
        Columns `nums` and `target`.

    Returns
    -------
    dict of str to float
        `puzzles`: the share of test rows whose puzzle, whatever the order of its numbers, is in
        training too; `multisets`: the share of test rows whose numbers are, whatever the target.
    """
    if test.empty:
        raise ValueError("the test set is empty, so it has no shares: give at least one row")
    known, asked = (list(zip(multisets(table), table["target"], strict=True))
                    for table in (train, test))
    known_puzzles, known_sets = set(known), {nums for nums, _ in known}
    return {"puzzles": sum(pair in known_puzzles for pair in asked) / len(test),
            "multisets": sum(nums in known_sets for nums, _ in asked) / len(test)}
