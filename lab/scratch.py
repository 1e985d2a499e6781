"""GRPO from scratch: every piece of a training step in plain PyTorch, short enough to read aloud.

Notebook 06 derives the pieces one by one and prints them from here; tests/lab/test_scratch.py holds
them against trl. B completions of up to C tokens are (B, C) tensors; a group's completions stand
in consecutive rows.
"""

import copy
import time

import torch

from helpers.rewards import equation_reward_func, strict_format_reward_func


def group_advantages(rewards, group_size, scale=True):
    """Return how much better than its own group each completion is, in standard deviations.

    Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; without the division Liu et al. 2025
    (Dr. GRPO, arXiv 2503.20783).

    Parameters
    ----------
    rewards : torch.Tensor
        (B,), the groups one after the other.
    group_size : int
        Completions of one prompt; at least 2.
    scale : bool
        Whether to divide by the group's standard deviation.

    Returns
    -------
    torch.Tensor
        (B,); 0 for every completion of a group without spread.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-4)
    return centred.flatten()


def completion_mask(tokens, eos, drop_truncated=False):
    """Return 1 for every token up to a completion's first end token, else 0.

    Parameters
    ----------
    tokens : torch.Tensor
        (B, C) token ids.
    eos : int
        The end token's id.
    drop_truncated : bool
        Whether a completion without an end token is left out altogether.

    Returns
    -------
    torch.Tensor
        (B, C), integers.
    """
    is_end = (tokens == eos).long()
    ends_so_far = is_end.cumsum(dim=1)
    mask = (ends_so_far - is_end == 0).long()  # no end before this token
    if drop_truncated:
        mask = mask * ends_so_far[:, -1:].clamp(max=1)
    return mask


def completion_logits(model, batch, temperature=1.0):
    """Return the logits that the model draws each token of the completions from.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy, or the reference model.
    batch : dict
        ``prompts`` and ``prompt_mask`` (B, P), padded on the left; ``tokens`` and ``mask`` (B, C).
    temperature : float
        The temperature of the sampling.

    Returns
    -------
    torch.Tensor
        (B, C, vocabulary).
    """
    ids = torch.cat([batch["prompts"], batch["tokens"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["mask"]], dim=1)
    keep = batch["tokens"].shape[1] + 1
    logits = model(ids, attention_mask=attention, use_cache=False, logits_to_keep=keep).logits
    return logits[:, :-1] / temperature  # the logits at a token are for the token after it


def token_logps(logits, tokens):
    """Return the log-probability of each token: (B, C), from (B, C, vocabulary) and (B, C)."""
    return logits.log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def clipped_objective(ratio, advantages, epsilon=0.2, epsilon_high=0.28):
    """Return what is to be raised, for each token.

    Schulman et al. 2017 (PPO, arXiv 1707.06347), equation 7; with an upper end of its own Yu et
    al. 2025 (DAPO, arXiv 2503.14476).

    Parameters
    ----------
    ratio : torch.Tensor
        (B, C), the policy's probability of each token over the sampler's.
    advantages : torch.Tensor
        (B, 1), the same for all tokens of a completion.
    epsilon, epsilon_high : float
        The ratio is clipped to 1 - epsilon ... 1 + epsilon_high.
    """
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def k3(logps, reference_logps):
    """Return an estimate of each token's KL divergence from the reference model.

    Never negative, and right on average over tokens that the policy drew: Schulman 2020,
    http://joschu.net/blog/kl-approx.html.
    """
    log_ratio = reference_logps - logps
    return log_ratio.exp() - log_ratio - 1


def aggregate(per_token, mask, loss_type, max_length):
    """Return one number from a value for each token.

    Parameters
    ----------
    per_token, mask : torch.Tensor
        (B, C).
    loss_type : str
        "grpo": mean of each completion, then of all (Shao et al. 2024). "dapo": mean of all
        tokens (Yu et al. 2025). "dr_grpo": sum over a constant (Liu et al. 2025).
    max_length : int
        The longest that a completion may be, in tokens: the constant of "dr_grpo".

    Raises
    ------
    ValueError
        For another loss type.
    """
    if loss_type == "grpo":
        return ((per_token * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
    if loss_type == "dapo":
        return (per_token * mask).sum() / mask.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (len(mask) * max_length)
    raise ValueError(f"no loss type is called {loss_type!r}: choose grpo, dapo or dr_grpo")


def grpo_loss(logps, batch, profile):
    """Return the whole loss of a batch, a number to descend.

    The KL term is weighted by the ratio as in DeepSeek-V3.2 (arXiv 2512.02556) and, unless told
    otherwise, trl.

    Parameters
    ----------
    logps : torch.Tensor
        (B, C), the policy's log-probabilities now, with their gradient.
    batch : dict
        ``old_logps`` (those of the policy that sampled), ``mask`` (both (B, C)), ``advantages``
        (B,) and, when the profile's beta is above 0, ``reference_logps`` (B, C).
    profile : helpers.profiles.Profile
        Loss type, ends of the clip, beta, longest completion.
    """
    ratio = (logps - batch["old_logps"]).exp()
    advantages = batch["advantages"].unsqueeze(1)
    per_token = -clipped_objective(ratio, advantages, profile.epsilon, profile.epsilon_high)
    if profile.beta:  # the ratio makes the estimate's gradient that of the divergence
        divergence = ratio * k3(logps, batch["reference_logps"])
        per_token = per_token + profile.beta * divergence
    return aggregate(per_token, batch["mask"], profile.loss_type, profile.max_completion_length)


@torch.no_grad()
def sample_group(model, prompts, prompt_mask, group_size, max_tokens, eos, pad=0, temperature=1.0,
                 generator=None):
    """Sample a group of completions for each prompt, token by token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The policy.
    prompts, prompt_mask : torch.Tensor
        (prompts, P), padded on the left.
    group_size, max_tokens : int
        Completions of one prompt; the longest that one may be.
    eos, pad : int
        The token that ends a completion, and the one that fills its row up.
    temperature : float
        Above 0.
    generator : torch.Generator, optional
        The random numbers. From the same ones transformers' ``generate`` samples the same tokens.

    Returns
    -------
    torch.Tensor
        (prompts * group_size, length of the longest completion).
    """
    position = (prompt_mask.cumsum(dim=1) - 1).clamp(min=0)  # the padding takes no place
    out = model(prompts, attention_mask=prompt_mask, position_ids=position, use_cache=True,
                logits_to_keep=1)
    cache = out.past_key_values  # each prompt is read once ...
    cache.batch_repeat_interleave(group_size)  # ... and continued group_size times
    logits = out.logits[:, -1].repeat_interleave(group_size, dim=0)
    attention = prompt_mask.repeat_interleave(group_size, dim=0)
    tokens = torch.full((len(logits), max_tokens), pad)
    rows, noise = torch.arange(len(logits)), torch.empty_like(logits)
    for step in range(max_tokens):
        # The largest p / Exp(1) is at token k with probability p_k. Noise for all rows, also the
        # finished ones: a row's draws then don't depend on when the others end.
        noise.exponential_(generator=generator)
        drawn = ((logits / temperature).softmax(dim=-1) / noise[rows]).argmax(dim=-1)
        tokens[rows, step] = drawn
        alive = (drawn != eos).nonzero().flatten()
        if len(alive) == 0 or step + 1 == max_tokens:
            break
        if len(alive) < len(rows):  # a finished completion leaves the batch
            rows, drawn, attention = rows[alive], drawn[alive], attention[alive]
            cache.batch_select_indices(alive)
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        position = attention.sum(dim=1, keepdim=True) - 1
        out = model(drawn[:, None], attention_mask=attention, position_ids=position,
                    past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
    return tokens[:, : step + 1]


def encode_prompts(tokenizer, puzzles):
    """Return the puzzles' prompts as token ids, padded on the left, and their mask: (n, P) each."""
    asked = tokenizer.apply_chat_template([puzzle["prompt"] for puzzle in puzzles],
                                          add_generation_prompt=True, tokenize=False)
    ids = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left",
                    add_special_tokens=False)
    return ids["input_ids"], ids["attention_mask"]


