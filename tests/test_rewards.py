"""The rewards: no loophole, the specified structure, TRL's calls, bounded time.

The usual version with `eval`, which ours has to agree with on honest completions, stands in
lab/exploits.py (and notebook 03) and runs in a child process.
"""

import json
import random
import re
import subprocess
import sys
import time
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.arithmetic import evaluate
from helpers.prompts import EXAMPLE
from helpers.rewards import equation_reward_func, is_correct, strict_format_reward_func
from lab.exploits import USUAL
from lab.fuzz import expression

STRUCTURE = re.compile(r"^<think>([\s\S]*?)</think>\n<answer>([\s\S]*?)</answer>$")
GOOD = "<think>4 * 9 = 36</think>\n<answer>4 * 9 * 1 = 36</answer>"


def complete(answer, thought="4 * 9 = 36"):
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def scores(text, nums=(1, 4, 9), target=36):
    form = strict_format_reward_func([text])
    return form[0], equation_reward_func([""], [text], [target], [list(nums)])[0]


def format_by_the_specification(text):
    match = re.match(STRUCTURE, text)
    if match is None:
        return 0.0
    answer = match.group(2)
    lines = [line for line in answer.splitlines() if line.strip()]
    allowed = set("0123456789+-*/().=") | set(" \t\n\r\f\v")
    return 1.0 if len(lines) == 1 and "=" in answer and set(answer) <= allowed else 0.1


