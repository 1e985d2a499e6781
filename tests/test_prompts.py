"""The prompt, its agreement with the rewards, and taking completions apart."""

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import DATA
from helpers.prompts import (
    EXAMPLE,
    SYSTEM_PROMPT,
    Parsed,
    build_messages,
    check_template,
    completion_text,
    parse_completion,
    user_prompt,
)
from helpers.rewards import equation_reward_func, strict_format_reward_func

GOOD = "<think>11 - 8 = 3, 3 * 4 = 12</think>\n<answer>(11 - 8) * 4 = 12</answer>"


def scores(text, nums, target):
    form = strict_format_reward_func([text])[0]
    return form, equation_reward_func([""], [text], [target], [nums])[0]


def test_messages_hold_the_puzzle_in_its_order():
    system, user = build_messages([11, 4, 8], 12)
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"] == SYSTEM_PROMPT
    assert user["content"].startswith("Numbers: 11, 4, 8\nTarget: 12\n")


def test_numpy_numbers_print_as_plain_ones():
    assert user_prompt(np.array([11, 4, 8]), np.int64(12)) == user_prompt([11, 4, 8], 12)


def test_only_the_puzzle_differs_between_prompts():
    one, other = user_prompt([1, 2, 3], 6), user_prompt([90, 80, 70, 60], 55)
    assert one.split("\n", 2)[2] == other.split("\n", 2)[2]
    assert "[" not in one


def test_the_example_in_the_prompt_gets_both_rewards():
    prompt = user_prompt([4, 11, 8], 12)
    found = re.search(r"numbers ([0-9, ]+) and the target ([0-9]+):\n([\s\S]+)$", prompt)
    nums, target, shown = [int(n) for n in found[1].split(", ")], int(found[2]), found[3]
    assert scores(shown, nums, target) == (1.0, 1.0)
    assert (nums, target, shown) == (EXAMPLE["nums"], EXAMPLE["target"], EXAMPLE["completion"])
    assert scores(shown, [4, 11, 8], 12) == (1.0, 0.0)


# Each sentence with a completion that breaks it and nothing else, and what is lost by that.
@pytest.mark.parametrize(("sentence", "old", "new", "expected"), [
    ("first think inside <think> and </think>", "<think>11 - 8 = 3, 3 * 4 = 12</think>\n", "",
     (0.0, 1.0)),
    ("on the next line", "\n", " ", (0.0, 1.0)),
    ("exactly one newline between </think> and <answer>", "\n", "\n\n", (0.0, 1.0)),
    ("one equation inside", "= 12</answer>", "= 12</answer>\n<answer>4 * 3 = 12</answer>",
     (0.1, 0.0)),
    ("inside <answer> and </answer>", "</answer>", "", (0.0, 0.0)),
    ("with + - * / and parentheses", ") * 4", ") x 4", (0.1, 0.0)),
    ("equals the target", "(11 - 8) * 4 = 12", "11 - 8 + 4 = 7", (1.0, 0.0)),
    ("equals the target", "(11 - 8) * 4 = 12", "11 + 8 - 4 = 12", (1.0, 0.0)),
    ("every number exactly once", "(11 - 8) * 4 = 12", "4 + 8 = 12", (1.0, 0.0)),
    ("every number exactly once", "(11 - 8) * 4 = 12", "(11 - 8) * 4 + 8 - 8 = 12", (1.0, 0.0)),
    ("nothing before <think>", "<think>", "Sure! <think>", (0.0, 1.0)),
    ("nothing after </answer>", "</answer>", "</answer> Done.", (0.0, 1.0)),
    ("the whole equation with its = sign", " = 12</answer>", "</answer>", (0.1, 0.0)),
])
def test_every_clause_is_announced_and_checked(sentence, old, new, expected):
    assert scores(GOOD, [4, 11, 8], 12) == (1.0, 1.0)
    assert sentence in SYSTEM_PROMPT + user_prompt([4, 11, 8], 12)
    assert GOOD.count(old) == 1
    assert scores(GOOD.replace(old, new), [4, 11, 8], 12) == expected


@pytest.mark.parametrize(("text", "think", "answer", "equation"), [
    ("<think>a</think>\n<answer>b</answer>", "a", "b", "b"),
    ("<think>a</think>\n<answer>b</answer>\n", "a", "b", "b"),  # one last newline is allowed
    ("<think></think>\n<answer></answer>", "", "", ""),
    ("<think>a\nb</think>\n<answer>c\n</answer>", "a\nb", "c\n", "c\n"),
    ("<think>a</think> <answer>b</answer>", None, None, "b"),
    ("<think>a</think>\n\n<answer>b</answer>", None, None, "b"),
    ("<think>a</think>\n<answer>b</answer>\n\n", None, None, "b"),
    ("<think>a</think>\n<answer>b</answer>!", None, None, "b"),
    (" <think>a</think>\n<answer>b</answer>", None, None, "b"),
    ("<answer>b</answer>", None, None, "b"),
    ("<think>a</think>\n<answer>b", None, None, None),
    ("<think>a</think>\n</answer>", None, None, None),
    ("</answer><answer>", None, None, None),
    ("<think>a</think>\n<answer>b</answer><answer>c</answer>", "a",
     "b</answer><answer>c", None),
    ("<think>a<answer>b</answer></think>\n<answer>c</answer>", "a<answer>b</answer>", "c", None),
    ("", None, None, None),
])
def test_parse_completion(text, think, answer, equation):
    assert parse_completion(text) == Parsed(think, answer, equation)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "\n", "1 + 2", "</think>\n<answer>"]


