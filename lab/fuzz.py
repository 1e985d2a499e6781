"""Fuzz both rewards: ``python -m lab.fuzz --completions 1000000`` writes data/fuzz.json.

Four sources: recorded completions mutated, recorded completions whose answer alone is mutated,
equations made by a grammar (a part of them solutions), and text without any plan. Each completion
is scored alone, timed, and judged a second time by code that shares nothing with the rewards: a
regular expression for the structure, and a parser of its own, with fractions, for the value.
"""

import argparse
import gc
import json
import random
import re
import time
from collections import Counter
from fractions import Fraction

import pandas as pd

from helpers.paths import DATA, show
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import REFERENCE_RUNS, environment, find_runs, write_json
from helpers.solver import solutions

RESULT = DATA / "fuzz.json"
LIMIT_MS = 5.0
_NEAR = Fraction(1, 100_000)
_STRUCTURE = re.compile(r"^<think>([\s\S]*?)</think>\n<answer>([\s\S]*?)</answer>$")


# Completions.

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "</think>\n<answer>", "\n", "\r", " ",
          "=", "+", "-", "*", "/", "**", "//", "(", ")", ".", "0", "1", "7", "36", "4*9*1 = 36",
          "1e2", "_", "x", "<", ">", "\u00a0", "\u2028", "\u0663", "\uff13", "\u00b2", "\u2212",
          "\u00d7", "\x00", "\ud800", "None", "__import__('os')", "{}", "%s", "99**98**7",
          "\U0001f642"]
_CHARACTERS = "0123456789+-*/().= \t\n\r_eEjx<>\u00a0\u0663\uff13"


def expression(nums, rng):
    """Write a random expression of the numbers with + - * / and some parentheses."""
    if len(nums) == 1:
        return rng.choice(["{}"] * 15 + ["({})", "-{}", "+{}"]).format(nums[0])
    cut, space = rng.randrange(1, len(nums)), rng.choice(["", " ", " ", " ", "  ", "\t"])
    left, right = expression(nums[:cut], rng), expression(nums[cut:], rng)
    text = f"{left}{space}{rng.choice('++--**/')}{space}{right}"
    return f"({text})" if rng.random() < 0.5 else text


def mutated(text, rng):
    """Return the text after one to four random edits."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.choice([0, 1, 1, 2, 5, 40]))
        edit = rng.randrange(7)
        if edit == 0:
            middle = ""
        elif edit == 1:
            middle = text[i:j] * rng.choice([2, 3, 50])
        elif edit == 2:
            middle = text[i:j][::-1]
        elif edit == 3:
            middle = str(rng.randint(0, 99))
        else:
            middle = rng.choice(PIECES)
        text = text[:i] + middle + text[j:]
    return text


def from_grammar(rng):
    """Return [text, nums, target]: an equation of the form's kind, about a third a solution."""
    nums = [rng.randint(1, rng.choice([6, 12, 99])) for _ in range(rng.randint(3, 5))]
    left = expression(rng.sample(nums, len(nums)), rng)
    value = exact_value(left)
    whole = value is not None and value.denominator == 1
    target = int(value) if whole and rng.random() < 0.8 else rng.randint(10, 100)
    right = rng.choice(["{v}"] * 6 + ["{t}", "{t}", "{v}.0", "{t}.000009", "{t}.00002", "-{v}", ""])
    right = right.format(v=value, t=target)
    if rng.random() < 0.3:
        left = mutated(left, rng)
    thought = rng.randint(0, 4) * f"{left} = {right} no\n"
    return [f"<think>{thought}</think>\n<answer>{left} = {right}</answer>", nums, target]


def without_plan(rng):
    """Return random text, one in five of it in the tags, one in fifty of 10,000 characters."""
    if rng.random() < 0.02:
        piece = "".join(rng.choices(PIECES, k=rng.randint(1, 3)))
        text = (piece * (10_000 // len(piece) + 1))[:10_000]
    elif rng.random() < 0.5:
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 14)))
    else:
        text = "".join(rng.choices(_CHARACTERS, k=rng.randint(0, 60)))
    return f"<think></think>\n<answer>{text}</answer>" if rng.random() < 0.2 else text


