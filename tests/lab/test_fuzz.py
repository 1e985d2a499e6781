"""The fuzz finds nothing in the rewards, and finds what is put into mutants of them."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.arithmetic import evaluate
from helpers.rewards import equation_reward_func, strict_format_reward_func
from lab import fuzz


@pytest.fixture(scope="module")
def real():
    return fuzz.recorded()


def test_nothing_is_found_in_20_000(real):
    result = fuzz.fuzz(20_000, seed=11, real=real)
    assert result["wrongly_paid"] == result["wrong_form"] == result["slow"] == 0, result["examples"]
    assert result["paid"] > 1000 and result["formed"] > 5000  # the draw tests something
    assert min(result["sources"].values()) > 1000
    assert result["distinct"] > 19_000
    assert 0 < result["median_ms"] <= result["slowest_ms"] <= fuzz.LIMIT_MS


def test_a_seed_draws_the_same_completions(real):
    first, second = (list(fuzz.completions(300, 5, real)) for _ in range(2))
    assert first == second != list(fuzz.completions(300, 6, real))


def with_text(change):
    def reward(prompts, completions, target, nums):
        return equation_reward_func(prompts, [change(c) for c in completions], target, nums)
    return reward


MUTANTS = {
    "// is read as /": with_text(lambda text: text.replace("//", "/")),
    "the first answer counts": with_text(lambda text: "".join(text.partition("</answer>")[:2])),
    "the right side is not read": lambda prompts, completions, target, nums: equation_reward_func(
        prompts, [re.sub(r"=[^=<]*</answer>", f"= {target[0]}</answer>", c) for c in completions],
        target, nums),
    "underscores are dropped": with_text(lambda text: text.replace("_", "")),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_what_a_mutant_pays_is_found(mutant, real):
    result = fuzz.fuzz(15_000, seed=1, equation=mutant, real=real)
    assert result["wrongly_paid"] > 0
    assert {example[0] for example in result["examples"]} == {"wrongly_paid"}


def test_a_form_that_is_paid_against_the_specification_is_found(real):
    result = fuzz.fuzz(2000, form=lambda c: strict_format_reward_func([c[0].lstrip()]), real=real)
    loose = fuzz.fuzz(2000, form=lambda c: [float("<answer>" in c[0])], real=real)
    assert result["wrong_form"] <= loose["wrong_form"] and loose["wrong_form"] > 100


def test_a_slow_reward_and_an_exception_are_found(real):
    def slow(completions):
        end = time.process_time() + 0.006
        while time.process_time() < end:
            pass
        return strict_format_reward_func(completions)

    result = fuzz.fuzz(3, form=slow, real=real)
    assert result["slow"] == 3 and result["slowest_ms"] > fuzz.LIMIT_MS

    def fragile(prompts, completions, target, nums):
        return [float(1 / target[0] / 0)]

    with pytest.raises(ZeroDivisionError) as caught:
        fuzz.fuzz(3, equation=fragile, real=real)
    assert "on the completion" in caught.value.__notes__[0]


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " * ", "**", "//", " "]), inner).map(
            "".join),
        inner.map("({})".format), inner.map("-{}".format)),
    max_leaves=8)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(EXPRESSIONS, st.text("0123456789+-*/() .", max_size=12)))
def test_the_two_evaluators_agree(text):
    try:
        value = evaluate(text)
    except ValueError:
        value = None
    if re.search(r"(?<![0-9])0[0-9]", text):  # Python knows no number with a leading zero
        return
    assert fuzz.exact_value(text) == value


@settings(max_examples=1500, deadline=None)
@given(st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(fuzz.PIECES), max_size=12).map("".join),
    st.tuples(EXPRESSIONS, st.integers(-5, 99)).map(
        lambda p: f"<think></think>\n<answer>{p[0]} = {p[1]}</answer>"),
    st.permutations(["4", "9", "1"]).flatmap(lambda n: st.tuples(
        *[st.sampled_from("+-*/") for _ in "ab"]).map(
        lambda o: f"<answer>{n[0]}{o[0]}{n[1]}{o[1]}{n[2]} = 36</answer>"))))
def test_no_text_raises_or_is_paid_against_the_second_judge(text):
    form = strict_format_reward_func([text])[0]
    paid = equation_reward_func([""], [text], [36], [[1, 4, 9]])[0]
    assert form == fuzz.form_by_the_specification(text)
    assert paid == float(fuzz.refuses(text, [1, 4, 9], 36) is None)


@pytest.mark.parametrize("text, why", [
    ("<answer>4*9*1 = 36</answer>", None),
    ("<answer>4*9*1 = 36</answer><answer>4*9*1 = 36</answer>", "not one answer"),
    ("<answer>4*9*1</answer>", "not one ="),
    ("<answer>4*9*1 = 3_6</answer>", "the right side is no number"),
    ("<answer>4*9 = 36</answer>", "other numbers"),
    ("<answer>4*9**1 = 36</answer>", "no expression"),
    ("<answer>4*9*1 = 37</answer>", "the sides differ"),
    ("<answer>4+9+1 = 14</answer>", "not the target"),
])
def test_the_second_judge(text, why):
    assert fuzz.refuses(text, [1, 4, 9], 36) == why


def test_the_command_writes_its_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuzz, "RESULT", tmp_path / "fuzz.json")
    assert fuzz.main(["--completions", "500", "--seed", "3"]) == 0
    written = json.loads((tmp_path / "fuzz.json").read_text())
    assert written["completions"] == 500 and sum(written["sources"].values()) == 500
    assert written["command"] == "python -m lab.fuzz --completions 500 --seed 3"
    with pytest.raises(SystemExit):
        fuzz.main(["--completions", "0"])
    assert "1 or more" in capsys.readouterr().err


def test_the_recorded_million():
    result = json.loads(fuzz.RESULT.read_text())
    assert result["completions"] == sum(result["sources"].values()) == 1_000_000
    assert result["wrongly_paid"] == result["wrong_form"] == result["slow"] == 0
    assert result["paid"] > 100_000 and result["slowest_ms"] <= result["limit_ms"] == 5.0
    assert re.match(r"python -m (helpers|lab)\.fuzz --completions 1000000 ", result["command"])
