import json

import pytest
import torch

from helpers.exercises import NOT_ANSWERED, STILL_TO_DO, check, predicted, quiz, reached
from helpers.paths import DATA

KEY = json.loads((DATA / "quiz.json").read_text(encoding="utf-8"))


def said(capsys):
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(("guess", "answer", "within", "begins"), [
    (None, 3, 0, NOT_ANSWERED), (3, 3, 0, "right"), (2.9, 3, 0.2, "right"),
    (2.7, 3, 0.2, "you said 2.7; it is 3"), ("up", "up", 0, "right"),
    ("down", "up", 0, "you said down; it is up"), ({1}, {1}, 0, "right"),
    ({1, 2}, {1}, 0, "you said"),
    ("3", 3, 0, "right"), ("68 %", 68, 0, "right"), ("many", 3, 0, "you said many; it is 3"),
    (" Up", "up", 0, "right"), ("n f, e", "nfe", 0, "right"), (3, "up", 0, "you said 3; it is up"),
    (1, 98.09029308831295, 0, "you said 1; it is 98.09"), (0, 0.0, 0, "right"),
    ([1, 2], 3, 0, "you said"),
])
def test_a_prediction_is_compared(capsys, guess, answer, within, begins):
    predicted(guess, answer, within, because="So it is.")
    line = said(capsys)
    assert line.startswith(begins) and line.endswith("So it is." if guess is not None else begins)


def twice(x):
    return 2 * x


CASES = [((1,), 2), ((2.5,), 5.0), ((torch.tensor([1.0, 2.0]),), [2.0, 4.0])]


@pytest.mark.parametrize(("attempt", "begins"), [
    (lambda x: None, STILL_TO_DO), (twice, "done"),
    (lambda x: 2, "not yet: <lambda>(2.5) gives 2 and not 5.0. Multiply."),
    (lambda x: None if x is CASES[1][0][0] else 2 * x, "not yet: <lambda>(2.5) gives None"),
    (lambda x: "2", "not yet: <lambda>(1) gives '2' and not 2"),
    (lambda x: [2, 2], "not yet"),
])
def test_an_attempt_is_tried_on_every_case(capsys, attempt, begins):
    check(attempt, CASES, hint="Multiply.")
    assert said(capsys).startswith(begins)


def test_an_error_in_an_attempt_is_the_readers_to_see():
    with pytest.raises(ZeroDivisionError):
        check(lambda x: x / 0, [((1,), 1)])


def test_texts_and_truths_are_not_numbers(capsys):
    check(lambda x: x, [((True,), True)])
    assert said(capsys) == "done"
    check(lambda x: 1, [((True,), True)])
    assert said(capsys).startswith("not yet")


@pytest.mark.parametrize(("attempt", "line"), [
    (None, STILL_TO_DO), (4, "done"), (3, "not yet. Even numbers only.")])
def test_what_was_made_is_looked_at(capsys, attempt, line):
    reached(attempt, lambda number: number % 2 == 0, hint="Even numbers only.")
    assert said(capsys) == line


@pytest.mark.parametrize("notebook", KEY)
def test_right_answers_are_called_right_and_why(capsys, notebook):
    quiz(notebook, "".join(asked["right"] for asked in KEY[notebook]))
    assert said(capsys).splitlines() == [
        f"{number} {asked['right']}: right. {asked['options'][asked['right']]['why']}"
        for number, asked in enumerate(KEY[notebook], start=1)]


@pytest.mark.parametrize("notebook", KEY)
def test_a_wrong_answer_gets_its_own_reason_and_not_the_right_letter(capsys, notebook):
    for letter in "abcd":
        quiz(notebook, 5 * letter)
        for line, asked in zip(said(capsys).splitlines(), KEY[notebook], strict=True):
            right = letter == asked["right"]
            assert f" {letter}: {'right' if right else 'wrong'}. " in line
            assert asked["options"][letter]["why"] in line
            assert right == (asked["again"] not in line)
            assert right or asked["options"][asked["right"]]["text"] not in line


@pytest.mark.parametrize("given", ["ABCDA", " a, b, c, d, a ", list("abcda"), "a\nb\nc\nd\na"])
def test_letters_may_be_written_in_other_ways(capsys, given):
    quiz("01", "abcda")
    expected = said(capsys)
    quiz("01", given)
    assert said(capsys) == expected and expected.startswith("1 a: wrong. ")


@pytest.mark.parametrize("given", [None, "", "abcd", "abcdaa", "abcde", "äbcda", 5, True, ["a"],
                                   {"1": "a"}, 10_000 * "a"])
def test_other_answers_get_one_line_that_says_what_to_write(capsys, given):
    quiz("01", given)
    line = said(capsys)
    assert line.startswith("not answered yet: write five letters a-d") and "\n" not in line
