"""Make a run without a notebook: ``python -m lab.record --profile cpu --seed 0``.

With ``--reference`` its three small files are copied to data/reference_runs/<profile>-seed<k>/.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import replace

import pandas as pd

from helpers import profiles
from helpers.dataset import SHIPPED, load_split
from helpers.evaluation import TEMPERATURES, evaluate, success
from helpers.models import starting_point
from helpers.paths import RUNS, show
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import (
    FILES,
    REFERENCE_RUNS,
    open_run,
    read_config,
    read_rows,
    replace_text,
    write_json,
)
from lab import cells
from lab.useful import tries_reward

REWARDS = (strict_format_reward_func, equation_reward_func)


def changed(profile, items):
    """Return the profile with settings given as text, as a command line has them.

    Parameters
    ----------
    profile : Profile
        What is changed.
    items : sequence of str
        Each ``setting=value`` with the value as JSON, e.g. ``micro_batch=16``.

    Raises
    ------
    ValueError
        If there is no such setting, or the value is no JSON.
    """
    changes = {}
    for item in items:
        name, _, value = item.partition("=")
        if name not in profiles.settings(profile):
            raise ValueError(f"a profile has no setting {name!r}; it has: "
                             f"{', '.join(profiles.settings(profile))}")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{item!r}: write setting=value with the value as JSON, e.g. "
                             "micro_batch=16 or model='\"name\"'") from error
    return replace(profile, **changes)


def keep(run, shelf, name=None, files=FILES):
    """Copy a recorded run's small files to ``shelf/<name>`` and say so.

    Parameters
    ----------
    run, shelf : pathlib.Path
        The run's folder, and a folder of recorded runs under data/.
    name : str, optional
        The copy's name; the run's own if not given.
    files : sequence of str
        What is copied.
    """
    target = shelf / (name or run.name)
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(run / file, target / file)
    print(f"copied to {show(target)}")


def make_model(profile, seed=0, **load):
    """Return the model and tokenizer that notebook 04's cells make.

    Parameters
    ----------
    profile, seed : helpers.profiles.Profile, int
        What is trained; the seed of a new adapter's weights.
    **load
        Arguments of ``from_pretrained`` that replace those of the cells.
    """
    made = cells.run("04", "model", {"from_pretrained": load}, profile=profile, seed=seed)
    return made["model"], made["tokenizer"]


def make_config(profile, run, seed=0, **changes):
    """Return the GRPOConfig that notebook 04's cells make.

    Parameters
    ----------
    profile, run, seed : helpers.profiles.Profile, pathlib.Path, int
        The settings, the checkpoints' folder, the seed of the prompts' order and of sampling.
    **changes
        Arguments of GRPOConfig that replace those of the cells.
    """
    return cells.run("04", "config", {"GRPOConfig": changes}, profile=profile, run=run, seed=seed,
                     tracker="none")["config"]


def make_trainer(model, tokenizer, config, reward_funcs, train_set, callbacks=()):
    """Return the GRPOTrainer that notebook 04's cells make of these parts."""
    return cells.run("04", "trainer", model=model, tokenizer=tokenizer, config=config,
                     reward_funcs=list(reward_funcs), train_set=train_set,
                     callbacks=list(callbacks))["trainer"]


