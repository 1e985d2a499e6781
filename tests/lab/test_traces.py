"""The traces that a model imitates before reinforcement learning."""

import random
import re
from fractions import Fraction

import pytest

from helpers.arithmetic import evaluate
from helpers.dataset import load_split
from helpers.profiles import CPU
from helpers.prompts import parse_completion
from helpers.rewards import is_correct, strict_format_reward_func
from lab import traces

STEP = re.compile(r"([0-9]+) ([-+*/]) ([0-9]+) = ([0-9]+)")


def pools(n, count, high, seed=0):
    """Random numbers; every second pool repeats one of them."""
    rng = random.Random(seed)
    for i in range(count):
        pool = [rng.randint(1, high) for _ in range(n)]
        yield pool if i % 2 else [pool[0], *pool[:-1]]


def replay(steps, nums):
    """Take every step's two numbers from what is left; return the last value."""
    left = list(nums)
    for a, operator, b, c in steps:
        left.remove(a)
        left.remove(b)
        assert evaluate(f"{a} {operator} {b}") == c and type(c) is int and c >= 0
        left.append(c)
    assert len(left) == 1
    return left[0]


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_a_random_try_is_exact_and_its_expression_has_the_stated_value(n):
    rng = random.Random(n)
    for nums in pools(n, 500, 30):
        steps = traces.random_try(nums, rng)
        assert len(steps) == n - 1
        value = replay(steps, nums)
        text = traces.expression(steps)
        assert evaluate(text) == value
        assert sorted(int(x) for x in re.findall("[0-9]+", text)) == sorted(nums)


def test_tries_differ_and_use_every_operator():
    rng = random.Random(0)
    seen = {traces.expression(traces.random_try([2, 3, 12], rng)) for _ in range(400)}
    assert len(seen) > 20
    assert all(any(f" {operator} " in text for text in seen) for operator in "+-*/")


def test_no_step_passes_the_largest_value():
    rng = random.Random(0)
    for nums in pools(3, 500, 12):
        assert max(step[3] for step in traces.random_try(nums, rng, max_value=30)) <= 30
    assert traces.calculations(12, 12, 100) == [(12, "+", 12, 24), (12, "-", 12, 0),
                                                (12, "/", 12, 1)]
    with pytest.raises(ValueError, match="raise max_value"):
        traces.random_try([200, 100, 3], rng, max_value=144)


@pytest.mark.parametrize(("pair", "expected"), [
    ((3, 12), [(3, "+", 12, 15), (12, "-", 3, 9), (3, "*", 12, 36), (12, "/", 3, 4)]),
    ((5, 12), [(5, "+", 12, 17), (12, "-", 5, 7), (5, "*", 12, 60)]),
    ((0, 7), [(0, "+", 7, 7), (7, "-", 0, 7), (0, "*", 7, 0)]),
])
def test_calculations(pair, expected):
    assert traces.calculations(*pair) == expected


@pytest.mark.parametrize(("steps", "text"), [
    (((8, "-", 6, 2), (2, "*", 7, 14)), "(8 - 6) * 7"),
    (((8, "-", 6, 2), (7, "*", 2, 14)), "7 * (8 - 6)"),
    (((8, "*", 6, 48), (48, "-", 7, 41)), "8 * 6 - 7"),
    (((8, "-", 6, 2), (7, "-", 2, 5)), "7 - (8 - 6)"),
    (((8, "*", 6, 48), (60, "-", 48, 12)), "60 - 8 * 6"),
    (((8, "+", 6, 14), (7, "+", 14, 21)), "7 + 8 + 6"),
    (((8, "*", 6, 48), (96, "/", 48, 2)), "96 / (8 * 6)"),
    (((8, "/", 2, 4), (12, "/", 4, 3)), "12 / (8 / 2)"),
    (((8, "/", 2, 4), (3, "*", 4, 12)), "3 * 8 / 2"),
    # A given number equals the first result: either may stand for it.
    (((4, "-", 2, 2), (2, "*", 2, 4)), "(4 - 2) * 2"),
    # Two results side by side.
    (((1, "+", 2, 3), (9, "-", 4, 5), (3, "*", 5, 15)), "(1 + 2) * (9 - 4)"),
])
def test_expression_has_no_parentheses_more_than_it_needs(steps, text):
    assert traces.expression(steps) == text
    assert evaluate(text) == steps[-1][3]


