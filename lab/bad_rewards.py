"""Train under a reward that does not mean what we want, and measure what we want beside it.

``python -m lab.bad_rewards --reward length-bonus --seed 0`` makes one run in
data/bad_rewards/length-bonus-seed0/. The equation reward is computed at every step with weight 0:
it is logged and teaches nothing. (In the controls, equation-64 and equation-144, and in both-64
it has weight 1.)
"""

import argparse
import json
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from helpers import profiles
from helpers.arithmetic import evaluate, written_numbers
from helpers.paths import DATA
from helpers.prompts import completion_text, parse_completion
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import write_json
from lab.record import keep, record

BAD_REWARDS = DATA / "bad_rewards"
LONG = 300  # characters of a completion that earns the whole length bonus
_STATED = re.compile(r"\s*(-?[0-9]{1,12})\s*", re.ASCII)


def length_bonus(completions, **kwargs):
    """Pay for length, as the first example of trl's documentation does: 1.0 from `LONG` on."""
    return [min(1.0, len(completion_text(c)) / LONG) for c in completions]


def any_equation_credit(completions, nums, **kwargs):
    """Pay 1.0 for an equation of the given numbers that holds, whether or not it is the target's.

    The wish behind it: a model that writes true equations of the right numbers is nearly there.
    """
    scores = []
    for completion, numbers in zip(completions, nums, strict=True):
        left, _, right = (parse_completion(completion_text(completion)).equation or "").partition(
            "=")
        stated = _STATED.fullmatch(right)
        used = sorted(written_numbers(left)) == sorted(map(str, numbers))
        try:
            scores.append(float(bool(stated and used) and evaluate(left) == int(stated[1])))
        except ValueError:
            scores.append(0.0)
    return scores


def nearness_credit(completions, target, **kwargs):
    """Pay for an answer that states a number near the target, whatever its left side is.

    Returns
    -------
    list of float
        1 - |stated - target| / target, at least 0; 0.0 for a completion without an answer. The
        number after the ``=`` is believed.
    """
    scores = []
    for completion, goal in zip(completions, target, strict=True):
        equation = parse_completion(completion_text(completion)).equation or ""
        stated = _STATED.fullmatch(equation.rpartition("=")[2]) if "=" in equation else None
        near = 1 - Fraction(abs(int(stated[1]) - goal), max(1, abs(goal))) if stated else 0
        scores.append(float(max(0, near)))
    return scores


@dataclass(frozen=True)
class BadReward:
    """A reward design to be warned of, or its control.

    Attributes
    ----------
    functions : tuple of callable
        What is trained on, each with weight 1.
    limit : int, optional
        Most tokens of a completion in training, instead of the profile's. Evaluation always has
        the profile's.
    """

    functions: tuple
    limit: int | None = None


# Uncut, nearly every completion of the cold start has the whole format reward: nearly no group has
# any spread, and nothing is learned, neither good nor bad. Cut at 64 tokens, a third of them lack
# their answer, and there is something to gain.
DESIGNS = {
    "format-64": BadReward((strict_format_reward_func,), limit=64),
    "both-64": BadReward((strict_format_reward_func, equation_reward_func), limit=64),
    "equation-64": BadReward((equation_reward_func,), limit=64),  # the control at 64 tokens
    "partial-64": BadReward((strict_format_reward_func, any_equation_credit), limit=64),
    "length-bonus": BadReward((strict_format_reward_func, length_bonus)),
    "near-credit": BadReward((strict_format_reward_func, nearness_credit)),
    "equation-144": BadReward((equation_reward_func,)),  # the control of these two
}


def label(name, seed, steps=None, limit=None, part="test"):
    """Return a run's name; a run with other settings than the design's has another name."""
    changes = [f"limit{limit}"] if limit is not None else []
    changes += [f"{steps}steps"] if steps is not None else []
    changes += [part] if part != "test" else []
    return "-".join([name, *changes, f"seed{seed}"])


def run_bad_reward(name, seed=0, steps=None, limit=None, part="test"):
    """Train the short CPU profile under one design; evaluate before and after.

    Parameters
    ----------
    name : str
        A key of `DESIGNS`.
    seed : int
        Seed of training and of sampling.
    steps : int, optional
        Instead of the profile's.
    limit : int, optional
        Instead of the design's.
    part : str
        The split that is evaluated.

    Returns
    -------
    pathlib.Path
        The run's folder: the files of any recorded run. In metrics.jsonl ``reward`` is the proxy
        and ``equation_reward`` the true success, with weight 0 where the design has none for it.
        config.json says ``training_limit`` where training had another limit than the profile's.
    """
    design = DESIGNS[name]
    profile = replace(profiles.CPU_SHORT, steps=steps or profiles.CPU_SHORT.steps)
    cut = limit or design.limit
    silent = () if equation_reward_func in design.functions else (equation_reward_func,)
    functions = design.functions + silent
    weights = [1.0] * len(design.functions) + [0.0] * len(silent)
    changes = {"max_completion_length": cut} if cut else {}
    run = record(profile, seed, part, f"bad-{label(name, seed, steps, limit, part)}", functions,
                 reward_weights=weights, **changes)
    config = json.loads((run / "config.json").read_text())
    if cut:
        config["training_limit"] = cut
    config["rewards"] = {f.__name__: w for f, w in zip(functions, weights, strict=True)}
    command = f"python -m lab.bad_rewards --reward {name} --seed {seed}"
    given = {"steps": steps, "limit": limit, "part": part if part != "test" else None}
    config["command"] = command + "".join(f" --{k} {v}" for k, v in given.items() if v is not None)
    write_json(run / "config.json", config)
    return run


def main(argv=None):
    """Read the command line, make one run and copy its small files to data/bad_rewards/."""
    parser = argparse.ArgumentParser(prog="python -m lab.bad_rewards", description=__doc__)
    parser.add_argument("--reward", required=True, choices=DESIGNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the profile's")
    parser.add_argument("--limit", type=int, help="tokens in training, instead of the design's")
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    options = parser.parse_args(argv)
    if any(given is not None and given <= 0 for given in (options.steps, options.limit)):
        parser.error("--steps and --limit have to be 1 or more")
    chosen = (options.reward, options.seed, options.steps, options.limit, options.part)
    run = run_bad_reward(*chosen)
    keep(run, BAD_REWARDS, label(*chosen))


if __name__ == "__main__":
    main()
