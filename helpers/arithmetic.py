"""Exact evaluation of arithmetic text that a model wrote, without `eval`."""

import ast
from fractions import Fraction

MAX_LENGTH = 256  # characters; six numbers with every parenthesis and space need fewer than 100
MAX_DEPTH = 40  # nested operations, signs included
MAX_DIGITS = 12  # of one number: keeps every product small

_SPACE = " \t\n\r\f\v"  # not str.strip's default, which takes other scripts' spaces, too
_ALLOWED = frozenset("0123456789+-*/()" + _SPACE)
_NO_OPERATORS = str.maketrans("+-*/()", " " * 6)
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.UAdd: "+", ast.USub: "-"}


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
    return Fraction(*ratio(text))


def ratio(text):
    """Evaluate like `evaluate`, into plain integers: they are faster to compare than Fractions.

    Parameters
    ----------
    text : str
        As for `evaluate`, with the same errors.

    Returns
    -------
    tuple of int
        Numerator and denominator, not reduced; the denominator is never 0 but may be negative.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _ALLOWED.issuperset(text):
        raise ValueError("only integers, + - * / and parentheses are allowed")
    try:
        tree = ast.parse(text.strip(_SPACE), mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("this is not an arithmetic expression") from error
    return _ratio(tree.body, MAX_DEPTH)


def _ratio(node, depth):
    """Value of a syntax node as an unreduced (numerator, denominator)."""
    if depth == 0:
        raise ValueError(f"the expression is nested more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Constant):
        if type(node.value) is not int or node.value >= 10**MAX_DIGITS:
            raise ValueError(f"only integers of at most {MAX_DIGITS} digits are allowed")
        return node.value, 1
    if isinstance(node, ast.UnaryOp):  # -x is 0 - x
        left, right = (0, 1), _ratio(node.operand, depth - 1)
    elif isinstance(node, ast.BinOp):
        left, right = _ratio(node.left, depth - 1), _ratio(node.right, depth - 1)
    else:
        raise ValueError("only + - * / on integers are allowed")
    op = _OPERATORS.get(type(node.op))
    if op is None:  # ** and // are made of allowed characters
        raise ValueError("only the operators + - * / are allowed")
    if op == "/" and right[0] == 0:
        raise ValueError("the expression divides by zero")
    return combine(op, left, right)


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
    return text.translate(_NO_OPERATORS).split()
