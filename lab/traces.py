"""Thoughts to imitate before reinforcement learning: tries, verdicts and an answer, as text.

A model that never writes a correct answer gets no reward to learn from, and one that cannot tell
a hit from a miss has nothing to search with. These traces teach the form and the check, not good
play: most tries are random, and many traces give up and answer wrongly.
"""

import functools
import random

MAX_VALUE = 999  # largest value that a try may pass through, unless the caller says otherwise


def calculations(a, b, max_value=MAX_VALUE):
    """Return every (left, operator, right, result) on two numbers, results integers of 0 or more.

    The larger number stands on the left of ``-`` and ``/``; both orders of ``+`` and ``*`` would
    be the same calculation, so one of them is given.
    """
    high, low = max(a, b), min(a, b)
    steps = [(a, "+", b, a + b), (high, "-", low, high - low), (a, "*", b, a * b)]
    if low and high % low == 0:
        steps.append((high, "/", low, high // low))
    return [step for step in steps if step[3] <= max_value]


def _rest(pool, a, b, result):
    left = list(pool)
    left.remove(a)
    left.remove(b)
    return tuple(sorted(left + [result]))


@functools.lru_cache(maxsize=200_000)
def derivations(pool, target, max_value=MAX_VALUE):
    """Return every way to combine all numbers of `pool` into `target`, each a tuple of steps.

    Parameters
    ----------
    pool : tuple of int
        The numbers, sorted.
    target : int
        The value of the last step.
    max_value : int
        The largest value that a step may give.
    """
    found = []
    pairs = {(a, b) for i, a in enumerate(pool) for b in pool[i + 1 :]}
    for a, b in sorted(pairs):
        for step in calculations(a, b, max_value):
            if len(pool) == 2:
                found += [(step,)] if step[3] == target else []
            else:
                tails = derivations(_rest(pool, a, b, step[3]), target, max_value)
                found += [(step, *tail) for tail in tails]
    return tuple(found)


def random_try(nums, rng, max_value=MAX_VALUE):
    """Return one random derivation that uses every number once, whatever it gives.

    Raises
    ------
    ValueError
        If a number is larger than `max_value`: no calculation might be left then.
    """
    if max(nums) > max_value:
        raise ValueError(f"{max(nums)} is larger than max_value={max_value}; raise max_value")
    pool, steps = list(nums), []
    while len(pool) > 1:
        a, b = rng.sample(pool, 2)
        step = rng.choice(calculations(a, b, max_value))  # never empty: the difference is allowed
        pool.remove(a)
        pool.remove(b)
        pool.append(step[3])
        steps.append(step)
    return tuple(steps)


def expression(steps):
    """Write a derivation as one expression with no parentheses more than it needs.

    >>> expression(((8, "-", 6, 2), (2, "*", 7, 14)))
    '(8 - 6) * 7'
    """
    written = []  # (value, text, outermost operator) of every result not used yet
    for left, operator, right, result in steps:
        parts = []
        for number in (left, right):
            match = next((w for w in written if w[0] == number), None)
            if match:
                written.remove(match)
            parts.append(match or (number, str(number), None))
        (_, a, inner_a), (_, b, inner_b) = parts
        if operator in "*/" and inner_a in ("+", "-"):
            a = f"({a})"
        if (operator in "*/" and inner_b in ("+", "-")) or (operator in "-/" and inner_b):
            needed = operator == "/" or inner_b in ("+", "-")
            b = f"({b})" if needed else b
        written.append((result, f"{a} {operator} {b}", operator))
    return written[-1][1]


def write_steps(steps):
    """Write a derivation as a thought does: ``8 - 6 = 2, 2 * 7 = 14``."""
    return ", ".join(f"{a} {operator} {b} = {c}" for a, operator, b, c in steps)


def trace(nums, target, rng, hit_rate=0.2, max_tries=8, max_value=MAX_VALUE):
    """Write one thought and answer in the demanded form.

    Parameters
    ----------
    nums : sequence of int
        The given numbers.
    target : int
        The number to reach.
    rng : random.Random
        Source of every choice.
    hit_rate : float
        Share of the tries that are a real solution; the others are random.
    max_tries : int
        The trace gives up after a number of tries drawn evenly from 1 to this.
    max_value : int
        The largest value that a step may give.

    Returns
    -------
    str
        ``<think>...</think>`` with a try a line, each ending in yes or no, a newline and
        ``<answer>...</answer>`` with the last try.
    """
    solutions = derivations(tuple(sorted(nums)), target, max_value)
    lines = []
    for _ in range(rng.randint(1, max_tries)):
        hit = solutions and rng.random() < hit_rate
        steps = _shuffled(rng.choice(solutions), rng) if hit else random_try(nums, rng, max_value)
        value = steps[-1][3]
        lines.append(f"{write_steps(steps)} {'yes' if value == target else 'no'}")
        if value == target:
            break
    thought = "\n".join(lines)
    return f"<think>{thought}</think>\n<answer>{expression(steps)} = {value}</answer>"


def _shuffled(steps, rng):
    """Swap the sides of + and * at random, as a random try has them."""
    return tuple(
        (b, o, a, c) if o in "+*" and rng.random() < 0.5 else (a, o, b, c) for a, o, b, c in steps
    )


def examples(puzzles, n_examples, seed=0, **options):
    """Return `n_examples` (nums, target, trace) rows over `puzzles`, numbers in random order."""
    rng = random.Random(seed)
    rows = list(zip(puzzles["nums"], puzzles["target"], strict=True))
    if not rows:
        raise ValueError("there is no puzzle to write traces for; give at least one row")
    found = []
    while len(found) < n_examples:
        rng.shuffle(rows)
        for nums, target in rows[: n_examples - len(found)]:
            nums = [int(n) for n in rng.sample(list(nums), len(nums))]
            text = trace(nums, int(target), rng, **options)
            found.append({"nums": nums, "target": int(target), "trace": text})
    return found


def count_tries(text):
    """Count the lines that hold a calculation in a completion's thought, cut off or not."""
    thought = text.split("</think>")[0].split("<answer>")[0]
    return sum("=" in line for line in thought.split("\n"))
