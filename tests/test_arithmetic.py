"""The evaluator: exact on every expression, a ValueError on everything else, and always quick."""

import time
import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.arithmetic import BEYOND, MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, as_puzzle, evaluate

REFUSED = {
    "power": "2**5", "power with spaces": "2 * * 5", "floor division": "7//2", "modulo": "7%2",
    "decimal": "1.5", "leading dot": ".5", "trailing dot": "5.", "ellipsis": "...",
    "exponent": "1e2", "underscore": "1_0", "hexadecimal": "0x10", "complex": "1j",
    "leading zero": "07", "empty": "", "blank": "  \t\n ", "no operand": "()", "tuple": "(1, 2)",
    "two numbers": "1 2", "call": "1(2)", "star": "*1", "star inside": "(*1)", "name": "a",
    "import": "__import__('os').getcwd()", "attribute": "(1).real", "lambda": "(lambda: 1)()",
    "list": "[1]", "string": "'1'", "true": "True", "condition": "1 if 1 else 2", "less": "1<2",
    "tilde": "~1", "matrix": "1@2", "bit and": "1&2", "shift": "1<<9", "walrus": "(a:=1)",
    "statements": "1;2", "comment": "1#2", "two lines": "1\n2", "broken line": "1 +\n2",
    "equation": "1=1", "open": "(1", "closed": "1)", "dangling": "1 -", "factorial": "5!",
    "zero division": "1/0", "hidden zero": "1/(2-2)", "zero quotient": "1/(0/3)",
    "Arabic digit": "\u0663+1", "full-width digit": "\uff11+1", "superscript": "2\u00b2",
    "no-break space": "1\u00a0+1", "no-break space at the end": "1+1\u00a0",
    "em space": "\u20031", "ideographic space": "1+1\u3000", "zero-width space": "1\u200b+1",
    "minus sign": "2\u22121", "times sign": "2\u00d72", "null": "1\x00", "surrogate": "1\ud800",
}


def trees(draw, depth):
    """Draw an expression together with its value, None where it divides by zero."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number)
    (a, x), (b, y) = trees(draw, depth - 1), trees(draw, depth - 1)
    space = draw(st.sampled_from(["", " ", "\t", "  "]))
    operator = draw(st.sampled_from("+-*/"))
    if x is None or y is None or (operator == "/" and y == 0):
        value = None
    else:
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x / (y or 1)}[operator]
    sign = draw(st.sampled_from(["", "", "", "-", "+"]))
    if sign == "-" and value is not None:
        value = -value
    return f"{sign}(({a}){space}{operator}{space}({b}))", value


@settings(deadline=None)
@given(st.composite(lambda draw: trees(draw, 3))())
def test_random_expressions_are_exact(drawn):
    text, value = drawn
    if value is None:
        with pytest.raises(ValueError, match="divides by zero"):
            evaluate(text)
    else:
        assert evaluate(text) == value


@pytest.mark.parametrize("text, value", [
    ("7", 7), ("1/3*3", 1), ("1 - 1/49*49", 0), ("8/(3-8/3)", 24), ("2+3*4-5", 9), ("2-3-4", -5),
    ("8/4/2", 1), ("8/4*2", 4), ("-2*-3", 6), ("--2", 2), ("+5-+3", 2), ("-(2-5)", 3),
    ("6/(1-2)", -6), ("0/7", 0), ("\t1 +\t2\r\n", 3), ("\f1+2\v", 3), ("(1 +\n2)", 3),
    ("1/3", Fraction(1, 3)), ("9" * MAX_DIGITS, 10**MAX_DIGITS - 1),
    ("-" * (MAX_DEPTH - 1) + "1", (-1) ** (MAX_DEPTH - 1)), ("1" + " " * (MAX_LENGTH - 1), 1),
])
def test_values(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_everything_else_is_refused(text, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python's parser may warn of 1(2)
        with pytest.raises(ValueError):
            evaluate(text)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text, words", [
    ("1" + " " * MAX_LENGTH, f"longer than {MAX_LENGTH}"),
    ("1+" * 128 + "1", f"longer than {MAX_LENGTH}"),
    ("-" * MAX_DEPTH + "1", f"more than {MAX_DEPTH} deep"),
    ("1" + "+1" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
    ("(1+" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
    ("1" + "0" * MAX_DIGITS, f"at most {MAX_DIGITS} digits"),
    ("2**5", "only the operators"), ("1.5", "only integers"), ("1(2)", "only + - * / on integers"),
    ("1 2", "not an arithmetic expression"), ("3/0", "divides by zero"),
])
def test_messages_say_what_is_wrong(text, words):
    with pytest.raises(ValueError) as error:
        evaluate(text)
    assert words in str(error.value)


@pytest.mark.parametrize("text", [
    "99**98**7", "9**9**9**9", "(" * 127 + "1" + ")" * 127, "-" * 255 + "1", "9" * 255,
    "(" * 5000 + "1" + ")" * 5000, "-" * 100_000 + "1", "1+" * 100_000 + "1", "9" * 1_000_000,
    "*".join(["9" * 12] * 19), "/".join(["9" * 12] * 19),
], ids=lambda text: f"{text[:9]}, {len(text)} characters")
def test_bounded_time(text):
    start = time.perf_counter()
    try:
        evaluate(text)
    except ValueError:
        pass
    assert time.perf_counter() - start < 0.5  # in practice below a millisecond


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=300), st.text("0123456789+-*/().=\n\t _eE", max_size=60),
                 st.text("12+-*/() ", max_size=14)))
def test_any_text_gives_a_value_or_a_value_error(text):
    try:
        value = evaluate(text)
    except ValueError:
        return
    assert type(value) is Fraction
    assert set(text) <= set("0123456789+-*/() \t\n\r\f\v") and "**" not in text and "//" not in text


def test_the_largest_target_has_twelve_digits_with_either_sign():
    assert as_puzzle([1, BEYOND - 1], BEYOND - 1) == ([1, BEYOND - 1], BEYOND - 1)
    assert as_puzzle([1, 2], 1 - BEYOND)[1] == 1 - BEYOND
    for nums, target in (([1, 2], BEYOND), ([1, 2], -BEYOND), ([1, BEYOND], 3), ([1, -1], 3)):
        with pytest.raises(ValueError, match="12 digits at most"):
            as_puzzle(nums, target)
