"""What a notebook asks of its reader: a prediction, some code, a quiz, and a check of each."""

import json
import re

import numpy as np

from helpers.paths import DATA

NOT_ANSWERED = "not answered yet: write your guess after my_guess = above, and run both cells again"
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
    right = _same(_meant(guess, answer), answer, within)
    shown = f"{answer:.4g}" if isinstance(answer, float) else answer
    print(f"{'right' if right else f'you said {guess}; it is {shown}'}. {because}".strip())


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
            print(f"not yet: {attempt.__name__}({', '.join(map(repr, arguments))}) gives "
                  f"{result!r} and not {expected!r}. {hint}".strip())
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


def quiz(notebook, answers):
    """Say which answers to a notebook's quiz are right, and what is wrong with the others.

    Parameters
    ----------
    notebook, answers : str
        The notebook's number, "04" for example, and five letters; None for no answers yet.
    """
    if not re.fullmatch("[a-d]{5}", letters := re.sub(r"[\W_]", "", str(answers)).lower()):
        print('not answered yet: write five letters a-d, such as "abcda", and run this cell again')
        return
    asked = json.loads((DATA / "quiz.json").read_text(encoding="utf-8"))[notebook]
    for number, (letter, one) in enumerate(zip(letters, asked, strict=True), start=1):
        right = letter == one["right"]
        print(f"{number} {letter}: {'right' if right else 'wrong'}. {one['options'][letter]['why']}"
              + f' Read again: "{one["again"]}".' * (not right))


def _meant(guess, answer):
    """Return a guess that was written as a text as it is meant: "Up" as "up", "68 %" as 68."""
    if not isinstance(guess, str):
        return guess
    if isinstance(answer, str):
        one, other = (re.sub(r"[\W_]", "", text).lower() for text in (guess, answer))
        return answer if one == other else guess
    try:
        return float(guess.strip(" %"))
    except ValueError:
        return guess


def _same(one, other, within):
    if one is None or isinstance(other, str | set | bool):
        return type(one) is type(other) and one == other
    try:
        return bool(np.allclose(one, other, atol=within, rtol=0))
    except (TypeError, ValueError):  # not numbers, or of another shape
        return False
