"""Other ways for vLLM to sample under LoRA: the option ``--sampler`` of the lab's commands.

Each changes vLLM's classes or a loaded model in place, for as long as the process lives; whether
what is sampled from is still the policy, `compare_log_probs` measures.
"""

import importlib
import os

from helpers.models import prepare_environment

SAMPLERS = {
    "once": "NF4: a 16-bit copy of vLLM's layers, made once (lab.nf4_copies)",
    "wide": "the adapter's A in one tensor with W (lab.wide_lora)",
    "fold": "the adapter added to vLLM's weights, rounded at random (lab.folding)",
}
SEEN_WITH = "0.25.1"  # of vLLM: the changes reach into classes that another version may not have
SIZES = (0.02, 2e-4)  # standard deviation of a random B: a large change, and one of a few steps


def add_option(parser):
    """Give a command's parser the option ``--sampler``."""
    parser.add_argument("--sampler", nargs="+", default=[], choices=SAMPLERS, metavar="WAY",
                        help="; ".join(f"{name}: {text}" for name, text in SAMPLERS.items()))


def check_choice(sampler, profile):
    """Raise a ValueError for ways that exclude each other, or that do not go with a profile."""
    if not sampler:
        return
    if not profile.uses_vllm:
        raise ValueError(f"--sampler changes vLLM, and profile {profile.name} samples without it")
    if profile.standby:
        raise ValueError("--sampler was not tried with vLLM in standby: --set standby=false")
    if {"wide", "fold"} <= set(sampler):
        raise ValueError("--sampler wide and --sampler fold exclude each other: a folded adapter "
                         "needs no product of its own")
    if "once" in sampler and profile.quantisation != "nf4":
        raise ValueError("--sampler once is for NF4 weights, and these are in 16 bits")
    if profile.quantisation == "nf4" and "once" not in sampler:
        raise ValueError(f"--sampler {sampler[0]} needs 16-bit weights in vLLM: with NF4 say "
                         f"--sampler once {sampler[0]}")


def vllm_class(module, name, *methods):
    """Return a class of vLLM; a RuntimeError if it is not the one whose methods were replaced."""
    import vllm

    if vllm.__version__.partition("+")[0] != SEEN_WITH:
        raise RuntimeError(f"--sampler changes classes of vLLM {SEEN_WITH}, and this is "
                           f"{vllm.__version__}: install the pinned version, or sample without it")
    found = getattr(importlib.import_module(module), name, None)
    missing = [method for method in methods if not hasattr(found, method)]
    if missing:
        raise RuntimeError(f"{module}.{name} has no {' and no '.join(missing)}: --sampler cannot "
                           "change it")
    return found


def vllm_model(model):
    """Return the model inside the engine of a policy that Unsloth loaded."""
    core = model.vllm_engine.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.model_runner.model


def load_with(sampler, load):
    """Return a function that loads a model with the chosen ways of sampling.

    Parameters
    ----------
    sampler : sequence of str
        Names in `SAMPLERS`; with none of them `load` itself is returned.
    load : callable
        ``load(profile, ...)`` returns (model, tokenizer), as `helpers.models.load_model` and
        `lab.record.make_model` do.
    """
    if not sampler:
        return load

    def loaded(profile, *arguments, **options):
        check_choice(sampler, profile)
        prepare_environment(profile)
        import unsloth  # noqa: F401  before vllm, as in load_model

        # vLLM's classes first: they concern the layers that are made afterwards
        if "once" in sampler:
            from lab import nf4_copies

            nf4_copies.install()
        if "wide" in sampler:
            from lab import wide_lora

            wide_lora.install()
        model, tokenizer = load(profile, *arguments, **options)
        confirm(sampler, vllm_model(model))
        if "fold" in sampler:
            from lab import folding

            folding.install(model, vllm_model(model))
        return model, tokenizer

    return loaded


def confirm(sampler, inner):
    """Raise a RuntimeError if a layer is as it was: the record would name what was not run."""
    layers = [m for m in inner.modules() if hasattr(m, "lora_a_stacked")]
    counts = {"once": sum(hasattr(m.base_layer, "weight_16") for m in layers),
              "wide": sum(hasattr(m, "wide") for m in layers)}
    for name, count in counts.items():
        if name in sampler and not 0 < count == len(layers):
            raise RuntimeError(f"--sampler {name} reached {count} of vLLM's {len(layers)} layers "
                               "with an adapter")


def agreement(policy, base, by_vllm):
    """Return how far the log-probs that vLLM reported are the policy's.

    Parameters
    ----------
    policy, base, by_vllm : torch.Tensor
        (completions, tokens), natural logarithms: of the trainer's model with and without its
        adapter, and vLLM's.

    Returns
    -------
    dict of str to float
        ``mean_ratio``: importance ratio, policy to sampler; near 1 for any two close models, so
        it shows coarse faults only. ``mean_absolute_change``: what the adapter changes. ``kept``:
        the share of that change that vLLM sampled with; of changes below the differences of
        rounding it says little.
    """
    change, difference = policy - base, policy - by_vllm
    kept = ((by_vllm - base) * change).sum() / change.pow(2).sum()
    return {"mean_ratio": round(difference.exp().mean().item(), 5),
            "mean_absolute_difference": round(difference.abs().mean().item(), 5),
            "largest_difference": round(difference.abs().max().item(), 4),
            "mean_absolute_change": round(change.abs().mean().item(), 5),
            "kept": round(kept.item(), 3)}


def compare_log_probs(model, tokenizer, folder, sampler=(), completions=64, tokens=64):
    """Sample under random adapters, and compare vLLM's log-probs with the policy's.

    The adapter's B stays random afterwards, and Unsloth returns logits.

    Parameters
    ----------
    model, tokenizer : peft.PeftModel, transformers.PreTrainedTokenizerBase
        From `load_with`.
    folder : pathlib.Path
        Where the model's ``save_lora`` left the adapter's settings.
    sampler : collection of str
        With ``once`` the copies are compared with what the trainer dequantises, too.
    completions, tokens : int
        How many are sampled, and how long each is.

    Returns
    -------
    dict
        `agreement` for each size of B.
    """
    import torch
    from vllm import SamplingParams

    found = {}
    if "once" in sampler:
        from lab.nf4_copies import compare_with_trainer

        found["copies"] = compare_with_trainer(model)
    prompt = tokenizer("The quick brown fox " * 20)["input_ids"][:64]
    settings = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, logprobs=0,
                              detokenize=False)
    os.environ["UNSLOTH_RETURN_LOGITS"] = "1"  # else Unsloth's model gives none
    model.eval()

    def sampled(request):
        made = model.vllm_engine.generate([{"prompt_token_ids": prompt}] * completions, settings,
                                          lora_request=request, use_tqdm=False)
        ids = torch.tensor([list(one.outputs[0].token_ids) for one in made])
        return ids, torch.tensor([[next(iter(step.values())).logprob
                                   for step in one.outputs[0].logprobs] for one in made])

    def scored(ids):
        rows = []
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for part in ids.split(8):
                whole = torch.cat([torch.tensor([prompt] * len(part)), part], dim=1).cuda()
                logits = model(input_ids=whole).logits[:, len(prompt) - 1:-1].float()
                rows.append(logits.log_softmax(-1).gather(-1, part.cuda()[..., None])[..., 0].cpu())
        return torch.cat(rows)

    for size in SIZES:
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, size)
        ids, by_vllm = sampled(model.load_lora(str(folder), load_tensors=True))
        policy = scored(ids)
        with model.disable_adapter():
            found[f"B {size}"] = agreement(policy, scored(ids), by_vllm)
    return found
