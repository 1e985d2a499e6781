"""Save a trained adapter, load it back in other ways, and count the answers that differ.

``python -m lab.saved runs/smollm2/final`` reads the adapter that notebook 04 saved, writes the
merged 16-bit model beside it, and answers the same puzzles greedily five times, each way of loading
in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import sample_completions
from helpers.models import (
    base_folder,
    load_model,
    prepare_environment,
    trained_model,
    vllm_share,
)
from helpers.paths import show
from helpers.prompts import build_messages
from helpers.rewards import is_correct
from helpers.runs import write_json
from lab.record import changed

PUZZLES = 50
EARLY = 20  # characters: greedy answers part by rounding alone, but seldom at once
WAYS = {
    "unsloth": "adapter on the 4-bit model, sampled by vLLM through Unsloth (as in training)",
    "adapter": "adapter on the 4-bit model, transformers and peft",
    "merged": "merged 16-bit model, transformers",
    "merged-vllm": "merged 16-bit model, vLLM",
    "adapter-vllm": "adapter on the 16-bit model, vLLM",
}


def answer(way, profile, folder):
    """Answer the first puzzles of the validation part greedily; return the completions."""
    puzzles = load_split(profile.puzzles, "validation").head(PUZZLES)
    if way == "unsloth":
        model, tokenizer = load_model(profile)
        trained_model(model, profile, folder)
        merged = folder.parent / "merged"
        model.save_pretrained_merged(str(merged), tokenizer, save_method="merged_16bit")
        frame = sample_completions(model, tokenizer, profile, puzzles, temperature=0)
        return frame["completion"].tolist()
    if way == "merged-vllm":
        return _with_plain_vllm(profile, folder.parent / "merged", puzzles)
    if way == "adapter-vllm":
        return _with_plain_vllm(profile, base_folder(profile), puzzles, adapter=folder)
    return _with_transformers(way, profile, folder, puzzles)


def _with_transformers(way, profile, folder, puzzles):
    from dataclasses import replace

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = {"dtype": torch.bfloat16, "device_map": {"": 0}}
    if way == "adapter":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16)
    source = base_folder(profile)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(
        source if way == "adapter" else folder.parent / "merged", **options)
    if way == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    plain = replace(profile, uses_vllm=False)
    frame = sample_completions(model, tokenizer, plain, puzzles, temperature=0)
    return frame["completion"].tolist()


def _with_plain_vllm(profile, folder, puzzles, adapter=None):
    prepare_environment(profile)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_lora_rank": profile.lora_rank} if adapter else {}
    model = LLM(str(folder), dtype="bfloat16", gpu_memory_utilization=vllm_share(profile),
                max_model_len=profile.max_prompt_length + profile.max_completion_length,
                enforce_eager=True, **lora)  # capturing CUDA graphs takes longer than the answers
    tokenizer = model.get_tokenizer()
    shown = [build_messages(nums, target) for nums, target in _as_shown(puzzles)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in
           tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)]
    sampling = SamplingParams(temperature=0, max_tokens=profile.max_completion_length)
    outputs = model.generate([{"prompt_token_ids": i} for i in ids], sampling,
                             lora_request=adapter and LoRARequest("trained", 1, str(adapter)))
    return [output.outputs[0].text for output in outputs]


def _as_shown(puzzles, seed=0):
    import random

    rng = random.Random(seed)  # the order in which sample_completions shows the numbers
    return [([int(n) for n in rng.sample(list(nums), len(nums))], int(target))
            for nums, target in zip(puzzles["nums"], puzzles["target"], strict=True)]


def compare(profile, folder, changes=()):
    """Answer in every way, each in its own process; print and return a row a way.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        A profile with LoRA.
    folder : pathlib.Path
        The saved adapter. The merged model goes to ``merged`` beside it, the answers to
        ``saved_answers.json``.
    changes : sequence of str
        Settings of the profile that the run had changed, as ``setting=value``.
    """
    if not (folder / "adapter_model.safetensors").exists():
        raise FileNotFoundError(f"{show(folder)} holds no adapter: train one with notebook 04, or "
                                "name the folder of another")
    answers = {}
    for way in WAYS:  # the first one writes the merged model
        subprocess.run([sys.executable, "-m", "lab.saved", str(folder), "--profile",
                        profile.name, "--way", way, "--set", *changes], check=True)
        answers[way] = json.loads((folder.parent / f"answers-{way}.json").read_text())
    puzzles = _as_shown(load_split(profile.puzzles, "validation").head(PUZZLES))
    rows = summary(answers, puzzles)
    for row in rows:
        print(f"{row['different']:2} of {row['puzzles']} differ, {row['different_early']:2} of "
              f"them in the first {EARLY} characters; {row['right']:2} right: {row['way']}")
    write_json(folder.parent / "saved_answers.json", rows)
    return rows


def summary(answers, puzzles):
    """Return a row a way: how many answers are right, and how many differ from the other ways'.

    Parameters
    ----------
    answers : dict of str to list of str
        The completions of each way in `WAYS`.
    puzzles : list of (list of int, int)
        Numbers and target, in the order of the completions.
    """
    rows = []
    for way, texts in answers.items():
        right = [is_correct(text, *puzzle) for text, puzzle in zip(texts, puzzles, strict=True)]
        different, early = (
            {other: sum(a[:end] != b[:end] for a, b in zip(texts, answers[other], strict=True))
             for other in answers} for end in (None, EARLY))
        rows.append({"way": WAYS[way], "puzzles": len(texts), "right": sum(right),
                     "different": different["unsloth"], "different_early": early["unsloth"],
                     "different_from": different, "different_early_from": early})
    return rows


def main():
    """Read the command line; answer in one way, or compare all."""
    parser = argparse.ArgumentParser(prog="python -m lab.saved", description=__doc__)
    parser.add_argument("folder", type=Path, help="a saved adapter")
    parser.add_argument("--profile", default="smollm2", choices=["smollm2", "a100"])
    parser.add_argument("--way", choices=WAYS, help="only this one")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE",
                        help="settings of the profile that the run had changed")
    options = parser.parse_args()
    try:
        profile = changed(profiles.choose(options.profile), options.set)
    except (ValueError, profiles.NoGPU) as error:
        parser.error(str(error))
    folder = options.folder.resolve()
    if options.way:
        write_json(folder.parent / f"answers-{options.way}.json",
                   answer(options.way, profile, folder))
    else:
        compare(profile, folder, options.set)


if __name__ == "__main__":
    main()