LOOPHOLES = {  # answer, numbers, target, format reward; the equation reward is 0.0 for all
    "power": ("2**5*1 = 32", [1, 2, 5], 32, 1.0),
    "spaced power": ("2* *5*1 = 32", [1, 2, 5], 32, 1.0),
    "floor division": ("7//2+1 = 4", [1, 2, 7], 4, 1.0),
    "joined decimal": ("1.5*4 = 6", [1, 4, 5], 6, 1.0),
    "leading dot": ("8*.5-2 = 2", [2, 5, 8], 2, 1.0),
    "trailing dot": ("4.*9*1 = 36", [1, 4, 9], 36, 1.0),
    "joined digits": ("49*1 = 49", [1, 4, 9], 49, 1.0),
    "power tower": ("99**98**7 = 1", [7, 98, 99], 1, 1.0),
    "overflow": ("99**(98+97) = 1", [97, 98, 99], 1, 1.0),
    "call": ("4(9)*1 = 36", [1, 4, 9], 36, 1.0),
    "division by zero": ("4/(9-9)*1 = 36", [1, 4, 9, 9], 36, 1.0),
    "right side 36.": ("4*9*1 = 36.", [1, 4, 9], 36, 1.0),
    "right side .36e2": ("4*9*1 = .36e2", [1, 4, 9], 36, 0.1),
    "right side 1e2": ("4*25*1 = 1e2", [1, 4, 25], 100, 0.1),
    "right side 3_6": ("4*9*1 = 3_6", [1, 4, 9], 36, 0.1),
    "right side +36": ("4*9*1 = +36", [1, 4, 9], 36, 1.0),
    "right side 3 6": ("4*9*1 = 3 6", [1, 4, 9], 36, 1.0),
    "right side 72/2": ("4*9*1 = 72/2", [1, 4, 9], 36, 1.0),
    "right side inf": ("4*9*1 = inf", [1, 4, 9], 36, 0.1),
    "right side nan": ("4*9*1 = nan", [1, 4, 9], 36, 0.1),
    "no right side": ("4*9*1 =", [1, 4, 9], 36, 1.0),
    "no left side": ("= 36", [1, 4, 9], 36, 1.0),
    "sides exchanged": ("36 = 4*9*1", [1, 4, 9], 36, 1.0),
    "beyond the tolerance": ("4*9*1 = 36.000011", [1, 4, 9], 36, 1.0),
    "other sign": ("4*9*1 = -36", [1, 4, 9], 36, 1.0),
    "true, but not the target": ("4+9+1 = 14", [1, 4, 9], 36, 1.0),
    "false, with the target": ("4+9+1 = 36", [1, 4, 9], 36, 1.0),
    "chain": ("4*9 = 36*1 = 36", [1, 4, 9], 36, 1.0),
    "two equals signs": ("4*9*1 == 36", [1, 4, 9], 36, 1.0),
    "two lines": ("4*9*1 = 36\n4+9+1 = 14", [1, 4, 9], 36, 0.1),
    "hidden line": ("4*9*1 = 36\r4+9+1 = 14", [1, 4, 9], 36, 0.1),
    "number left out": ("4*9 = 36", [1, 4, 9], 36, 1.0),
    "number used twice": ("4*9*1*1 = 36", [1, 4, 9], 36, 1.0),
    "one of two equal numbers left out": ("5*2 = 10", [2, 5, 5], 10, 1.0),
    "leading zero": ("04*9*1 = 36", [1, 4, 9], 36, 1.0),
    "copied example": ("(8 - 6) * 7 = 14", [1, 4, 9], 36, 1.0),
    "Arabic digits": ("\u0664*\u0669*\u0661 = \u0663\u0666", [1, 4, 9], 36, 0.1),
    "Arabic right side": ("4*9*1 = \u0663\u0666", [1, 4, 9], 36, 0.1),
    "full-width right side": ("4*9*1 = \uff13\uff16", [1, 4, 9], 36, 0.1),
    "superscript": ("6\u00b2 = 36", [6, 2], 36, 0.1),
    "no-break space on the right": ("4*9*1 =\u00a036", [1, 4, 9], 36, 0.1),
    "no-break space at the end": ("4*9*1 = 36\u00a0", [1, 4, 9], 36, 0.1),
    "no-break space on the left": ("\u00a04*9*1 = 36", [1, 4, 9], 36, 0.1),
    "ideographic space": ("4*9*1\u3000= 36", [1, 4, 9], 36, 0.1),
    "line separator": ("4*9*1\u2028= 36", [1, 4, 9], 36, 0.1),
    "file separator": ("4*9*1 =\x1c36", [1, 4, 9], 36, 0.1),
    "times sign": ("4\u00d79\u00d71 = 36", [1, 4, 9], 36, 0.1),
    "words": ("It is 4*9*1 = 36", [1, 4, 9], 36, 0.1),
    "bold": ("**4*9*1 = 36**", [1, 4, 9], 36, 1.0),
    "code": ("__import__('os').abort() = 36", [36], 36, 0.1),
    "comment": ("4*9*1#\n = 36", [1, 4, 9], 36, 0.1),
    "long number": ("9" * 5000 + " = 9", [9, 9, 9], 9, 1.0),
    "long right side": ("4*9*1 = 36." + "0" * 5000, [1, 4, 9], 36, 1.0),
    "empty": ("", [1, 4, 9], 36, 0.1),
}


@pytest.mark.parametrize("answer, nums, target, form", LOOPHOLES.values(), ids=LOOPHOLES.keys())
def test_loopholes_are_closed(answer, nums, target, form):
    start = time.perf_counter()
    assert scores(complete(answer), nums, target) == (form, 0.0)
    assert time.perf_counter() - start < 0.5  # in practice below a millisecond


@pytest.mark.parametrize("answer", [
    "4 * 9 * 1 = 36", "4*9*1=36", "\n4*9*1 = 36\n", "\t(4)*(9*1) =36.0 ", "9/(1/4) = 36",
    "4*9/1 = 36.000001", "4*9*1 = 35.999999", "4*9*1 = 36.00001", "-4*-9*1 = 36", "--4*9*1 = 36",
    "4*9*1 = 036", "4*9*1 = 36\r\n",
])
def test_honest_solutions_are_paid(answer):
    assert scores(complete(answer)) == (1.0, 1.0)