def record(profile, seed, part="test", name=None, reward_funcs=REWARDS, minutes=None,
           temperatures=TEMPERATURES, watch=0, every=10, easy_first=False, merge=False,
           **changes):
    """Evaluate, train, evaluate again, and leave everything in the run's folder.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What is run.
    seed : int
        Seed of training and of sampling.
    part : str
        The split that is evaluated: "test" for a result, "validation" for a choice.
    name : str, optional
        The folder's name under runs/.
    reward_funcs : sequence of callable
        The rewards; by default the two of this series.
    minutes : float, optional
        Training stops after so many minutes if the profile's steps are not done by then.
    temperatures : sequence of float
        At which the held-out puzzles are answered, before and after.
    watch : int
        So many validation puzzles are answered during training, too, once at temperature 1, for
        the curve that is left in curve.jsonl; their time counts as training time.
    every : int
        Steps between two such looks.
    easy_first : bool
        A curriculum: see `by_difficulty`.
    merge : bool
        Sample in training from merged 16-bit weights: see `lab.merging`.
    **changes
        Arguments of GRPOConfig that replace the profile's.

    Returns
    -------
    pathlib.Path
        The run's folder.
    """
    run = open_run(profile, seed, name or f"{profile.name}-seed{seed}")
    model, tokenizer = make_model(profile, seed)  # Unsloth's patches come before trl
    if merge:
        from lab.merging import merge_while_sampling

        merge_while_sampling(model)
    from helpers.training import MetricsLog, SampleLog, prompt_dataset, train_or_resume
    from lab.time_limit import TimeLimit

    held_out = load_split(profile.puzzles, part)
    log = MetricsLog(run)
    callbacks = [log]
    if watch:
        watched = load_split(profile.puzzles, "validation").sample(watch, random_state=0)
        callbacks.append(SampleLog(run, tokenizer, profile, watched, every))
    if minutes:
        callbacks.append(TimeLimit(log, minutes))
    puzzles = load_split(profile.puzzles, "train").head(20_000)  # as notebook 04
    if easy_first:
        puzzles = by_difficulty(puzzles, profile.steps * profile.prompts_per_step, seed)
        changes["shuffle_dataset"] = False
    start = time.monotonic()
    before = evaluate(model, tokenizer, profile, held_out, "before", temperatures, seed)
    spent = time.monotonic() - start
    trainer = make_trainer(
        model, tokenizer, make_config(profile, run, seed, **changes), reward_funcs,
        prompt_dataset(puzzles, seed), callbacks)
    train_or_resume(trainer, run, minutes)
    start = time.monotonic()
    after = evaluate(model, tokenizer, profile, held_out, "after", temperatures, seed)
    spent += time.monotonic() - start
    finish(run, profile, part, pd.concat([before, after], ignore_index=True), spent,
           "python -m lab.record")
    if watch:
        replace_text(run / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in curve(run)))
    return run


def finish(run, profile, part, frame, seconds, command, **more):
    """Write a trained run's evaluation, and what config.json says about it; print the success.

    Parameters
    ----------
    run, profile, part : pathlib.Path, helpers.profiles.Profile, str
        As in `record`.
    frame, seconds : pandas.DataFrame, float
        The graded answers before and after training, and the time that they took.
    command : str
        What was called; this process's arguments are added.
    **more
        Further entries of config.json.
    """
    partial = run / "evaluation.parquet.partial"
    frame.to_parquet(partial, compression="zstd", index=False)
    partial.replace(run / "evaluation.parquet")
    config = read_config(run)
    config["evaluated_on"] = (f"data/puzzles/{profile.puzzles}-{part}.parquet"
                              if profile.puzzles in SHIPPED else f"{profile.puzzles}, part {part}")
    config["training_seconds"] = read_rows(run / "metrics.jsonl")[-1]["seconds"]
    config["evaluation_seconds"] = round(seconds, 1)
    config["wall_seconds"] = round(config["training_seconds"] + seconds, 1)
    begin = starting_point(profile)
    if begin and (begin / "cold_start.json").exists():
        config["cold_start"] = json.loads((begin / "cold_start.json").read_text())
    config["command"] = f"{command} " + " ".join(sys.argv[1:])
    write_json(run / "config.json", config | more)
    print(success(frame).round(3).to_string())


def by_difficulty(puzzles, n, seed=0):
    """Draw n puzzles and return them from the easiest to the hardest.

    Easy is a puzzle that a random expression solves often: many solutions, few expressions.
    """
    expressions = {3: 192, 4: 7680}  # orders x operators x shapes: 6 * 16 * 2, 24 * 64 * 5
    drawn = puzzles.sample(n, random_state=seed)
    share = drawn["n_solutions"] / drawn["nums"].map(len).map(expressions)
    return drawn.loc[share.sort_values(ascending=False, kind="stable").index]


def overlong(profile, tokens, weight=1.0):
    """Return the rewards with DAPO's soft overlong punishment, and their weights.

    Parameters
    ----------
    profile, tokens : helpers.profiles.Profile, int
        The punishment falls from 0 to -1 over the last so many tokens before the profile's limit.
    weight : float
        Of the punishment, beside 1 for the equation reward.
    """
    def overlong_punishment(completion_ids, **kwargs):
        # trl's own, imported late: Unsloth has to be imported before trl
        from trl.rewards import get_soft_overlong_punishment

        return get_soft_overlong_punishment(profile.sampled_length, tokens)(
            completion_ids=completion_ids, **kwargs)

    return (*REWARDS, overlong_punishment), {"reward_weights": [profile.format_weight, 1.0, weight]}


