"""Is the thought used? The same puzzles, answered after their thought, after another, after none.

``python -m lab.thoughts cpu-seed0 cpu-seed1 cpu-seed2`` takes the trained models of these runs, and
what they were trained from, samples completions of held-out puzzles, puts other thoughts in the
place of theirs, and samples the answer again. It also samples the next line of thoughts, with and
without the lines before it. ``--reference`` copies the four files that it leaves for each run in
runs/thoughts/ to data/thoughts/. The same command takes LoRA runs on a GPU.
"""

import argparse
import copy
import random
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import as_shown, check_adapter_used, sample_completions
from helpers.intervals import clustered_mean
from helpers.models import load_model, saved_lora, trained_model
from helpers.paths import DATA, RUNS, show
from helpers.prompts import build_messages, parse_completion
from helpers.rewards import is_correct
from helpers.runs import environment, last_checkpoint, read_config, weights_fault, write_json
from lab.habits import thought_of, tries
from lab.record import keep
from lab.traces import expression

RECORDED = DATA / "thoughts"
ARMS = {
    "own": "as it was sampled: its own thought, its own answer",
    "again": "its own thought, and the answer sampled again: what the others are compared with",
    "all but the last": "its own thought without the last line",
    "first half": "the first half of the lines, rounded down",
    "only the last": "the last line alone",
    "empty": "nothing between the tags of the thought",
    "no tags": "the completion has to begin with <answer>",
    "another puzzle's": "the same model's thought for a puzzle with other numbers",
    "the other model's": "for the same puzzle: before training that of the trained model, after "
                         "training that of the model before",
}
COUNTS = {  # of an arm's completions of one puzzle
    "n": "completions",
    "right": "the equation reward pays",
    "tried": "the thought holds a try",
    "copied": "the answer is the thought's last try: its numbers, operations and result",
    "held": "a try of the thought solves the puzzle",
    "unaided": "right, and no try of the thought solves the puzzle",
}
NEXT = {
    "after its lines": "the thought goes on after all of its own lines but the last",
    "from nothing": "the same puzzles, from an empty thought",
}
LINE_COUNTS = {
    "n": "completions",
    "solved": "the next try solves the puzzle",
    "repeated": "the next try is one of the lines that the thought had",
}
ROOM = 40  # tokens for an answer after a given thought, or for one more line
KEY = ["stage", "arm", "nums", "target"]
FILES = ("config.json", "answers.parquet", "lines.parquet", "examples.parquet")


@dataclass(frozen=True)
class Writer:
    """Who writes: a model, and whether its LoRA adapter counts."""

    model: Any
    adapter: bool = True


def taking_openings(tokenizer):
    """Return a copy of a tokenizer whose prompts end with the last message's text, as it is."""
    found = copy.copy(tokenizer)
    found.chat_template = ("{%- set opening = messages[-1].content %}"
                           "{%- set messages = messages[:-1] -%}"
                           + tokenizer.chat_template.rstrip("\n") + "{{ opening }}")
    return found


def with_thought(thought):
    """Return the beginning of a completion that has a thought, and now has to answer."""
    return f"<think>{thought}</think>\n<answer>"


def write_on(writer, tokenizer, profile, shown, openings, temperature=1.0, seed=0):
    """Sample the rest of completions whose beginning is given, and grade the whole.

    Parameters
    ----------
    writer : Writer
        Who goes on.
    tokenizer, profile, temperature, seed
        As for `helpers.evaluation.sample_completions`; the profile limits what is added.
    shown : pandas.DataFrame
        Columns ``nums`` (in the order shown) and ``target``, one row a completion.
    openings : sequence of str
        How each completion begins; "" for one that is all the model's.

    Returns
    -------
    pandas.DataFrame
        ``nums, target, completion, correct``, the completions with their beginnings.
    """
    given = iter(openings)

    def build(nums, target):
        return [*build_messages(nums, target), {"role": "assistant", "content": next(given)}]

    frame = sample_completions(
        writer.model, taking_openings(tokenizer), profile, shown, temperature, seed, build=build,
        shuffle=False, adapter=writer.adapter)
    texts = [first + rest for first, rest in zip(openings, frame["completion"], strict=True)]
    puzzles = zip(texts, frame["nums"], frame["target"], strict=True)
    return frame[["nums", "target"]].assign(
        completion=texts, correct=[is_correct(*puzzle) for puzzle in puzzles])


