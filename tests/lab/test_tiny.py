"""The CPU profile's tokenizer and model."""

import pytest

from helpers.dataset import PARTS, load_split
from helpers.paths import DATA
from helpers.profiles import CPU
from helpers.prompts import EXAMPLE, build_messages
from lab.tiny import MAX_NUMBER, build_model, build_tokenizer
from lab.traces import examples

CHECKPOINT = DATA / "cold_start" / "cpu"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("part", PARTS)
def test_every_puzzle_of_the_cpu_set_is_thirteen_known_tokens(tokenizer, part):
    frame = load_split("cpu", part)
    prompts = [render(tokenizer, build_messages(nums, target), add_generation_prompt=True)
               for nums, target in zip(frame["nums"], frame["target"], strict=True)]
    rows = tokenizer(prompts)["input_ids"]
    assert len(rows) > 400
    assert {len(row) for row in rows} == {13}
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert tokenizer.batch_decode(rows) == prompts
    assert CPU.max_prompt_length >= 13


def test_every_number_of_a_puzzle_is_one_token(tokenizer):
    prompt = pieces(tokenizer, render(tokenizer, build_messages([12, 3, 5], 41)))
    assert prompt[4:9] == ["12", ", ", "3", ", ", "5"] and prompt[10] == "41"
    assert pieces(tokenizer, str(MAX_NUMBER)) == [str(MAX_NUMBER)]
    assert pieces(tokenizer, str(MAX_NUMBER + 1)) == ["<|unknown|>"]


def test_traces_come_back_character_by_character(tokenizer):
    cold = CPU.cold_start
    rows = examples(load_split("cpu", "train"), 3000, seed=5, hit_rate=cold.hit_rate,
                    max_tries=cold.max_tries, max_value=cold.max_value)
    texts = [row["trace"] for row in rows]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert tokenizer.batch_decode(ids) == texts
    assert max(map(len, ids)) + 1 <= CPU.max_completion_length  # one more for the end token


def test_the_prompt_is_a_prefix_and_the_turn_ends_with_the_end_token(tokenizer):
    messages = build_messages([4, 11, 8], 12)
    prompt = render(tokenizer, messages, add_generation_prompt=True)
    answered = [*messages, {"role": "assistant", "content": EXAMPLE["completion"]}]
    whole = tokenizer(render(tokenizer, answered))["input_ids"]
    completion = tokenizer(EXAMPLE["completion"])["input_ids"]
    assert whole == tokenizer(prompt)["input_ids"] + completion + [tokenizer.eos_token_id]
    # What the trainer hands to the rewards: without the end token.
    assert tokenizer.decode(whole[13:], skip_special_tokens=True) == EXAMPLE["completion"]
    assert prompt.removesuffix("<|assistant|>") == render(tokenizer, messages)
    roles = tokenizer("<|system|><|user|><|assistant|>")["input_ids"]
    assert len(roles) == 3 and tokenizer.decode(roles, skip_special_tokens=True) == ""


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["<answer>", "<answer>4 * 3 = 12</answer>"], padding=True)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"][0][:-1] == [pad] * (len(batch["input_ids"][1]) - 1)
    assert batch["attention_mask"][0][-1] == 1 and sum(batch["attention_mask"][0]) == 1
    assert pad != tokenizer.eos_token_id  # else the end token would be masked, and never learned


@pytest.mark.parametrize("text", ["(4 + 8) × 1", "4+8", "[4]", "four", "4.5"])
def test_other_text_is_unknown(tokenizer, text):
    assert tokenizer.unk_token_id in tokenizer(text)["input_ids"]


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    same_tokenizer(AutoTokenizer.from_pretrained(tmp_path), tokenizer)


@pytest.mark.skipif(not (CHECKPOINT / "tokenizer.json").exists(),
                    reason="data/cold_start/cpu is not there: python -m lab.coldstart makes it")
def test_the_shipped_checkpoint_has_this_tokenizer(tokenizer):
    from transformers import AutoTokenizer

    same_tokenizer(AutoTokenizer.from_pretrained(CHECKPOINT), tokenizer)


def same_tokenizer(other, tokenizer):
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other.chat_template == tokenizer.chat_template
    assert other.padding_side == tokenizer.padding_side
    for name in ("pad_token_id", "eos_token_id", "unk_token_id", "bos_token_id"):
        assert getattr(other, name) == getattr(tokenizer, name)
    text = render(tokenizer, build_messages([4, 11, 8], 12)) + EXAMPLE["completion"]
    assert other(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert other.decode(other(text)["input_ids"]) == text


def test_model_fits_the_tokenizer_and_its_seed(tokenizer):
    import torch

    one, again, other = (build_model(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert 700_000 < sum(p.numel() for p in one.parameters()) < 800_000
    assert one.config.vocab_size == len(tokenizer)
    assert one.config.eos_token_id == tokenizer.eos_token_id
    assert one.config.pad_token_id == tokenizer.pad_token_id
    assert CPU.max_prompt_length + CPU.max_completion_length <= one.config.max_position_embeddings
    ids = torch.tensor([tokenizer(EXAMPLE["completion"])["input_ids"]])
    with torch.no_grad():
        logits = [model(ids).logits for model in (one, again, other)]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_trl_writes_messages_with_the_template_and_leaves_a_string_as_it_is(tokenizer):
    from trl.data_utils import maybe_apply_chat_template

    messages = build_messages([4, 11, 8], 12)
    written = maybe_apply_chat_template({"prompt": messages}, tokenizer)["prompt"]
    assert written == render(tokenizer, messages, add_generation_prompt=True)
    string = messages[1]["content"]
    assert maybe_apply_chat_template({"prompt": string}, tokenizer)["prompt"] == string