def recorded():
    """Return the completions of the recorded CPU runs as a list of [text, nums, target]."""
    columns = ["completion", "nums", "target"]
    frames = [pd.read_parquet(run / "evaluation.parquet", columns=columns)
              for run in find_runs("cpu", REFERENCE_RUNS)]
    if not frames:
        raise FileNotFoundError(f"no recorded completions in {show(REFERENCE_RUNS)}: check out "
                                "the repository's data, or record a run with lab.record")
    rows = pd.concat(frames).drop_duplicates("completion")
    return [[text, [int(n) for n in nums], int(target)]
            for text, nums, target in rows.itertuples(index=False)]


def completions(n, seed=0, real=None):
    """Draw fuzzed completions.

    Parameters
    ----------
    n : int
        How many.
    seed : int
        Of the draw.
    real : list, optional
        What is mutated, as `recorded` returns it.

    Yields
    ------
    tuple of str, str, list of int, int
        Source, text, numbers, target.
    """
    rng, real = random.Random(seed), real or recorded()
    for _ in range(n):
        text, nums, target = rng.choice(real)
        draw = rng.random()
        if draw < 0.3:
            yield "mutated", mutated(text, rng), nums, target
        elif draw < 0.6:
            head, tag, rest = text.partition("<answer>")
            answer, end, tail = rest.partition("</answer>")
            yield "answer mutated", head + tag + mutated(answer, rng) + end + tail, nums, target
        elif draw < 0.9:
            yield "grammar", *from_grammar(rng)
        else:
            yield "without plan", without_plan(rng), nums, target


# The second judge.

def exact_value(text):
    """Return the value of an expression of integers, ``+ - * /`` and parentheses, or None.

    A recursive descent over tokens: it shares neither parser nor arithmetic with the rewards.
    """
    tokens = re.findall(r"[0-9]+|[-+*/()]|[^\s]", text, re.ASCII)
    position = 0

    def peek():
        return tokens[position] if position < len(tokens) else ""

    def chain(operators, operand):
        nonlocal position
        value = operand()
        while peek() and peek() in operators:
            sign, position = peek(), position + 1
            other = operand()
            if sign == "/":
                value = value / other
            else:
                value = {"+": value + other, "-": value - other, "*": value * other}[sign]
        return value

    def factor():
        nonlocal position
        token, position = peek(), position + 1
        if token in ("+", "-"):
            return factor() if token == "+" else -factor()
        if token == "(":
            value = chain("+-", term)
            if peek() != ")":
                raise ValueError("a parenthesis is not closed")
            position += 1
            return value
        return Fraction(int(token))

    def term():
        return chain("*/", factor)

    try:
        value = chain("+-", term)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return value if position == len(tokens) else None


def refuses(text, nums, target):
    """Return why the second judge would not pay this completion, or None if it would."""
    blocks = re.findall(r"<answer>([^<]*)</answer>", text)
    if len(blocks) != 1 or len(re.findall("</?answer>", text)) != 2:
        return "not one answer"
    sides = blocks[0].split("=")
    if len(sides) != 2:
        return "not one ="
    if not re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", sides[1], re.ASCII):
        return "the right side is no number"
    if Counter(map(int, re.findall("[0-9]+", sides[0]))) != Counter(nums):
        return "other numbers"
    value, stated = exact_value(sides[0]), Fraction(sides[1].strip())
    if value is None:
        return "no expression"
    if abs(value - stated) > _NEAR:
        return "the sides differ"
    if abs(value - target) > _NEAR:
        return "not the target"
    whole = value == target and len(nums) <= 4 and target >= 0
    return "the solver finds no solution" if whole and not solutions(nums, target) else None


def form_by_the_specification(text):
    """Return the format reward by its regular expression, which is slow on long texts."""
    match = _STRUCTURE.match(text)
    if match is None:
        return 0.0
    answer = match[2]
    lines = [line for line in answer.splitlines() if line.strip()]
    allowed = set("0123456789+-*/().= \t\n\r\f\v")
    return 1.0 if len(lines) == 1 and "=" in answer and set(answer) <= allowed else 0.1