def test_nothing_is_rounded():
    assert scores(complete("1/3*3 = 1"), [1, 3, 3], 1) == (1.0, 1.0)
    assert scores(complete("8/(3-8/3) = 24"), [3, 3, 8, 8], 24) == (1.0, 1.0)
    # Each distance may be 1e-5 and no more: value to target, and value to right side.
    assert scores(complete("1/100000 = 0"), [1, 100000], 0) == (1.0, 1.0)
    assert scores(complete("1/100000 = 0.00002"), [1, 100000], 0) == (1.0, 1.0)
    assert scores(complete("1/99999 = 0"), [1, 99999], 0) == (1.0, 0.0)
    assert scores(complete("1/60000 = 0.00001"), [1, 60000], 0) == (1.0, 0.0)
    assert scores(complete("1/100000 = 0.000020001"), [1, 100000], 0) == (1.0, 0.0)
    big = 99_999_999_999
    assert scores(complete(f"{big}*{big}-{big}*{big} = 0"), [big] * 4, 0) == (1.0, 1.0)
    assert scores(complete(f"{big}*{big}-{big}*{big}+1 = 0"), [1] + [big] * 4, 0) == (1.0, 0.0)


@pytest.mark.parametrize("text, expected", [
    (GOOD, (1.0, 1.0)),
    (GOOD + "\n", (1.0, 1.0)),  # `$` matches before one last newline
    (GOOD + "\n\n", (0.0, 1.0)),
    (GOOD + " Done.", (0.0, 1.0)),  # text after the answer costs the form
    (GOOD + "\nThe other way: 9 * 4 = 36", (0.0, 1.0)),
    ("Sure! " + GOOD, (0.0, 1.0)),
    (GOOD.replace("\n", ""), (0.0, 1.0)),
    (GOOD.replace("\n", "\n\n"), (0.0, 1.0)),
    (GOOD.replace("\n", "\r\n"), (0.0, 1.0)),
    (GOOD.replace("<think>", "<THINK>"), (0.0, 1.0)),
    (GOOD.replace("4 * 9 =", "4 *\n9 ="), (1.0, 1.0)),  # a thought of several lines
    (complete("4*9*1 = 36", thought=""), (1.0, 1.0)),
    # Two blocks: neither the first nor the last is taken.
    (GOOD + "\n<answer>4+9+1 = 14</answer>", (0.1, 0.0)),
    (complete("4+9+1 = 14") + "\n<answer>4*9*1 = 36</answer>", (0.1, 0.0)),
    (GOOD + "\n<answer>4 * 9 * 1 = 36</answer>", (0.1, 0.0)),
    (complete("4+9+1 = 14", thought="<answer>4*9*1 = 36</answer>"), (1.0, 0.0)),
    (complete("4*9*1 = 36", thought="<answer>4+9+1 = 14</answer>"), (1.0, 0.0)),
    ("<think></think>\n<answer><answer>4*9*1 = 36</answer></answer>", (0.1, 0.0)),
    ("</answer>4*9*1 = 36<answer>", (0.0, 0.0)),
    (EXAMPLE["completion"], (1.0, 0.0)),  # the prompt's own example, copied
    ("4*9*1 = 36", (0.0, 0.0)),
    ("", (0.0, 0.0)),
])
def test_structure_and_blocks(text, expected):
    assert scores(text) == expected


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "</think>\n<answer>", "\n", "\r", " ",
          "=", "4*9*1 = 36", "36", "x", "<", ">", "/", "\u00a0", "\u2028"]
ENDINGS = ["</answer>", "</answer>", "</answer>\n", "</answer>\n\n", "</answer> ", ""]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["<think>", "<think>", " <think>", ""]),
       st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
       st.sampled_from(ENDINGS))
def test_the_format_reward_is_its_specification(start, middle, end):
    text = start + middle + end
    assert scores(text)[0] == format_by_the_specification(text)


