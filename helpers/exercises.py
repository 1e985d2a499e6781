"""What a notebook asks of its reader: a prediction, or a few lines of code, and a check of each."""

import numpy as np

NOT_ANSWERED = "not answered yet: write your guess in the cell above, and run both cells again"
STILL_TO_DO = "still to do: write your own lines in this cell, and run it again"


def predicted(guess, answer, within=0.0, because=""):
    """Compare a reader's prediction with what came out, and print one line.

    Parameters
    ----------
    guess, answer : object
        The prediction, None for none yet, and what is right: numbers, texts or sets of them.
    within : float
        How far from the answer a number may lie and still be called right.
    because : str
        A sentence on why, printed after the verdict.
    """
    if guess is None:
        print(NOT_ANSWERED)
        return
    verdict = "right" if _same(guess, answer, within) else f"you said {guess}; it is {answer}"
    print(f"{verdict}. {because}".strip())


def check(attempt, cases, hint=""):
    """Try a reader's function on some cases, and print how far it is.

    Parameters
    ----------
    attempt : callable
        The function of an exercise. As long as it returns None, the exercise is still to do.
    cases : sequence of (tuple, object)
        Arguments, and what the function returns for them: numbers, arrays, tensors or texts.
    hint : str
        What helps when a case comes out wrong.
    """
    got = [attempt(*arguments) for arguments, _ in cases]
    if all(result is None for result in got):
        print(STILL_TO_DO)
        return
    for (arguments, expected), result in zip(cases, got, strict=True):
        if not _same(result, expected, 1e-4):
            shown = ", ".join(map(repr, arguments))
            print(f"not yet: {attempt.__name__}({shown}) gives {result!r} and not {expected!r}. "
                  f"{hint}".strip())
            return
    print("done")


def reached(attempt, passes, hint=""):
    """Say whether what a reader made does what an exercise asks for.

    Parameters
    ----------
    attempt : object
        What the reader made, a number or a text for example; None for nothing yet.
    passes : callable
        Takes the attempt and returns whether it does.
    hint : str
        What helps when it does not.
    """
    if attempt is None:
        print(STILL_TO_DO)
    else:
        print("done" if passes(attempt) else f"not yet. {hint}".strip())


def _same(one, other, within):
    if one is None or isinstance(other, str | set | bool):
        return type(one) is type(other) and one == other
    try:
        return bool(np.allclose(one, other, atol=within, rtol=0))
    except (TypeError, ValueError):  # not numbers, or of another shape
        return False