def fuzz(n, seed=0, form=strict_format_reward_func, equation=equation_reward_func, real=None):
    """Score fuzzed completions, time each, and let the second judge look at what was paid.

    Parameters
    ----------
    n : int
        Completions.
    seed : int
        Of the draw.
    form, equation : callable
        The rewards, called as trl calls them, with a batch of one.
    real : list, optional
        What is mutated, as `recorded` returns it.

    Returns
    -------
    dict
        ``completions`` and ``sources``; ``distinct`` texts; ``paid`` by the equation reward and
        ``formed`` (format reward 1.0); ``wrongly_paid``, ``wrong_form``, ``slow``: how
        many (of the format's specification, only texts up to 2,000 characters are asked);
        ``slowest_ms`` and ``p999_ms``, the process's CPU time for both rewards (a completion over
        the limit is timed five times more, and the least time counts: `first_slowest_ms` is
        before that); ``examples`` of what went wrong. An exception of a reward is not counted but
        raised, with the completion in its notes.
    """
    found, sources, times, texts, examples = Counter(), Counter(), [], set(), []
    first_slowest, clock = 0.0, time.process_time_ns

    def note(kind, text, nums, target, why):
        found[kind] += 1
        if len(examples) < 20:
            examples.append([kind, ascii(text[:300]), nums, target, why])

    gc.collect()
    gc.freeze()  # the recorded completions: no collection has to walk through them
    for source, text, nums, target in completions(n, seed, real):
        def score(text=text, nums=nums, target=target):
            start = clock()
            scores = form([text])[0], equation([""], [text], [target], [nums])[0]
            return scores, (clock() - start) / 1e6

        sources[source] += 1
        texts.add(hash(text))
        try:
            (formed, paid), spent = score()
        except BaseException as error:
            error.add_note(f"on the completion {text!r} for {nums} -> {target}")
            raise
        first_slowest = max(first_slowest, spent)
        if spent > LIMIT_MS:
            spent = min(score()[1] for _ in range(5))
            if spent > LIMIT_MS:
                note("slow", text, nums, target, f"{spent:.1f} ms")
        times.append(spent)
        found["formed"] += formed == 1.0
        found["paid"] += paid == 1.0
        if paid not in (0.0, 1.0) or (paid and (why := refuses(text, nums, target))):
            note("wrongly_paid", text, nums, target, why if paid == 1.0 else f"pays {paid}")
        if len(text) <= 2000 and formed != form_by_the_specification(text):
            note("wrong_form", text, nums, target, f"pays {formed}")
    gc.unfreeze()
    times = pd.Series(times, dtype=float)
    counts = {k: found[k] for k in ("paid", "formed", "wrongly_paid", "wrong_form", "slow")}
    return {"completions": n, "seed": seed, "sources": dict(sources), "distinct": len(texts),
            **counts, "median_ms": round(times.median(), 4),
            "p999_ms": round(times.quantile(0.999), 4), "slowest_ms": round(times.max(), 3),
            "first_slowest_ms": round(first_slowest, 3), "limit_ms": LIMIT_MS,
            "examples": examples}


def main(argv=None):
    """Read the command line, fuzz, write the figures; exit with 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m lab.fuzz", description=__doc__)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.completions < 1:
        parser.error("--completions has to be 1 or more")
    start = time.monotonic()
    result = fuzz(options.completions, options.seed)
    result["seconds"] = round(time.monotonic() - start, 1)
    about = environment(on_gpu=False)
    result |= {"python": about["versions"]["python"], "hardware": about["hardware"],
               "date": about["date"], "command": "python -m lab.fuzz "
               f"--completions {options.completions} --seed {options.seed}"}
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))
    print(f"written to {show(RESULT)}")
    bad = ("wrongly_paid", "wrong_form", "slow")
    return int(any(result[k] for k in bad))


if __name__ == "__main__":
    raise SystemExit(main())
