"""The model of the CPU profile: a small Llama and a tokenizer made for this one game.

The tokenizer knows the prompts' fixed sentences as one token each, and every number up to
`MAX_NUMBER`, so a prompt has about a dozen tokens where a pretrained model needs two hundred.
"""

from helpers.prompts import SYSTEM_PROMPT, user_prompt

MAX_NUMBER = 144  # the largest value in a thought: 12 * 12

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SPECIAL = ["<|pad|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
_WORDS = ["<think>", "</think>", "<answer>", "</answer>", "\n", " + ", " - ", " * ", " / ", " = "]
_WORDS += [", ", "(", ")", " no", " yes"]


def build_tokenizer():
    """Return a fast tokenizer for the prompts and traces of the CPU profile.

    Decoding gives such a text back, character by character; anything else in a text becomes
    ``<|unknown|>`` and is lost.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = _SPECIAL + _WORDS + [str(number) for number in range(MAX_NUMBER + 1)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unknown|>")
    )
    pattern = r"</?think>|</?answer>|[0-9]+|\n| [-+*/=] |, | no| yes|[()]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL])
    before, between, after = user_prompt([111], 222).replace("222", "111").split("111")
    fixed = [SYSTEM_PROMPT, before, between, after]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer, seed=0, hidden=128, layers=3, heads=4, key_value_heads=2):
    """Return a Llama with random weights for `tokenizer`, about 0.75 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)
