"""Let a trained model answer one puzzle several times: ``python -m lab.playing 2 3 9 21``.

Writes data/playing.json, which notebook 01 opens with. The model is the one that notebook 04
trained under profile cpu and left in runs/cpu/final.
"""

import argparse
import json

import torch

from helpers.models import load_model
from helpers.paths import DATA, RUNS, show
from helpers.profiles import CPU
from helpers.prompts import build_messages
from helpers.rewards import is_correct
from helpers.runs import environment, write_json

FILE = DATA / "playing.json"


def answer(model, tokenizer, nums, target, completions=8, seed=0):
    """Return completions of one puzzle, sampled at temperature 1, as notebook 01 samples them.

    Parameters
    ----------
    model, tokenizer
        From `helpers.models.load_model`, profile cpu.
    nums, target : list of int, int
        The puzzle, its numbers in the order in which they are shown.
    completions, seed : int
        How many; the seed of the sampling.

    Returns
    -------
    list of str
        The completions' texts.
    """
    prompt = tokenizer.apply_chat_template(build_messages(nums, target), tokenize=False,
                                           add_generation_prompt=True)
    tokens = tokenizer([prompt] * completions, return_tensors="pt", add_special_tokens=False,
                       return_token_type_ids=False)
    torch.manual_seed(seed)
    written = model.generate(**tokens, do_sample=True, temperature=1.0, top_k=0,
                             max_new_tokens=CPU.max_completion_length,
                             pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(written[:, tokens["input_ids"].shape[1]:],
                                  skip_special_tokens=True)


def main(argv=None):
    """Read the command line, sample, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m lab.playing", description=__doc__)
    parser.add_argument("number", nargs="+", type=int, help="the numbers, then the target")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    *nums, target = options.number
    trained = RUNS / "cpu" / "final"
    texts = answer(*load_model(CPU, trained), nums, target, seed=options.seed)
    training = json.loads((trained.parent / "config.json").read_text())
    write_json(FILE, {
        "command": f"python -m lab.playing {' '.join(map(str, options.number))}",
        "model": "profile cpu, trained by notebook 04", "trained_with_seed": training["seed"],
        "nums": nums, "target": target, "temperature": 1.0, "seed": options.seed,
        "completions": texts, "right": [is_correct(text, nums, target) for text in texts],
        **environment(on_gpu=False)})
    print(f"{sum(is_correct(text, nums, target) for text in texts)} of {len(texts)} are right; "
          f"written to {show(FILE)}")


if __name__ == "__main__":
    main()
