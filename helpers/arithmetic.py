"""Exact evaluation of arithmetic text that a model wrote, without `eval`."""

import ast
import operator
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from reprlib import repr as short

MAX_LENGTH = 256  # characters; six numbers with every parenthesis and space need fewer than 100
MAX_DEPTH = 40  # nested operations, signs included
MAX_DIGITS = 12  # of one number: keeps every product small
BEYOND = 10**MAX_DIGITS

ALLOWED = frozenset("0123456789+-*/() \t\n\r\f\v")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: Fraction}  # Fraction(3, 4) is three quarters, exactly
SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg}
NO_OPERATORS = str.maketrans("+-*/()", " " * 6)


def whole(value, lowest=0):
    """Return a whole number of any type as an int: 98.0, Decimal(98) and tensor(98) are 98.

    Raises
    ------
    TypeError, ValueError
        For text, a bool, a list; for 98.5, a null, less than `lowest`, more than 12 digits.
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value  # of numpy or torch
    named = f"{short(value)} ({type(value).__name__})"
    if isinstance(number, bool) or not isinstance(number, Real | Decimal | None):
        text = ": convert text with int() first" if isinstance(number, str) else ""
        raise TypeError(f"{named} is not a number{text}")
    if number is None or number != number:  # NaN differs from itself
        raise ValueError(f"{named} is a null, not a number")
    if not lowest <= number < BEYOND or number != int(number):
        least = "0 or more" if lowest == 0 else "either sign"
        raise ValueError(f"{named} is not a whole number of {least}, {MAX_DIGITS} digits at most")
    return int(number)


def as_puzzle(nums, target):
    """Return a puzzle's numbers, a list, tuple or 1-d array or tensor, and its target as int.

    Raises
    ------
    TypeError, ValueError
        For anything else, see `whole`: no completion could solve it.
    """
    numbers = nums.tolist() if getattr(nums, "ndim", None) == 1 else nums
    if not isinstance(numbers, (list, tuple)) or not numbers:
        text = ": read text with json.loads first" if isinstance(nums, str) else ""
        raise TypeError(f"nums is {short(nums)} ({type(nums).__name__}), no list of numbers{text}")
    numbers = [n if type(n) is int and 0 <= n < BEYOND else whole(n) for n in numbers]
    small = type(target) is int and -BEYOND < target < BEYOND
    return numbers, target if small else whole(target, 1 - BEYOND)


def evaluate(text):
    """Evaluate integers combined by ``+ - * /``, parentheses and unary signs.

    Parameters
    ----------
    text : str
        The expression, for example ``"1 / (2 - 5 / 3)"``.

    Returns
    -------
    fractions.Fraction
        The exact value, for this example ``Fraction(3, 1)``.

    Raises
    ------
    ValueError
        If the text is no such expression, divides by zero, or is longer or deeper than the caps.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not ALLOWED.issuperset(text):
        raise ValueError("only integers, + - * / and parentheses are allowed")
    try:
        return Fraction(value_of(ast.parse(text.strip(), mode="eval").body))
    except ZeroDivisionError as error:
        raise ValueError("the expression divides by zero") from error
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("this is not an arithmetic expression") from error


def value_of(node, depth=MAX_DEPTH):
    """Return the exact value, int or Fraction, of a node of Python's syntax tree.

    Raises
    ------
    ValueError, ZeroDivisionError
        For every node but integers, ``+ - * /`` and signs, and beyond the caps.
    """
    if depth == 0:
        raise ValueError(f"the expression is nested more than {MAX_DEPTH} deep")
    match node:
        case ast.Constant(number):
            if type(number) is int and number < BEYOND:
                return number
            raise ValueError(f"only integers of at most {MAX_DIGITS} digits are allowed")
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value_of(left, depth - 1), value_of(right, depth - 1))
        case ast.UnaryOp(sign, operand) if type(sign) in SIGNS:
            return SIGNS[type(sign)](value_of(operand, depth - 1))
        case ast.BinOp() | ast.UnaryOp():  # ** and // are made of allowed characters
            raise ValueError("only the operators + - * / are allowed")
    raise ValueError("only + - * / on integers are allowed")


def combine(op, left, right):
    """Apply `op` to two fractions: pairs (numerator, denominator) of integers or arrays."""
    (a, b), (c, d) = left, right
    if op == "+":
        return a * d + c * b, b * d
    if op == "-":
        return a * d - c * b, b * d
    return (a * c, b * d) if op == "*" else (a * d, b * c)


def written_numbers(text):
    """What stands between an expression's operators, in order: "(8 - 6) * 07" is 8, 6 and 07."""
    return text.translate(NO_OPERATORS).split()