@given(
    st.sampled_from(["<think>", "<think>", " <think>", ""]),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.sampled_from(["</answer>", "</answer>\n", "</answer>\n\n", "</answer> ", ""]),
)
def test_parse_completion_is_the_regular_expression(start, middle, end):
    text = start + middle + end
    match = re.match(r"^<think>([\s\S]*?)</think>\n<answer>([\s\S]*?)</answer>$", text)
    parsed = parse_completion(text)
    assert (parsed.think, parsed.answer) == (match.groups() if match else (None, None))


def test_parse_completion_takes_linear_time():
    start = time.perf_counter()
    parse_completion("<think>" + "</think>\n<answer>" * 100_000 + "!")  # the expression: 45 minutes
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(("completion", "text"), [
    (GOOD, GOOD),
    ([{"role": "assistant", "content": GOOD}], GOOD),
    ([{"role": "assistant", "content": GOOD, "tool_calls": None}], GOOD),
    ([{"role": "assistant", "content": None}], ""),
    ([{"role": "assistant"}], ""),
    ([], ""),
    ("", ""),
])
def test_completion_text(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize(("completion", "said"), [
    (None, r"None \(NoneType\) is no completion"),
    ([GOOD], r"\(list\) is no completion: give a text, or a list of one message"),
    ({"role": "assistant", "content": GOOD}, r"\(dict\) is no completion"),
    ([{"content": GOOD}, {"role": "tool", "content": "12"}, {"content": GOOD}], "3 messages"),
    ([{"content": "", "tool_calls": [{"type": "function"}]}], "a tool's call.*without tools"),
    ([{"content": [{"type": "text", "text": GOOD}]}], r"the content \[.*\(list\) is no text"),
])
def test_what_is_no_completion_is_refused(completion, said):
    with pytest.raises((TypeError, ValueError), match=said):
        completion_text(completion)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TURN = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DATA / "cold_start" / "cpu")


@pytest.fixture
def with_template(tokenizer, monkeypatch):
    def change(template):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return change


def test_the_templates_of_the_profiles_are_fine(tokenizer, with_template):
    check_template(tokenizer)
    for template in (CHATML, SMOLLM2):
        check_template(with_template(template))


@pytest.mark.parametrize("end", [
    "<think>", "<think>\n", "<think>\n\n</think>\n\n", "<THINK>\n", "<Think>  ", "<answer>",
    "<think></think>\n<answer>", "<thinking>\n", "Sure.\n<think>\nLet me see",
])
def test_a_template_that_opens_a_tag_itself_is_refused(with_template, end):
    opening = CHATML.replace(f"{TURN}{{% endif", f"{TURN}{end}{{% endif")
    assert opening != CHATML
    with pytest.raises(ValueError, match="ends the prompt with .*its form scores 0. Remove") as e:
        check_template(with_template(opening))
    assert repr(end.strip())[1:-1] in str(e.value)


@pytest.mark.parametrize(("old", "new", "role"), [
    ("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}", "system"),
    ("{% for m in messages %}", "{% for m in messages if m['role'] == 'system' %}", "user"),
    ("{% for m in messages %}", "{% for m in messages[:1] %}", "user"),
    ("{% for m in messages %}", "{% for m in messages[-1:] %}", "system"),
    ("m['content']", "m['content'][:40]", "system"),
    ("m['content']", "m['content'] | replace('47', '')", "user"),
    ("m['content']", "m['content'] | replace('83', '')", "user"),
    ("m['content']", "m['content'] | upper", "system"),
    ("m['content']", "m['content'].split('</think>')[-1]", "system"),  # as for a model's turns
])
def test_a_template_that_loses_the_puzzle_is_refused(with_template, old, new, role):
    assert old in CHATML
    with pytest.raises(ValueError, match=f"leaves out or changes the {role}'s message"):
        check_template(with_template(CHATML.replace(old, new)))


@pytest.mark.parametrize("template", [
    None, "{{ raise_exception('no system role') }}", "{{ messages[0].content + 1 }}", "{% if %}"])
def test_a_tokenizer_that_renders_no_chat_is_refused(with_template, template):
    with pytest.raises(ValueError, match="renders no chat messages .*chat_template = "):
        check_template(with_template(template))