def test_derivations_are_solutions_and_miss_none():
    found = traces.derivations((4, 8, 11), 12, 144)
    assert {traces.expression(steps) for steps in found} == {"(11 - 8) * 4"}
    for pool in [(2, 3, 12), (1, 1, 6), (5, 5, 5), (2, 4, 6, 9)]:
        for target in range(31):
            solutions = traces.derivations(pool, target, 144)
            assert all(replay(steps, pool) == target for steps in solutions)
            assert len(set(solutions)) == len(solutions)
    rng = random.Random(0)
    for _ in range(300):  # whatever a random try reaches is among the derivations
        value = traces.random_try([2, 4, 6, 9], rng, 144)[-1][3]
        assert traces.derivations((2, 4, 6, 9), value, 144)


def test_every_training_puzzle_can_be_hit():
    frame = load_split("cpu", "train")
    assert all(traces.derivations(tuple(sorted(nums)), target, CPU.cold_start.max_value)
               for nums, target in zip(frame["nums"], frame["target"], strict=True))


@pytest.fixture(scope="module")
def rows():
    return traces.examples(load_split("cpu", "train"), 3000, seed=1, max_value=144)


def test_a_trace_is_honest_line_by_line(rows):
    for row in rows:
        parsed = parse_completion(row["trace"])
        lines = parsed.think.split("\n")
        assert 1 <= len(lines) <= 8
        for i, line in enumerate(lines):
            steps = [(int(a), o, int(b), int(c)) for a, o, b, c in STEP.findall(line)]
            value = replay(steps, row["nums"])
            verdict = "yes" if value == row["target"] else "no"
            assert line == f"{traces.write_steps(steps)} {verdict}"
            assert verdict == "no" or i == len(lines) - 1  # it stops at the first hit
        left, right = parsed.answer.split(" = ")
        assert evaluate(left) == Fraction(right) == value  # the answer is the last try


def test_format_always_right_and_answer_right_exactly_after_yes(rows):
    texts = [row["trace"] for row in rows]
    assert set(strict_format_reward_func(texts)) == {1.0}
    said_yes = [" yes</think>" in text for text in texts]
    assert said_yes == [is_correct(r["trace"], r["nums"], r["target"]) for r in rows]
    # Many give up with a wrong answer: measured 32 % of 5,000.
    assert 0.25 < 1 - sum(said_yes) / len(rows) < 0.40


def test_hit_rate():
    def right(rate, nums=(4, 8, 11), target=12, tries=1):
        rng = random.Random(0)
        found = [traces.trace(nums, target, rng, rate, tries, 144) for _ in range(300)]
        return sum(is_correct(text, nums, target) for text in found) / 300

    assert right(1.0) == 1.0
    assert right(0.0) < 0.15  # one try at random
    assert not traces.derivations((4, 8, 11), 59, 144)
    assert right(1.0, target=59) == 0.0  # no solution: it gives up, and does not loop for ever


def test_examples_cover_all_puzzles_and_follow_the_seed():
    puzzles = {"nums": [[4, 8, 11], [2, 3, 12], [1, 5, 12]], "target": [12, 18, 60]}
    one = traces.examples(puzzles, 300, seed=3, max_value=144)
    assert one == traces.examples(puzzles, 300, seed=3, max_value=144)
    assert one != traces.examples(puzzles, 300, seed=4, max_value=144)
    assert [sum(row["target"] == goal for row in one) for goal in (12, 18, 60)] == [100] * 3
    assert len({tuple(row["nums"]) for row in one if row["target"] == 12}) == 6  # every order
    assert len({tuple(row["target"] for row in one[i : i + 3]) for i in range(0, 300, 3)}) == 6
    assert len(traces.examples(puzzles, 7)) == 7
    with pytest.raises(ValueError, match="no puzzle"):
        traces.examples({"nums": [], "target": []}, 5)


def test_count_tries():
    thought, answer = "<think>1 + 2 = 3, 3 * 4 = 12 no\nhm\n4 * 3 = 12 yes", "<answer>4 * 3 = 12"
    assert traces.count_tries(f"{thought}</think>\n{answer}</answer>") == 2
    assert traces.count_tries(thought) == 2  # cut off
    assert traces.count_tries(f"{answer}</answer>") == 0  # no thought at all
    assert traces.count_tries("") == 0