def score(texts, puzzles):
    """Return each reward function's scores, (B,) each, by their names in metrics.jsonl.

    Parameters
    ----------
    texts : list of str
        B completions: as many for each puzzle, one puzzle's after the other's.
    puzzles : list of dict
        Rows with ``nums`` and ``target``.
    """
    group = len(texts) // len(puzzles)
    nums = [puzzle["nums"] for puzzle in puzzles for _ in range(group)]
    target = [puzzle["target"] for puzzle in puzzles for _ in range(group)]
    return {
        "equation_reward": torch.tensor(equation_reward_func(texts, texts, target, nums)),
        "format_reward": torch.tensor(strict_format_reward_func(texts)),
    }


def make_batch(tokenizer, profile, puzzles, tokens):
    """Return what an update needs, still without log-probabilities, and the scores.

    Parameters
    ----------
    tokenizer, profile
        As for `training_steps`.
    puzzles : list of dict
        Rows of `helpers.training.prompt_dataset`.
    tokens : torch.Tensor
        (puzzles * group size, C) completions, from `sample_group`.
    """
    prompts, prompt_mask = encode_prompts(tokenizer, puzzles)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    scores = score(texts, puzzles)
    batch = {
        "prompts": prompts.repeat_interleave(profile.group_size, dim=0),
        "prompt_mask": prompt_mask.repeat_interleave(profile.group_size, dim=0),
        "tokens": tokens,
        "mask": completion_mask(tokens, tokenizer.eos_token_id, profile.mask_truncated),
        "advantages": group_advantages(sum(scores.values()), profile.group_size),
    }
    return batch, scores


def roll_out(model, tokenizer, profile, puzzles, generator=None):
    """Sample a group for each puzzle and score it; return `make_batch`'s batch and scores."""
    tokens = sample_group(model, *encode_prompts(tokenizer, puzzles), profile.group_size,
                          profile.max_completion_length, tokenizer.eos_token_id,
                          tokenizer.pad_token_id, profile.temperature, generator)
    return make_batch(tokenizer, profile, puzzles, tokens)


