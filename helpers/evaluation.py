"""Sample completions on held-out puzzles, grade them, and count with intervals."""

import random
from dataclasses import replace

import pandas as pd

from helpers.paths import RUNS
from helpers.prompts import build_messages
from helpers.rewards import is_correct

TEMPERATURES = (1.0, 0.6, 0.0)
# Answers, and their tokens, that show whether the adapter acts. Few tokens: the more there are, the
# more answers change by rounding alone, because vLLM does not repeat its sums to the last bit.
COMPARED, COMPARED_TOKENS = 64, 4


def sample_completions(
    model, tokenizer, profile, puzzles, temperature, seed=0, batch=512, build=build_messages
):
    """Sample one completion for every puzzle and grade it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy; with vLLM, Unsloth's model with its ``fast_generate``.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's.
    profile : helpers.profiles.Profile
        Gives the longest completion, in tokens, and whether vLLM samples.
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``.
    temperature : float
        0 takes the likeliest token each time.
    seed : int
        Seed of the order in which the numbers are shown and, without vLLM, of the sampling.
    batch : int
        Prompts sampled together (transformers only).
    build : callable
        Gives the messages of a prompt from its numbers and target.

    Returns
    -------
    pandas.DataFrame
        One row a puzzle: ``temperature, sample, nums, target, completion, tokens, correct``.
    """
    rng = random.Random(seed)
    rows = [
        {
            "temperature": float(temperature),
            "sample": seed,
            "nums": [int(n) for n in rng.sample(list(nums), len(nums))],
            "target": int(target),
        }
        for nums, target in zip(puzzles["nums"], puzzles["target"], strict=True)
    ]
    messages = [build(row["nums"], row["target"]) for row in rows]
    prompts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    draw = _with_vllm if profile.uses_vllm else _with_transformers
    completions = draw(model, tokenizer, profile, prompts, temperature, seed, batch)
    for row, (text, tokens) in zip(rows, completions, strict=True):
        row |= {"completion": text, "tokens": tokens}
        row["correct"] = is_correct(text, row["nums"], row["target"])
    return pd.DataFrame(rows)


def _with_transformers(model, tokenizer, profile, prompts, temperature, seed, batch):
    import torch

    was_training = model.training
    model.eval()
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    found = []
    with torch.random.fork_rng(), torch.no_grad():  # training goes on with its own numbers
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch):
            part = tokenizer(
                prompts[start : start + batch],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
                return_token_type_ids=False,
            ).to(model.device)
            ids = model.generate(
                **part,
                **sampling,
                max_new_tokens=profile.max_completion_length,
                pad_token_id=tokenizer.pad_token_id,
            )[:, part["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            lengths = (ids != tokenizer.pad_token_id).sum(dim=1).tolist()
            found += list(zip(texts, lengths, strict=True))
    model.train(was_training)
    return found


def _with_vllm(model, tokenizer, profile, prompts, temperature, seed, batch):
    from vllm import SamplingParams

    # No seed: one for each request makes vLLM sample its rows one by one. The engine's own seed,
    # given when the model is loaded, fixes the order of its random numbers.
    # No text from vLLM, which would decode each token as it comes: all are decoded at once below.
    settings = SamplingParams(temperature=temperature, top_p=1.0, top_k=-1, detokenize=False,
                              max_tokens=profile.max_completion_length)
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    inputs = [{"prompt_token_ids": i} for i in ids]
    # The weights as they are now, under a name that vLLM has not seen yet: nothing is cached.
    adapter = model.load_lora(str(RUNS / "evaluated_adapter"), load_tensors=True)
    # As many as run at once: a prompt that joins later makes a batch that no CUDA graph fits, and
    # then Python launches every kernel of every layer, step by step.
    found, at_once = [], profile.max_num_seqs
    for start in range(0, len(inputs), at_once):
        outputs = model.fast_generate(inputs[start : start + at_once], settings,
                                      lora_request=adapter, use_tqdm=False)
        found += [list(output.outputs[0].token_ids) for output in outputs]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    return [(text, len(ids)) for text, ids in zip(texts, found, strict=True)]


def check_adapter_used(model, tokenizer, profile, puzzles):
    """Raise if what vLLM samples does not follow the adapter's weights.

    Puzzles are answered greedily with the adapter as it is and with noise in place of its second
    matrices (B), which no answer survives unless vLLM samples from the base model, or from an
    adapter that it kept from earlier. (Comparing with the base model itself would not do: vLLM
    repeats its own greedy answers only nearly always, and an adapter after a few steps changes few
    of them.)

    Parameters
    ----------
    model, tokenizer, profile, puzzles
        As for `sample_completions`; the first puzzles are asked, and the adapter is left as it was.
        Without vLLM, or without an adapter, there is nothing to check.

    Raises
    ------
    RuntimeError
        If half of the answers or more are the same.
    """
    import torch

    weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    if not (profile.uses_vllm and weights and len(puzzles)):
        return
    short = replace(profile, max_completion_length=COMPARED_TOKENS)

    def answers():
        few = puzzles.head(COMPARED)
        return sample_completions(model, tokenizer, short, few, 0)["completion"].tolist()

    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad(), torch.random.fork_rng():
        adapted = answers()
        try:
            for weight in weights:
                weight.normal_(std=0.5)
            noisy = answers()
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
    same = sum(a == b for a, b in zip(adapted, noisy, strict=True))
    if 2 * same >= len(adapted):
        raise RuntimeError(
            f"{same} of {len(adapted)} greedy completions are the same with the adapter and with "
            "noise in its place: vLLM does not sample from the adapter. Restart the kernel and "
            "load the model with helpers.models.load_model before anything imports trl or vllm"
        )


def evaluate(model, tokenizer, profile, puzzles, stage, temperatures=TEMPERATURES, seed=0):
    """Sample every puzzle once at each temperature and return the graded rows.

    Parameters
    ----------
    model, tokenizer, profile, puzzles, seed
        As for `sample_completions`.
    stage : str
        "before" or "after"; a column of the result.
    temperatures : sequence of float
        Each gives one completion a puzzle.

    Returns
    -------
    pandas.DataFrame
        The rows of `sample_completions`, with the column ``stage`` in front.

    Raises
    ------
    RuntimeError
        If vLLM does not sample from the model's adapter.
    """
    check_adapter_used(model, tokenizer, profile, puzzles)
    frames = [
        sample_completions(model, tokenizer, profile, puzzles, temperature, seed)
        for temperature in temperatures
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "stage", stage)
    return frame


def success(frame, by=("stage", "temperature")):
    """Return the success rate of each group with its 95 % Wilson interval.

    Parameters
    ----------
    frame : pandas.DataFrame
        Graded rows.
    by : sequence of str
        The columns that make a group.

    Returns
    -------
    pandas.DataFrame
        Index `by`; columns ``n, correct, rate, low, high`` (rates between 0 and 1).
    """
    from statsmodels.stats.proportion import proportion_confint

    table = frame.groupby(list(by), sort=False)["correct"].agg(n="size", correct="sum")
    table["rate"] = table["correct"] / table["n"]
    table["low"], table["high"] = proportion_confint(table["correct"], table["n"], method="wilson")
    return table


def regrade(frame):
    """Grade recorded completions again with the reward of today; return a boolean Series."""
    graded = [
        is_correct(row.completion, [int(n) for n in row.nums], int(row.target))
        for row in frame.itertuples()
    ]
    return pd.Series(graded, index=frame.index)
