"""Sample completions on held-out puzzles, grade them, and count with intervals."""

import random
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd

from helpers.paths import RUNS
from helpers.prompts import build_messages
from helpers.rewards import is_correct

TEMPERATURES = (1.0, 0.6, 0.0)


def as_shown(puzzles, seed=0, shuffle=True):
    """Return the puzzles as dicts of nums and target, the numbers shuffled or else as given."""
    rng = random.Random(seed)
    return [{"nums": [int(n) for n in (rng.sample(list(nums), len(nums)) if shuffle else nums)],
             "target": int(target)}
            for nums, target in zip(puzzles["nums"], puzzles["target"], strict=True)]


def sample_completions(model, tokenizer, profile, puzzles, temperature, seed=0, batch=512,
                       build=build_messages, shuffle=True, adapter=True):
    """Sample one completion for every puzzle and grade it.

    Parameters
    ----------
    model, tokenizer, profile
        As for `helpers.models.load_model`; the profile limits the tokens and names the sampler.
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``.
    temperature : float
        0 takes the likeliest token each time.
    seed : int
        Of the order in which the numbers are shown and, without vLLM, of the sampling.
    batch : int
        Prompts sampled together, without vLLM.
    build : callable
        Gives the messages of a prompt from its numbers and target.
    shuffle, adapter : bool
        False shows the numbers as they are given; samples without the model's LoRA adapter.

    Returns
    -------
    pandas.DataFrame
        One row a puzzle: ``temperature, sample, nums, target, completion, tokens, correct``.
    """
    shown = as_shown(puzzles, seed, shuffle)
    messages = [build(puzzle["nums"], puzzle["target"]) for puzzle in shown]
    prompts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    given = (model, tokenizer, profile, prompts, temperature)
    if profile.uses_vllm:
        tokens = _with_vllm(*given, adapter)
    else:
        with nullcontext() if adapter else model.disable_adapter():
            tokens = _with_transformers(*given, seed, batch)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return pd.DataFrame([
        {"temperature": float(temperature), "sample": seed, **puzzle, "completion": text,
         "tokens": len(ids), "correct": is_correct(text, **puzzle)}
        for puzzle, text, ids in zip(shown, texts, tokens, strict=True)])


def _with_transformers(model, tokenizer, profile, prompts, temperature, seed, batch):
    import torch

    was_training = model.training
    model.eval()
    sampling = ({"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
                if temperature > 0 else {"do_sample": False})
    pad, found = tokenizer.pad_token_id, []
    try:
        with torch.random.fork_rng(), torch.no_grad():  # training goes on with its own numbers
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch):
                part = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True,
                                 padding_side="left", add_special_tokens=False,
                                 return_token_type_ids=False).to(model.device)
                ids = model.generate(**part, **sampling, pad_token_id=pad,
                                     max_new_tokens=profile.max_completion_length)
                found += [row[row != pad].tolist() for row in ids[:, part["input_ids"].shape[1] :]]
    finally:  # a stopped one, too, leaves the model as it was
        model.train(was_training)
    return found


def _with_vllm(model, tokenizer, profile, prompts, temperature, adapter):
    from vllm import SamplingParams

    # No seed: one for each request makes vLLM sample row by row; the engine has its own, given when
    # the model is loaded. No text: vLLM would decode each token as it comes.
    settings = SamplingParams(temperature=temperature, top_p=1.0, top_k=-1, detokenize=False,
                              max_tokens=profile.max_completion_length)
    inputs = [{"prompt_token_ids": ids}
              for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    # The weights as they are now, under a name that vLLM has not seen yet: nothing is cached.
    lora = model.load_lora(str(RUNS / "evaluated_adapter"), load_tensors=True) if adapter else None
    # As many as run at once: where a prompt joins later, the batch fits no CUDA graph and is slow.
    found, at_once = [], profile.max_num_seqs
    for start in range(0, len(inputs), at_once):
        outputs = model.fast_generate(inputs[start : start + at_once], settings,
                                      lora_request=lora, use_tqdm=False)
        found += [list(output.outputs[0].token_ids) for output in outputs]
    return found


def check_adapter_used(model, tokenizer, profile, puzzles):
    """Raise RuntimeError if what vLLM samples does not follow the adapter's weights.

    The arguments are those of `sample_completions`. Its puzzles are answered greedily with the
    adapter as it is and with noise in place of the second matrices (B): half of the answers stay
    the same only if vLLM samples from the base model, or from an adapter that it kept. The adapter
    is left as it was; without one, or without vLLM, there is nothing to check.
    """
    import torch

    weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    if not (profile.uses_vllm and weights and len(puzzles)):
        return
    # Few tokens: each one more changes answers by rounding alone, as vLLM's sums vary a little.
    asked = (model, tokenizer, replace(profile, max_completion_length=4), puzzles.head(64), 0)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad(), torch.random.fork_rng():
        adapted = sample_completions(*asked)["completion"]
        try:
            for weight in weights:
                weight.normal_(std=0.5)  # zeros, the base model, may change too few answers
            noisy = sample_completions(*asked)["completion"]
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
    same = (adapted == noisy).sum()
    if 2 * same >= len(adapted):
        raise RuntimeError(
            f"{same} of {len(adapted)} greedy completions are the same with the adapter and with "
            "noise in its place: vLLM does not sample from the adapter. Restart the kernel and "
            "load the model with helpers.models.load_model before anything imports trl or vllm")


def evaluate(model, tokenizer, profile, puzzles, stage, temperatures=TEMPERATURES, seed=0):
    """Sample every puzzle once at each temperature and return the graded rows.

    Parameters
    ----------
    model, tokenizer, profile, puzzles, seed
        As for `sample_completions`; `check_adapter_used` gets them first, and may raise.
    stage : str
        "before" or "after"; a column of the result.
    temperatures : sequence of float
        Each gives one completion a puzzle.

    Returns
    -------
    pandas.DataFrame
        The rows of `sample_completions`, with the column ``stage`` in front.
    """
    check_adapter_used(model, tokenizer, profile, puzzles)
    frame = pd.concat([sample_completions(model, tokenizer, profile, puzzles, temperature, seed)
                       for temperature in temperatures], ignore_index=True)
    frame.insert(0, "stage", stage)
    return frame


def success(frame, by=("stage", "temperature")):
    """Return the success rate of each group with its 95 % Wilson interval.

    Parameters
    ----------
    frame, by : pandas.DataFrame, sequence of str
        Graded rows, and the columns that make a group.

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