def curve(run):
    """Return a row for every look that training took at the watched puzzles.

    Parameters
    ----------
    run : pathlib.Path
        The run's folder, with metrics.jsonl and samples.jsonl.

    Returns
    -------
    list of dict
        ``step``, ``seconds`` of training until then, and ``right`` of ``n`` puzzles.
    """
    seconds = {row["step"]: row["seconds"] for row in read_rows(run / "metrics.jsonl")}
    looks = pd.DataFrame(read_rows(run / "samples.jsonl")).groupby("step")["correct"]
    return [{"step": int(step), "seconds": seconds.get(step, 0.0), "right": int(right.sum()),
             "n": len(right)} for step, right in looks]


def main():
    """Read the command line and record one run."""
    parser = argparse.ArgumentParser(prog="python -m lab.record", description=__doc__)
    parser.add_argument("--profile", default="cpu", choices=profiles.PROFILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--learning-rate", type=float, help="instead of the profile's")
    parser.add_argument("--steps", type=int, help="instead of the profile's")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE",
                        help="other settings of the profile to change, e.g. group_size=2")
    parser.add_argument("--overlong", type=int, metavar="TOKENS", help="punish the last so many "
                        "tokens before the limit, up to -1 (DAPO's soft overlong punishment)")
    parser.add_argument("--overlong-weight", type=float, default=1.0,
                        help="of that punishment, beside 1 for the equation reward")
    parser.add_argument("--easy-first", action="store_true",
                        help="a curriculum: easy puzzles first")
    parser.add_argument("--scale-rewards", choices=["group", "batch", "none"], default="group",
                        help="whose standard deviation the advantages are divided by")
    parser.add_argument("--merge", action="store_true",
                        help="sample from merged 16-bit weights (lab.merging)")
    parser.add_argument("--tries", type=float, nargs=2, metavar=("WEIGHT", "MOST"), help="so much "
                        "of the reward pays for useful tries where a puzzle is not solved, in full "
                        "from MOST tries on: see lab.useful")
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--minutes", type=float, help="stop training after so many minutes")
    parser.add_argument("--watch", type=int, default=0, metavar="PUZZLES",
                        help="answer so many validation puzzles during training, too")
    parser.add_argument("--every", type=int, default=10, help="steps between two such looks")
    parser.add_argument("--name", help="the folder under runs/; <profile>-seed<k> if not given")
    parser.add_argument("--reference", action="store_true", help="copy it to data/reference_runs/")
    options = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("this trains in one process: for several say -m lab.several_gpus")
    changes = {"learning_rate": options.learning_rate, "steps": options.steps}
    try:
        profile = profiles.choose(options.profile)
        profile = replace(profile, **{k: v for k, v in changes.items() if v is not None})
        profile = changed(profile, options.set)
    except (ValueError, profiles.NoGPU) as error:
        parser.error(str(error))
    weight, most = options.tries or (0.5, 1)
    if options.overlong and options.tries or not (0 <= weight <= 1 and most >= 1):
        parser.error("--tries takes a WEIGHT from 0 to 1 and MOST from 1 on, without --overlong")
    profile.describe()
    rewards, config = (overlong(profile, options.overlong, options.overlong_weight)
                       if options.overlong else (REWARDS, {}))
    if options.tries:
        rewards = (*REWARDS, tries_reward(most))
        config["reward_weights"] = [profile.format_weight, 1 - weight, weight]
    config["scale_rewards"] = options.scale_rewards
    run = record(profile, options.seed, options.part, options.name, rewards, options.minutes,
                 options.temperatures, options.watch, options.every, options.easy_first,
                 options.merge, **config)
    print(f"recorded in {show(RUNS / run.name)}")
    if options.reference:
        keep(run, REFERENCE_RUNS, files=FILES + (("curve.jsonl",) if options.watch else ()))


if __name__ == "__main__":
    main()