def test_the_format_reward_is_its_specification_on_mutations():
    rng = random.Random(0)
    seen = {0.0: 0, 0.1: 0, 1.0: 0}
    for _ in range(30_000):
        text = rng.choice([GOOD, GOOD + "\n", GOOD + GOOD, complete("\n4*9*1 = 36\n")])
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(text) + 1)
            j = min(len(text), i + rng.randint(0, 3))
            text = text[:i] + rng.choice(["", "", rng.choice(PIECES), text[i:j] * 2]) + text[j:]
        expected = format_by_the_specification(text)
        assert scores(text)[0] == expected, text
        seen[expected] += 1
    assert min(seen.values()) > 1000  # the draw tests something


@settings(max_examples=500, deadline=None)
@given(st.one_of(
    st.text(max_size=80),
    st.text(max_size=40).map(complete),
    st.text("0123456789+-*/().=_eE \n\t\r\u00a0\u0663\uff13", max_size=40).map(complete),
    st.text("149+-*/()= ", max_size=14).map(lambda left: complete(left + "= 36")),
))
def test_never_raises_and_never_pays_a_wrong_value(text):
    form, equation = scores(text)
    assert form in (0.0, 0.1, 1.0) and equation in (0.0, 1.0)
    assert type(form) is float and type(equation) is float
    if equation:
        left, right = text.split("<answer>")[1].split("</answer>")[0].split("=")
        assert sorted(re.findall("[0-9]+", left)) == ["1", "4", "9"]
        assert abs(float(right) - 36) < 1.1e-5 and right.isascii()


def test_both_shapes_of_completions_and_the_arguments_of_trl():
    texts = [GOOD, complete("4+9+1 = 14"), complete("no"), ""]
    columns = {"target": [36] * 4, "nums": [[1, 4, 9]] * 4}
    more = {"completion_ids": [[1, 2]] * 4, "trainer_state": object(), "log_extra": print,
            "log_metric": print, "environments": None, "difficulty": ["easy"] * 4}
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    for completions, prompts in ((texts, ["p"] * 4), (chats, [[{"role": "user"}]] * 4)):
        given_to_both = {"prompts": prompts, "completions": completions, **columns, **more}
        assert strict_format_reward_func(**given_to_both) == [1.0, 1.0, 0.1, 0.0]
        assert equation_reward_func(**given_to_both) == [1.0, 0.0, 0.0, 0.0]
    # No text at all, numpy's integers, and an empty batch.
    empty = [[], [{"role": "assistant", "content": None}]]
    assert strict_format_reward_func(empty) == [0.0, 0.0]
    assert equation_reward_func([""] * 2, empty, [36] * 2, [[1, 4, 9]] * 2) == [0.0, 0.0]
    assert is_correct(GOOD, np.array([9, 4, 1]), np.int64(36))
    tower = complete("*".join(["999999999999"] * 9) + " = 36")
    assert not is_correct(tower, np.array([999999999999] * 9), np.int64(36))
    assert strict_format_reward_func([]) == equation_reward_func([], [], [], []) == []
    with pytest.raises(ValueError):  # a batch that does not fit together is a caller's mistake
        equation_reward_func([""] * 2, [GOOD] * 2, [36], [[1, 4, 9]])


RIGHT = complete("(8 - 6) * 7 = 14")
SAME = {  # the numbers 8, 6, 7 and the target 14, as other types
    "floats": ([8.0, 6.0, 7.0], 14.0), "tuple": ((8, 6, 7), 14),
    "numpy's": ([np.int32(8), np.float16(6), np.float64(7)], np.int64(14)),
    "array": (np.array([8.0, 6, 7]), np.array(14)), "series": (pd.Series([8.0, 6, 7]), 14),
    "tensor": (torch.tensor([8, 6, 7]), torch.tensor(14)),
    "half tensor": (torch.tensor([8, 6, 7], dtype=torch.bfloat16), torch.tensor(14.0)),
    "0-d tensors": ([torch.tensor(8.0), torch.tensor(6), torch.tensor(7)], 14),
    "exact": ([Decimal(8), Fraction(6), Decimal("7.00")], Decimal("14.0")),
}


