"""Talking to a model: two groups of one prompt, and a model that is afterwards as it was."""

import html
import re
import sys
import types
from dataclasses import replace

import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from peft import LoraConfig, get_peft_model
from test_playground import ATTRIBUTES, ELEMENTS, EVIL, GOOD, Page

from helpers import evaluation, profiles
from helpers import playground as pg
from helpers.evaluation import as_shown, sample_completions
from helpers.models import load_model, lora_settings
from helpers.talk import checked_puzzle, render_answer, talk

SHORT = replace(profiles.CPU, max_completion_length=40)  # many are cut off, some are not
ORDER = [11, 4, 8]  # as typed, not sorted


def noisy(model, name, size=0.1):
    """Change the weights of a name, so that the model writes something else."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in (weight for key, weight in model.named_parameters() if name in key):
            weight += size * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def before():
    return load_model(profiles.CPU)


@pytest.fixture(scope="module")
def trained():
    return noisy(load_model(profiles.CPU)[0], "layers.2.mlp").train()


@pytest.fixture
def adapted(before):
    """A model under LoRA, as after training."""
    config = LoraConfig(**lora_settings(4), task_type="CAUSAL_LM")
    model = get_peft_model(load_model(profiles.CPU)[0], config)
    return noisy(noisy(model, "lora_A"), "lora_B", 0.3).train()


def group_of(model, tokenizer, nums, target, seed, **options):
    rows = pd.DataFrame({"nums": [nums] * 8, "target": target})
    return sample_completions(model, tokenizer, SHORT, rows, 1.0, seed, shuffle=False, **options)


class Driven:
    def __init__(self, live):
        self.live, (_, row, self.note_page, self.page) = live, live.children
        self.puzzle, self.button = row.children

    def enter(self, text):
        self.puzzle.value = text
        self.puzzle._handle_custom_msg({"event": "submit"}, [])  # as the page sends it

    note = property(lambda self: html.unescape(self.note_page.value))
    columns = property(lambda self: re.split('data-part="column"', self.page.value)[1:])

    def holds(self, *groups):
        """Check that the columns show these groups, each completion once and in order."""
        for column, group in zip(self.columns, groups, strict=True):
            nums, target = group["nums"][0], group["target"][0]
            folded = re.split("<details", column)[1:-1]
            for part, text in zip(folded, group["completion"], strict=True):
                assert pg.render(text, nums, target) in part
            assert f"{group['correct'].sum()} of 8 right" in column


@pytest.fixture
def open_talk(before, trained):
    model, tokenizer = before
    return Driven(talk(trained, tokenizer, SHORT, before=model))


def test_it_asks_both_models_at_once_and_again_whenever_it_is_asked(open_talk, before, trained):
    model, tokenizer = before
    nums, target = pg.parse_puzzle(open_talk.puzzle.value)
    first = [group_of(policy, tokenizer, nums, target, 0) for policy in (model, trained)]
    assert first[0]["completion"].tolist() != first[1]["completion"].tolist()
    open_talk.holds(*first)
    assert "before training: " in open_talk.columns[0]
    assert "after training: " in open_talk.columns[1]
    shown = []
    for seed in (1, 2):
        open_talk.enter("11, 4, 8 -> 12")
        open_talk.holds(*(group_of(policy, tokenizer, ORDER, 12, seed)
                          for policy in (model, trained)))
        shown.append(open_talk.page.value)
    open_talk.button.click()
    assert len({*shown, open_talk.page.value}) == 3 and open_talk.note == ""


def test_a_group_is_of_one_prompt_with_the_numbers_as_typed(before):
    rows = pd.DataFrame({"nums": [ORDER] * 8, "target": 12})
    greedy = sample_completions(*before, SHORT, rows, 0.0, shuffle=False)
    assert greedy["nums"].tolist() == [ORDER] * 8 and greedy["completion"].nunique() == 1
    assert len({tuple(row["nums"]) for row in as_shown(rows)}) > 1  # what evaluations do
    assert sample_completions(*before, SHORT, rows, 0.0)["nums"].tolist() == [
        row["nums"] for row in as_shown(rows)]


def test_the_model_is_afterwards_as_it_was(before, trained):
    weights = {name: weight.clone() for name, weight in trained.state_dict().items()}
    state = torch.random.get_rng_state()
    talk(trained, before[1], SHORT, before=before[0].eval())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert trained.training and not before[0].training
    assert all(torch.equal(weight, weights[name]) for name, weight in trained.state_dict().items())


def test_without_another_model_the_adapter_is_switched_off(before, adapted):
    base, tokenizer = before
    trains = {name: weight.requires_grad for name, weight in adapted.named_parameters()}
    assert any(trains.values()) and not all(trains.values())
    off = group_of(base, tokenizer, ORDER, 12, seed=1)
    on = group_of(adapted, tokenizer, ORDER, 12, seed=1)
    pd.testing.assert_frame_equal(off, group_of(adapted, tokenizer, ORDER, 12, 1, adapter=False))
    assert on["completion"].tolist() != off["completion"].tolist()
    conversation = Driven(talk(adapted, tokenizer, SHORT))
    conversation.enter("11, 4, 8 -> 12")
    conversation.holds(off, on)
    assert adapted.training and adapted.get_model_status().enabled is True
    assert trains == {name: weight.requires_grad for name, weight in adapted.named_parameters()}


def test_vllm_is_given_the_adapter_or_none(before, monkeypatch):
    """Without a GPU: what vLLM would be asked, by a stand-in (tests/test_gpu.py asks vLLM)."""
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(SamplingParams=dict))
    asked = []

    def fast_generate(inputs, settings, lora_request, use_tqdm):
        asked.append((len(inputs), lora_request))
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[6])])] * len(inputs)

    model = types.SimpleNamespace(load_lora=lambda *_, **__: "now", fast_generate=fast_generate,
                                  disable_adapter=None)
    profile = replace(SHORT, uses_vllm=True, max_num_seqs=5, format_weight=0.25)
    conversation = Driven(talk(model, before[1], profile))
    assert asked == [(5, None), (3, None), (5, "now"), (3, "now")]
    assert "Advantages are of 0.25 × format + equation" in conversation.page.value
    assert conversation.page.value.count("&lt;think&gt;</b>") >= 16  # the token that it was given
    evaluation.sample_completions(model, before[1], profile, pd.DataFrame(
        {"nums": [ORDER], "target": 12}), 0.0)
    assert asked[4:] == [(1, "now")]


def test_while_it_writes_the_button_says_so(open_talk, trained):
    seen = []
    with trained.register_forward_pre_hook(lambda *_: seen.append(
            (open_talk.button.disabled, open_talk.button.description))):
        open_talk.button.click()
    assert set(seen) == {(True, "writing ...")}
    assert (open_talk.button.disabled, open_talk.button.description) == (False, "Ask")


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, OSError, MemoryError])
def test_an_error_is_shown_and_loses_nothing(open_talk, trained, error):
    def fail(*_):
        raise error(f"no memory {EVIL}")

    page = open_talk.page.value
    with trained.register_forward_pre_hook(fail):
        open_talk.enter("11, 4, 8 -> 12")
    assert f"Nothing was written: {error.__name__}: no memory {EVIL}" in open_talk.note
    assert set(Page(open_talk.note_page.value).elements) == {"p", "b"}
    assert (open_talk.button.disabled, open_talk.button.description) == (False, "Ask")
    assert open_talk.page.value == page and trained.training
    open_talk.button.click()
    assert open_talk.note == "" and open_talk.page.value != page


def test_stopping_it_gives_button_and_model_back(open_talk, trained):
    def stop(*_):
        raise KeyboardInterrupt

    with trained.register_forward_pre_hook(stop), pytest.raises(KeyboardInterrupt):
        open_talk.button.click()
    assert trained.training and not open_talk.button.disabled


@pytest.mark.parametrize(("text", "says"), [
    ("", "numbers, an arrow and the target"), ("4, 11, 8", "numbers, an arrow and the target"),
    ("1, 2, 3, 4, 5, 6, 7 -> 8", "2 to 6 numbers"), (EVIL, "numbers, an arrow and the target"),
    ("145, 2, 3 -> 12", "This model has no token for 145: write numbers from 0 to 144"),
    ("200, 1, 3 -> 150", "no token for 200, 150"),
    ("1, 2, 3, 4, 5 -> 8", "17 tokens, and the model was trained with at most 16")])
def test_what_cannot_be_asked_is_said_and_not_asked(open_talk, trained, text, says):
    page, asked = open_talk.page.value, []
    with trained.register_forward_pre_hook(lambda *_: asked.append(1)):
        open_talk.enter(text)
    assert says in open_talk.note and open_talk.page.value == page and not asked


def test_the_largest_puzzle_is_asked(before):
    asked = "4, 11, 8, 2 -> 144", before[1]
    assert checked_puzzle(*asked, replace(SHORT, max_prompt_length=15)) == ([4, 11, 8, 2], 144)
    with pytest.raises(ValueError, match="15 tokens, .* at most 14"):
        checked_puzzle(*asked, replace(SHORT, max_prompt_length=14))


def test_a_tokenizer_without_an_unknown_token_takes_every_number(before):
    class Letters:
        unk_token_id = None

        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            assert not tokenize  # Unsloth's gives a list, transformers' a dict
            return messages[-1]["content"]

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [*text.encode()]}

    large = replace(SHORT, max_prompt_length=1000)
    assert checked_puzzle("145, 999999 -> 7", Letters(), large) == ([145, 999999], 7)


def test_a_puzzle_without_a_solution_is_asked_and_remarked_on(open_talk):
    remark = "This puzzle has no solution"
    assert remark not in open_talk.page.value
    open_talk.enter("1, 1, 1 -> 60")
    assert remark in open_talk.page.value and open_talk.note == ""
    assert all("0 of 8 right" in column for column in open_talk.columns)


def test_there_has_to_be_something_to_compare_with(before):
    model, tokenizer = before
    with pytest.raises(ValueError, match=r"no adapter .* before=load_model\(profile\)\[0\]"):
        talk(model, tokenizer, SHORT)
    with pytest.raises(ValueError, match="group of 1 has no advantages: give group=2"):
        talk(model, tokenizer, SHORT, before=model, group=1)


def test_each_completion_carries_its_advantage_and_rewards_and_is_text():
    words = f"<think></think>\n<answer>{EVIL}</answer>"  # format 0.1, equation 0
    wrong = "<think></think>\n<answer>4 = 12</answer>"  # format 1, equation 0
    page = render_answer({"one": [GOOD, words, wrong], "two": [wrong] * 3}, [4, 11, 8], 12, 0.1)
    found = re.findall(r'<summary style="([^"]*)">(\d: advantage (\S+), format \S+, equation \S+),',
                       page)
    gains = pg.advantages([1.1, 0.01, 0.1])
    assert [words for _, words, _ in found[:3]] == [
        f"{i}: advantage {gain:+.2f}, format {form:.1f}, equation {right:.1f}" for i, gain, form,
        right in zip((1, 2, 3), gains, (1, 0.1, 1), (1, 0, 0), strict=True)]
    assert [gain for *_, gain in found[3:]] == ["+0.00"] * 3
    hues = [re.findall(r"hsl\((\d+),", style) for style, *_ in found]
    assert hues == [["205"], ["30"], ["30"], [], [], []]  # blue, orange, orange; none
    assert "two: 0 of 3 right; every advantage is 0" in page and "one: 1 of 3 right</b>" in page
    parsed = Page(page)
    assert parsed.elements <= ELEMENTS | {"details", "summary"}
    assert parsed.attributes <= ATTRIBUTES | {"open"}
    assert EVIL in "".join(parsed.text) and page.count("<table>") == 2


def test_where_no_kernel_runs_the_first_two_groups_are_shown(open_talk, monkeypatch):
    stored = []
    monkeypatch.setattr(pg, "display", lambda bundle, raw: stored.append(bundle))
    DisplayFormatter().format(open_talk.live)
    still, live = stored
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == open_talk.live.model_id
    assert open_talk.page.value in still["text/html"] and "<script" not in still["text/html"]
    assert "This conversation at its start; run this cell" in still["text/html"]