def update(model, optimizer, batch, profile, reference=None):
    """Make one optimiser step on a batch; return what happened in it.

    The first update on a batch notes its log-probabilities as those of the policy that sampled;
    further updates on the same batch are measured against them.
    """
    logits = completion_logits(model, batch, profile.temperature)
    logps, mask = token_logps(logits, batch["tokens"]), batch["mask"]
    batch.setdefault("old_logps", logps.detach())
    if profile.beta:
        with torch.no_grad():
            reference_logits = completion_logits(reference, batch, profile.temperature)
        batch["reference_logps"] = token_logps(reference_logits, batch["tokens"])
    loss = grpo_loss(logps, batch, profile)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        ratio, advantages = (logps - batch["old_logps"]).exp(), batch["advantages"].unsqueeze(1)
        stopped = ((ratio > 1 + profile.epsilon_high) & (advantages > 0)
                   | (ratio < 1 - profile.epsilon) & (advantages < 0))
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        shares = {"entropy": entropy, "clip_ratio": stopped.float()}
        means = {name: aggregate(x, mask, "dapo", None).item() for name, x in shares.items()}
    return {"loss": loss.item(), "grad_norm": norm.item()} | means


def puzzle_order(n, size, seed):
    """Yield the indices of each step's puzzles for ever, in the order in which trl takes them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % size].view(-1, size).tolist()


def sampling_seed(seed, step):
    """Return the seed of one step's sampling."""
    return 1_000_000 * seed + step


def clock():
    """Return the time of day and the processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def durations(start, sampled, updated):
    """Return a step's durations from three `clock` readings, as columns of metrics.jsonl.

    Generation includes the scoring. The processor's seconds don't count what other programs take.
    """
    row = {"step_seconds": updated[0] - start[0]}
    for name, (a, b) in {"generation": (start, sampled), "update": (sampled, updated)}.items():
        row |= {f"{name}_seconds": b[0] - a[0], f"{name}_cpu_seconds": b[1] - a[1]}
    return {name: round(value, 4) for name, value in row.items()}


def training_steps(model, tokenizer, profile, dataset, seed=0):
    """Train a model in place, step by step.

    Parameters
    ----------
    model, tokenizer
        From `helpers.models.load_model`, on the CPU.
    profile : helpers.profiles.Profile
        A CPU profile. All completions of a step go through the model at once.
    dataset : datasets.Dataset
        From `helpers.training.prompt_dataset`; at least one step's puzzles.
    seed : int
        Seed of the order of the puzzles, which is trl's, and of the sampling.

    Yields
    ------
    (row, batch)
        After each step its metrics, in the form of metrics.jsonl, and its batch.

    Raises
    ------
    ValueError
        If the profile asks for what is not written here: a GPU, warm-up, gradient accumulation;
        or the puzzles are fewer than a step's.
    """
    if profile.needs_gpu or profile.warmup_steps or profile.accumulation_steps > 1:
        raise ValueError(f"profile {profile.name} needs a GPU, warm-up or gradient accumulation, "
                         "which this loop leaves out: use profile cpu, or trl in notebook 04")
    if len(dataset) < profile.prompts_per_step:
        raise ValueError(f"{len(dataset)} puzzles, and a step asks {profile.prompts_per_step}: "
                         "give more puzzles, or lower prompts_per_step")
    optimizer = torch.optim.AdamW(model.parameters(), lr=profile.learning_rate, weight_decay=0.0)
    reference = copy.deepcopy(model) if profile.beta else None
    order = puzzle_order(len(dataset), profile.prompts_per_step, seed)
    generator, spent = torch.Generator(), 0.0
    for step in range(1, profile.steps + 1):
        start = clock()
        # A fresh start at each step: its draws don't hang on how long earlier completions were.
        generator.manual_seed(sampling_seed(seed, step))
        puzzles = [dataset[i] for i in next(order)]
        batch, scores = roll_out(model, tokenizer, profile, puzzles, generator)
        sampled = clock()
        measured = update(model, optimizer, batch, profile, reference)
        times = durations(start, sampled, clock())
        spent += times["step_seconds"]
        row = {"step": step, "seconds": round(spent, 2)} | rollout_metrics(
            batch, scores, profile.group_size, tokenizer.eos_token_id)
        yield row | measured | {"learning_rate": profile.learning_rate} | times, batch


def rollout_metrics(batch, scores, group_size, eos):
    """Return what metrics.jsonl says about a step's completions."""
    rewards = sum(scores.values())
    spread = rewards.view(-1, group_size).std(dim=1)
    return {"reward": rewards.mean().item()} | {k: v.mean().item() for k, v in scores.items()} | {
        "reward_std": rewards.std().item(),
        "zero_spread_groups": torch.isclose(spread, torch.zeros(())).float().mean().item(),
        "completion_tokens": completion_mask(batch["tokens"], eos).sum(1).float().mean().item(),
        "truncated": (batch["tokens"] != eos).all(dim=1).float().mean().item(),
    }