@pytest.mark.parametrize("nums, target", SAME.values(), ids=SAME)
def test_whole_numbers_of_any_type_are_graded_alike(nums, target):
    texts = [RIGHT, complete("8 + 6 = 14"), ""]
    assert equation_reward_func(None, texts, [target] * 3, [nums] * 3) == [1.0, 0.0, 0.0]
    assert is_correct(RIGHT, nums, target) is True and is_correct("", nums, target) is False


def test_a_batch_may_be_one_tensor_array_or_column():
    table = pd.DataFrame({"nums": [[8.0, 6.0, 7.0]] * 2, "target": [14.0, 15.0]}, index=[5, 5])
    for nums, target in ((torch.tensor([[8.0, 6, 7]] * 2), torch.tensor([14, 15])),
                         (np.array([[8, 6, 7]] * 2), np.array([14.0, 15.0])),
                         (table["nums"], table["target"])):
        assert equation_reward_func(None, [RIGHT] * 2, target, nums) == [1.0, 0.0]


MISTAKES = {  # numbers, target, what is said
    "text": ("[8, 6, 7]", 14, r"nums is '\[8, 6, 7\]' \(str\).*read text with json.loads"),
    "words": (["8", "6", "7"], 14, r"'8' \(str\) is not a number: convert text with int"),
    "text target": ([8, 6, 7], "14", r"'14' \(str\) is not a number: convert text with int"),
    "half number": ([8, 6.5, 7], 14, r"6.5 \(float\) is not a whole number"),
    "half target": ([8, 6, 7], 14.5, r"14.5 \(float\) is not a whole number"),
    "half tensor": ([8, 6, 7], torch.tensor(14.5), r"tensor\(14.5.*\(Tensor\) is not a whole"),
    "padded with None": ([8, 6, 7, None], 14, r"None \(NoneType\) is a null"),
    "padded with NaN": (np.array([8, 6, 7, np.nan]), 14, r"nan \(float\) is a null"),
    "padded with -1": (torch.tensor([8, 6, 7, -1]), 14, r"-1 \(int\) is not .* of 0 or more"),
    "padded with -100": ([8, 6, 7, -100.0], 14, r"-100.0 \(float\) is not .* of 0 or more"),
    "no target": ([8, 6, 7], None, r"None \(NoneType\) is a null"),
    "NaN target": ([8, 6, 7], float("nan"), r"nan \(float\) is a null"),
    "Decimal NaN": ([8, 6, 7], Decimal("NaN"), r"Decimal\('NaN'\) \(Decimal\) is a null"),
    "infinite": ([8, 6, 7], float("inf"), r"inf \(float\) is not a whole number of either sign"),
    "bools": ([True, True], 2, r"True \(bool\) is not a number"),
    "bool target": ([1, 0], np.bool_(True), r".*True_ \(bool\w*\) is not a number"),
    "complex": ([8, 6, 7], 14j, r"14j \(complex\) is not a number"),
    "nested": ([[8, 6, 7]], 14, r"\[8, 6, 7\] \(list\) is not a number"),
    "nested target": ([8, 6, 7], [14], r"\[14\] \(list\) is not a number"),
    "target of one": ([8, 6, 7], torch.tensor([14]), r"tensor\(\[14\]\) \(Tensor\) is not a n"),
    "array of rows": (np.array([[8, 6, 7]]), 14, r"nums is array.*\(ndarray\), no list"),
    "set": ({8, 6, 7}, 14, r"nums is \{6, 7, 8\} \(set\), no list of numbers"),
    "empty": ([], 14, r"nums is \[\] \(list\), no list of numbers"),
    "none": (None, 14, r"nums is None \(NoneType\), no list of numbers"),
    "one number": (8, 14, r"nums is 8 \(int\), no list of numbers"),
    "13 digits": ([10**12, 6], 14, r"1000000000000 \(int\) is not .* 12 digits at most"),
    "target of 13 digits": ([8, 6], -10**12, r"-1000000000000 \(int\) is not .* of either sign"),
}