def openings_of(arm, own, others, strangers):
    """Return how completions begin in an arm, from three lists of thoughts for the same puzzles.

    Parameters
    ----------
    arm : str
        One of `ARMS` but "own".
    own, others, strangers : list of str
        The model's thoughts, the other model's, and the model's for other puzzles.
    """
    if arm == "no tags":
        return ["<answer>"] * len(own)
    lines = [thought.split("\n") for thought in own]
    given = {
        "again": own,
        "all but the last": ["\n".join(rows[:-1]) for rows in lines],
        "first half": ["\n".join(rows[: len(rows) // 2]) for rows in lines],
        "only the last": [rows[-1] for rows in lines],
        "empty": [""] * len(own),
        "another puzzle's": strangers,
        "the other model's": others,
    }
    return [with_thought(thought) for thought in given[arm]]


def strangers_of(shown, seed=0):
    """Return for each row the place of a random row whose puzzle has other numbers.

    Raises
    ------
    ValueError
        If all puzzles have the same numbers.
    """
    numbers = [tuple(sorted(nums)) for nums in shown["nums"]]
    if len(set(numbers)) < 2:
        raise ValueError("all these puzzles have the same numbers: ask more puzzles, so that a "
                         "thought can be another puzzle's")
    rng, found = random.Random(seed), []
    for own in numbers:
        place = rng.randrange(len(numbers))
        while numbers[place] == own:
            place = rng.randrange(len(numbers))
        found.append(place)
    return found


def ask(writers, tokenizer, profile, puzzles, samples=1, temperature=1.0, seed=0):
    """Sample every arm of two models, for the same puzzles and with the same seed.

    Parameters
    ----------
    writers : dict of str to Writer
        "before" and "after".
    tokenizer, profile, temperature, seed
        As for `helpers.evaluation.sample_completions`.
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``.
    samples : int
        Completions a puzzle and arm.

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        ``stage, arm, nums, target, completion, correct``; and the lines of `next_lines`, with
        ``stage``.
    """
    shown = pd.DataFrame(as_shown(puzzles.loc[puzzles.index.repeat(samples)], seed))
    places = strangers_of(shown, seed)
    own = {stage: write_on(writer, tokenizer, profile, shown, [""] * len(shown), temperature, seed)
           for stage, writer in writers.items()}
    thoughts = {stage: [thought_of(text) for text in frame["completion"]]
                for stage, frame in own.items()}
    brief = replace(profile, max_completion_length=ROOM)
    found, lines = [], []
    for stage, other in (("before", "after"), ("after", "before")):
        mine = thoughts[stage]
        given = mine, thoughts[other], [mine[place] for place in places]
        arms = {"own": own[stage]} | {
            arm: write_on(writers[stage], tokenizer, brief, shown, openings_of(arm, *given),
                          temperature, seed) for arm in ARMS if arm != "own"}
        found += [frame.assign(stage=stage, arm=arm) for arm, frame in arms.items()]
        lines.append(next_lines(writers[stage], tokenizer, brief, shown, mine, temperature,
                                seed).assign(stage=stage))
        print(f"{stage:6} " + ", ".join(f"{arm} {frame['correct'].mean():.1%}"
                                        for arm, frame in arms.items()), flush=True)
    return pd.concat(found, ignore_index=True), pd.concat(lines, ignore_index=True)


def next_lines(writer, tokenizer, profile, shown, thoughts, temperature=1.0, seed=0):
    """Sample one more line, after a model's own lines but the last and from nothing.

    Parameters
    ----------
    writer, tokenizer, profile, shown, temperature, seed
        As for `write_on`.
    thoughts : list of str
        What the model has thought about these puzzles. Those of one line are left out: nothing
        would be there to go on from.

    Returns
    -------
    pandas.DataFrame
        ``arm, nums, target, solved, repeated``: see `NEXT` and `LINE_COUNTS`.
    """
    long = [row for row, thought in enumerate(thoughts) if "\n" in thought]
    before = ["<think>" + thoughts[row].rpartition("\n")[0] + "\n" for row in long]
    rows, found = shown.iloc[long].reset_index(drop=True), []
    for arm, openings in zip(NEXT, (before, ["<think>"] * len(long)), strict=True):
        texts = write_on(writer, tokenizer, profile, rows, openings, temperature, seed)
        for text, had, opening, nums, target in zip(
                texts["completion"], before, openings, rows["nums"], rows["target"], strict=True):
            new = tries(text)[len(tries(opening)) :][:1]  # none where the thought ends here
            found.append({"arm": arm, "nums": nums, "target": target,
                          "solved": any(_solves(one, nums, target) for one in new),
                          "repeated": any(one.steps in [line.steps for line in tries(had)]
                                          for one in new)})
    return pd.DataFrame(found, columns=["arm", "nums", "target", "solved", "repeated"])


def _solves(one, nums, target):
    """Whether a try, written as an answer, solves the puzzle."""
    return is_correct(f"<answer>{expression(one.steps)} = {one.steps[-1][3]}</answer>", nums,
                      target)


def look(text, nums, target):
    """Return what `COUNTS` says of one completion, as a dict of bool, but ``n`` and ``right``."""
    found, equation = tries(text), parse_completion(text).equation
    if not found:
        return {"tried": False, "copied": False, "held": False}
    left, _, right = (equation or "").partition("=")
    steps = found[-1].steps
    return {"tried": True, "copied": (_parts(left) == _parts(expression(steps))
                                      and right.strip() == str(steps[-1][3])),
            "held": any(_solves(one, nums, target) for one in found)}


def _parts(text):
    """Numbers and operators, whatever their order: a + b - c has several ways to be written."""
    return sorted(re.findall(r"[0-9]+|[-+*/]", text))


def looked_at(frame):
    """Return graded completions with the columns ``tried, copied, held, unaided`` of `COUNTS`."""
    seen = pd.DataFrame([look(*row) for row in zip(frame["completion"], frame["nums"],
                                                   frame["target"], strict=True)])
    return frame.assign(**seen, right=frame["correct"], unaided=frame["correct"] & ~seen["held"])


def tally(frame, counts):
    """Count by puzzle.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns `KEY`, and bools.
    counts : sequence of str
        The bools to add up, and ``n``, the rows.

    Returns
    -------
    pandas.DataFrame
        Columns `KEY`, with ``nums`` sorted, and `counts`.
    """
    frame = frame.assign(n=1, nums=[tuple(sorted(nums)) for nums in frame["nums"]])
    return frame.groupby(KEY, sort=False)[list(counts)].sum().astype("uint16").reset_index()


def load(folders, name="answers", counts=COUNTS):
    """Read the recorded counts of several runs into one table with a column ``run``.

    Parameters
    ----------
    folders, name, counts : list of pathlib.Path, str, collection of str
        One folder a run; "answers" with `COUNTS`, or "lines" with `LINE_COUNTS`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no record, one with other columns, or one that was asked something else.
    """
    tables, asked = [], set()
    for folder in folders:
        path = folder / f"{name}.parquet"
        if not path.exists():
            raise FileNotFoundError(f"{show(path)} is missing: make it with `python -m "
                                    "lab.thoughts`")
        table, config = pd.read_parquet(path), read_config(folder)
        if missing := {*KEY, *counts}.difference(table.columns):
            raise ValueError(f"{show(path)} has no column {', '.join(sorted(missing))}: it was "
                             "written by another version; sample the run again")
        asked.add(tuple(config[one] for one in ("part", "puzzles", "samples", "temperature")))
        # not the small integers of the file: their sum would be one, too
        tables.append(table.astype(dict.fromkeys(counts, int)).assign(
            run=folder.name, nums=[tuple(int(n) for n in nums) for nums in table["nums"]]))
    if len(asked) != 1:
        raise ValueError(f"{len(asked)} kinds of records (part, puzzles, samples, temperature: "
                         f"{sorted(asked)}): give one or more of the same kind")
    return pd.concat(tables, ignore_index=True)


def rates(table, count="right"):
    """Return the share of a count by puzzle (rows) and by stage and arm (columns)."""
    total = table.groupby(["nums", "target", "stage", "arm"], sort=False)[[count, "n"]].sum()
    return (total[count] / total["n"]).unstack(["stage", "arm"])


def compare(shares, pairs):
    """Return paired differences between columns of `rates`, in points, with 95 % intervals.

    Parameters
    ----------
    shares : pandas.DataFrame
        From `rates`; all its runs count as one, so the intervals hold for these runs.
    pairs : dict of str to tuple
        By a name for the row: two columns. What is given is the first less the second.

    Returns
    -------
    pandas.DataFrame
        ``difference, low, high``: clustered by the puzzles' numbers.
    """
    found = {}
    for name, (one, other) in pairs.items():
        each = (shares[one] - shares[other]).dropna()  # a puzzle may be in one stage alone
        found[name] = clustered_mean(each, each.index.get_level_values("nums"))
        if not each.any():  # no difference at all: the interval has two sides
            found[name]["low"] = -found[name]["high"]
    table = 100 * pd.DataFrame.from_dict(found, orient="index")
    return table.rename(columns={"rate": "difference"})


def weights_of(text):
    """Return the folder of trained weights that a command names: a run's name, or a path.

    Raises
    ------
    ValueError
        If it holds no whole weights, or lies in no run.
    """
    named = Path(text) if Path(text).exists() else RUNS / text
    final = named / "final"  # of notebook 04; a recorded run has its last checkpoint
    folder = final if final.exists() else last_checkpoint(named) or named
    fault = weights_fault(folder)
    if fault or not (folder.parent / "config.json").exists():
        raise ValueError(f"{text} is no trained run ({fault or 'no config.json beside it'}): give "
                         "a name under runs/, or the path of a final or checkpoint folder")
    return folder


def profile_of(folders):
    """Return the one profile that runs were trained with, its settings as in their config.json.

    Raises
    ------
    ValueError
        If they are of several profiles, or a folder is given twice.
    """
    if len({folder.parent.name for folder in folders}) < len(folders):  # each gets a folder by name
        raise ValueError("two runs have the same name: give each once, under a name of its own")
    names = ("name", "puzzles", "quantisation", "lora_rank", "max_completion_length")
    found = {tuple(read_config(folder.parent)["profile"][name] for name in names)
             for folder in folders}
    if len(found) > 1:
        raise ValueError(f"these runs differ in {', '.join(names)}: give runs of one kind")
    name, *settings = found.pop()
    return replace(profiles.choose(name), **dict(zip(names[1:], settings, strict=True)))


def writers_of(model, profile, folder):
    """Return the two `Writer` of a run, before and after its training.

    Parameters
    ----------
    model, profile, folder
        As for `helpers.models.trained_model`: under LoRA one model is both.
    """
    import torch

    trained = trained_model(model, profile, folder)
    if torch.cuda.is_available() and not profile.needs_gpu:  # faster, for the CPU profile, too
        model.to("cuda"), trained.to("cuda")
    return {"before": Writer(model, adapter=not profile.lora_rank), "after": Writer(trained)}


def examples_of(frame, count=6):
    """Return one completion an arm and stage for some puzzles, raw."""
    puzzles = frame["nums"].map(sorted).map(str) + " " + frame["target"].astype(str)
    some = random.Random(0).sample(sorted(set(puzzles)), count)
    kept = frame.assign(puzzle=puzzles)[puzzles.isin(some)]
    return kept.drop_duplicates(["puzzle", "stage", "arm"]).drop(columns="puzzle")


def main(argv=None):
    """Ask the models, and leave counts, examples and config.json in a folder for each run.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.thoughts", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names under runs/, or paths")
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--puzzles", type=int, help="held-out puzzles; all if not given")
    parser.add_argument("--samples", type=int, default=1, help="a puzzle, arm and model (1)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--reference", action="store_true", help="copy it to data/thoughts/")
    options = parser.parse_args(argv)
    if options.samples < 1 or options.puzzles is not None and options.puzzles < 2:
        parser.error("give --samples 1 or more, --puzzles 2 or more")
    try:
        folders = [weights_of(text) for text in options.runs]
        profile = profile_of(folders)
    except (ValueError, profiles.NoGPU) as error:
        parser.error(str(error))
    puzzles = load_split(profile.puzzles, options.part)
    if options.puzzles is not None and options.puzzles < len(puzzles):
        puzzles = puzzles.sample(options.puzzles, random_state=0).sort_index()
    # the tags around a thought that was cut off, and an answer after it
    longest = profile.max_prompt_length + profile.max_completion_length + 2 * ROOM
    model, tokenizer = load_model(profile, lora=saved_lora(folders[0]), max_seq_length=longest)
    words = sys.argv[1:] if argv is None else argv
    for weights in folders:
        run, start = weights.parent, time.monotonic()
        config = read_config(run)
        writers = writers_of(model, profile, weights)
        check_adapter_used(writers["after"].model, tokenizer, profile, puzzles)
        answers, lines = ask(writers, tokenizer, profile, puzzles, options.samples,
                             options.temperature, config["seed"])
        folder = RUNS / "thoughts" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"answers": tally(looked_at(answers), COUNTS), "lines": tally(lines, LINE_COUNTS),
                  "examples": examples_of(answers, min(6, len(puzzles)))}
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
        write_json(folder / "config.json", {
            "command": " ".join(["python -m lab.thoughts", *words]), "part": options.part,
            "puzzles": len(puzzles), "samples": options.samples,
            "temperature": options.temperature, "seconds": round(time.monotonic() - start, 1),
            **environment(profile.needs_gpu or None),
            "run": {"weights": weights.name, **{name: config.get(name) for name in (
                "profile", "seed", "date", "hardware", "training_seconds")}}})
        print(f"{run.name}: {len(answers):,} completions, {len(lines):,} lines: {show(folder)}")
        if options.reference:
            keep(folder, RECORDED, files=FILES)


if __name__ == "__main__":
    main()
