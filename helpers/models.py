"""Load a profile's model and tokenizer, for the CPU or, through Unsloth, for a GPU."""

import os

from helpers.paths import ROOT, show


def load_model(profile, folder=None, seed=0):
    """Return a profile's model and tokenizer, ready for GRPO.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What to load.
    folder : path, optional
        A folder with a trained model to load instead of the profile's own.
    seed : int
        Seed of new LoRA weights (GPU profiles).

    Returns
    -------
    (model, tokenizer)
        CPU: a float32 transformers model. GPU: Unsloth's 4-bit model under LoRA, with vLLM.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    """
    if profile.needs_gpu:
        return _load_unsloth(profile, folder, seed)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / profile.model if folder is None else folder
    if not (folder / "model.safetensors").exists():
        remedy = (
            "make it with `python -m helpers.coldstart`"
            if folder == ROOT / profile.model
            else "train it with notebook 04, or name another folder"
        )
        raise FileNotFoundError(f"{show(folder)} holds no model: {remedy}")
    # float32: processors without native bfloat16 are many times slower in it
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model, AutoTokenizer.from_pretrained(folder)


def _load_unsloth(profile, folder, seed):
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    from unsloth import FastLanguageModel  # before trl and transformers: it patches both

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder or profile.model),
        revision=None if folder else profile.revision,
        use_exact_model_name=True,  # not Unsloth's own copy: the revision is this repository's
        max_seq_length=profile.max_prompt_length + profile.max_completion_length,
        load_in_4bit=profile.quantisation == "nf4",
        fast_inference=profile.uses_vllm,
        max_lora_rank=profile.lora_rank,
        gpu_memory_utilization=profile.gpu_memory_utilization,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=profile.lora_rank,
        lora_alpha=2 * profile.lora_rank,
        lora_dropout=0,
        bias="none",
        target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
        use_gradient_checkpointing="unsloth",
        random_state=seed,
    )
    return model, tokenizer