@pytest.mark.parametrize("nums, target, said", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("text", [RIGHT, ""], ids=["a solution", "no text"])
def test_the_callers_mistake_is_not_the_models(nums, target, said, text):
    with pytest.raises((TypeError, ValueError), match=said):
        is_correct(text, nums, target)
    where = "row 1 of the batch, nums .*, target .*: "
    with pytest.raises((TypeError, ValueError), match=where + said):
        equation_reward_func(None, [text] * 2, [14, target], [[8, 6, 7], nums])


def test_negative_targets_and_the_largest_numbers_are_graded():
    assert scores(complete("6 - 8 = -2"), [6, 8], -2) == (1.0, 1.0)
    most = 10**12 - 1
    assert scores(complete(f"{most} * 1 = {most}"), [most, 1], most) == (1.0, 1.0)
    assert scores(complete(f"0 - {most} = -{most}"), [most, 0], -most) == (1.0, 1.0)


@pytest.mark.parametrize("completions, target, nums, said", [
    ([RIGHT], 14, [[8, 6, 7]], r"target is 14 \(int\): give a list, with one for each"),
    ([RIGHT], torch.tensor(14), [[8, 6, 7]], r"target is tensor\(14\) \(Tensor\): give a list"),
    ([RIGHT], "14", [[8, 6, 7]], r"target is '14' \(str\): give a list"),
    ([RIGHT], [14], None, r"nums is None \(NoneType\): give a list"),
    ([RIGHT], [14], "[[8, 6, 7]]", r"nums is '.*' \(str\): give a list"),
    (RIGHT, [14], [[8, 6, 7]], r"completions is '<think>.*' \(str\): give a list"),
    ({"a": RIGHT}, [14], [[8, 6, 7]], r"completions is .* \(dict\): give a list"),
    ([RIGHT], [14], [8, 6, 7], r"fit together \(1 completions, 3 nums, 1 target\)"),
    ([RIGHT] * 3, [14] * 3, [8, 6, 7], r"row 0 .*nums is 8 \(int\), no list of numbers"),
    ([RIGHT] * 2, [14], [[8, 6, 7]] * 2, r"fit together \(2 completions, 2 nums, 1 target\)"),
    ([RIGHT] * 2, [14] * 2, [[8, 6, 7]], r"fit together \(2 completions, 1 nums, 2 target\)"),
    ([RIGHT, None], [14] * 2, [[8, 6, 7]] * 2, r"row 1 .*None \(NoneType\) is no completion"),
])
def test_a_batch_that_is_none_is_refused(completions, target, nums, said):
    with pytest.raises((TypeError, ValueError), match=said):
        equation_reward_func(None, completions, target, nums)


def test_what_is_no_completion_is_an_error_for_the_format_too():
    with pytest.raises(TypeError, match=r"completions is '<think>.*' \(str\): give a list"):
        strict_format_reward_func(RIGHT)
    with pytest.raises(TypeError, match=r"row 1 of the batch: .*\(dict\) is no completion"):
        strict_format_reward_func([RIGHT, {"role": "assistant", "content": RIGHT}])
    with pytest.raises(ValueError, match="row 0 of the batch: 2 messages"):
        strict_format_reward_func([[{"content": RIGHT}] * 2])


def test_the_length_cap_of_the_equation_is_256_characters_a_side():
    spaces = " " * (512 - len("4*9*1=36"))
    assert scores(complete(f"4*9*1={spaces}36")) == (1.0, 1.0)
    assert scores(complete(f"4*9*1={spaces} 36")) == (1.0, 0.0)


def test_nothing_is_printed_and_nobody_is_warned(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for answer, nums, target, _ in LOOPHOLES.values():
            scores(complete(answer), nums, target)
    assert capfd.readouterr() == ("", "")


def fill(piece, start="<think>", end=""):
    room = 10_000 - len(start) - len(end)
    return start + (piece * room)[:room] + end


ENDS = {"start": "<think></think>\n<answer>", "end": " = 36</answer>"}
ADVERSARIAL = {
    "middles": fill("</think>\n<answer>"),
    "middles, closed": fill("</think>\n<answer>", end="</answer>"),
    "open thoughts": fill("<think>"), "closed answers": fill("</answer>"),
    "answers": fill("<answer>1*4*9 = 36</answer>"), "angles": fill("<"),
    "almost": fill("</think>\n<answer", end="</answer>"),
    "parentheses": f"{ENDS['start']}{'(' * 4975}4*9*1{')' * 4975}{ENDS['end']}",
    "open parentheses": fill("(", **ENDS), "signs": fill("-", **ENDS), "digits": fill("9", **ENDS),
    "numbers": fill("4 ", **ENDS), "sum": fill("4+", **ENDS), "powers": fill("9**", **ENDS),
    "spaces": fill(" ", start="<think></think>\n<answer>4*9*1 =", end="36</answer>"),
    "decimals": fill("0", start="<think></think>\n<answer>4*9*1 = 36.", end="</answer>"),
    "equals signs": fill("=", **ENDS), "lines": fill("4\n", **ENDS), "dots": fill(".", **ENDS),
    "deep within the caps": complete("(" * 120 + "4*9*1" + ")" * 120 + " = 36", "1" * 9700),
}


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_adversarial_completions_score_in_5_milliseconds(text):
    assert 9_900 <= len(text) <= 10_000
    best = 1.0
    for _ in range(7):
        start = time.perf_counter()
        scores(text)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


# The usual version, for comparison.

TIMED = """
import json, sys, time
rows = json.load(sys.stdin)
start = time.process_time()
scores = [[format_reward(row[0]), equation_reward(*row)] for row in rows]
print(json.dumps([scores, time.process_time() - start]))
"""


def score_usual(source, rows, limit):
    child = subprocess.run([sys.executable, "-I", "-c", source + TIMED], input=json.dumps(rows),
                           capture_output=True, text=True, timeout=limit, check=True)
    return json.loads(child.stdout)


def test_the_usual_version_has_the_loopholes():
    open_in_the_usual = ["power", "floor division", "joined decimal", "leading dot", "trailing dot",
                         "right side 36.", "right side 1e2", "right side 3_6", "right side +36",
                         "full-width right side", "no-break space on the right"]
    rows = [[complete(LOOPHOLES[name][0]), *LOOPHOLES[name][1:3]] for name in open_in_the_usual]
    assert [equation for _, equation in score_usual(USUAL, rows, 60)[0]] == [1.0] * len(rows)


SPOILERS = [  # none of them makes ** or //
    lambda text, rng: re.sub("[0-9]+", str(rng.randint(1, 99)), text, count=1),
    lambda text, rng: f"{text} + {rng.randint(1, 99)}",
    lambda text, rng: f"{text} {rng.randint(1, 99)}",
    lambda text, rng: text.rpartition(" ")[0].rstrip("+-*/ ") or "1",
    lambda text, rng: text.replace("*", "x"),
    lambda text, rng: text.replace(" * (", "("),
    lambda text, rng: text.replace("+", "+ +").replace("-", "- -"),
    lambda text, rng: text.replace("(", "", 1),
    lambda text, rng: f"({text}",
    lambda text, rng: f"{text} / (3 - 3)",
    lambda text, rng: f"{text} -",
    lambda text, rng: "",
]
RIGHTS = ["{value}"] * 8 + ["{target}"] * 2 + [
    "{value}.0", "{value}.000001", "{value}.5", "{target}.000009", "{value}1", "-{value}", "?", ""]
ANSWERS = ["{left} = {right}"] * 10 + ["{left}={right}"] * 3 + [
    "\n{left} = {right}\n", "{left} = {right}\r\n", "{left}", "So {left} = {right}",
    "{left} \n= {right}", "{left} = {right}\n{left} = {right}", "{right} = {left}",
    "{left} = {right} = {right}", "{left} = {right} {right}"]
FRAMES = ["<think>{thought}</think>\n<answer>{answer}</answer>"] * 10 + [
    "<think>{thought}</think>\n<answer>{answer}</answer>\n",
    "<think>{thought}</think>\n<answer>{answer}</answer> Done.",
    "<think>{thought}</think> <answer>{answer}</answer>",
    "<think>{thought}</think></think>\n<answer>{answer}</answer>",
    "Sure.\n<think>{thought}</think>\n<answer>{answer}</answer>",
    "<answer>{answer}</answer>", "<think>{thought}</think>\n<answer>{answer}", "<think>{thought}",
    "<think>{thought}</think>\n<answer></answer>", "{answer}"]


def completions(n, seed):
    """Draw rows [text, nums, target] whose only operators are + - * /."""
    rng, rows = random.Random(seed), []
    while len(rows) < n:
        nums = [rng.randint(1, rng.choice([12, 99])) for _ in range(rng.randint(3, 4))]
        left = expression(nums, rng)
        try:
            value = evaluate(left)  # only chooses the target: the usual version is the judge
        except ValueError:  # a division by zero
            value = "none"
        whole = value != "none" and value.denominator == 1
        target = int(value) if whole and rng.random() < 0.8 else rng.randint(10, 100)
        if not whole and rng.random() < 0.8:
            continue
        right = rng.choice(RIGHTS).format(value=value, target=target)
        left = rng.choice(SPOILERS)(left, rng) if rng.random() < 0.2 else left
        steps = rng.randint(0, 8) * f"{left} = {rng.randint(0, 200)} no\n"
        answer = rng.choice(ANSWERS).format(left=left, right=right)
        text = rng.choice(FRAMES).format(thought=steps, answer=answer)
        rows.append([text, rng.sample(nums, len(nums)), target])
    return rows


def test_agrees_with_the_usual_version_on_100_000_completions_and_is_about_as_fast():
    rows = completions(100_000, seed=5)
    texts, nums, targets = zip(*rows, strict=True)
    assert not any("**" in text or "//" in text for text in texts)
    form, equation, ratios = [], [], []
    for first in range(0, len(rows), 4000):  # in turns: a busy machine slows both down
        part = slice(first, first + 4000)
        start = time.process_time()
        form += strict_format_reward_func(texts[part])
        equation += equation_reward_func([""] * 4000, texts[part], targets[part], nums[part])
        ours = time.process_time() - start
        expected, usual = score_usual(USUAL, rows[part], limit=60)
        ratios.append(ours / usual)
        found = [list(pair) for pair in zip(form[part], equation[part], strict=True)]
        wrong = [row for row, a, b in zip(rows[part], found, expected, strict=True) if a != b]
        assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]}"
    counts = [form.count(score) / len(rows) for score in (0.0, 0.1, 1.0)] + [np.mean(equation)]
    print(f"\nshares of format 0.0, 0.1, 1.0 and of equation 1.0: {np.round(counts, 3)}")
    print(f"CPU time, ours as a share of the usual version's: {np.round(np.sort(ratios), 2)}")
    assert min(counts) > 0.1  # every score is well represented
    # a turn that something else slowed down says nothing: the best quarter is compared
    assert np.quantile(ratios, 0.25) <= 1.1
