"""Train in several processes, one a GPU: the same lesson with trl, peft and accelerate alone.

``accelerate launch --num_processes 4 -m lab.several_gpus --profile smollm2 --seed 0`` makes the
run that ``lab.record`` makes on one GPU: the same data, rewards, batch, folder and metrics. Each
process has a whole copy of the model and, where the profile samples with vLLM, an engine of its
own; LoRA lies on 16-bit weights. One process is the same stack. For several processes without a
GPU (profile cpu) add ``--multi_gpu`` all the same. See docs/several_gpus.md.
"""

import argparse
import functools
import logging
import os
import statistics
import sys
import time
import traceback
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import as_shown, sample_completions
from helpers.models import base_folder, lora_settings, starting_point, vllm_share
from helpers.paths import ROOT, RUNS, show
from helpers.runs import append_row, keep_rows_until, open_run, read_config, read_rows, write_json
from lab import cells
from lab.benchmark import settled_time, time_parts
from lab.record import REWARDS, changed, finish, make_config, make_model
from lab.time_limit import StopWhenAsked, TimeLimit

PARTS = "parts.jsonl"  # in a run's folder: what each of its steps took
FROM_LAUNCHER = {"rank": "RANK", "local_rank": "LOCAL_RANK", "size": "WORLD_SIZE",
                 "local_size": "LOCAL_WORLD_SIZE"}


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many: on all hosts, and on this one."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def from_environment(cls, environment=os.environ):
        """Return what the launcher wrote into the environment; without one, one process."""
        return cls(**{name: int(environment[theirs]) for name, theirs in FROM_LAUNCHER.items()
                      if theirs in environment})

    first = property(lambda self: self.rank == 0)


def cut(profile, size, scale=False):
    """Return a profile whose batch is cut for so many processes.

    Parameters
    ----------
    profile, size : helpers.profiles.Profile, int
        What is trained, by how many.
    scale : bool
        The batch becomes `size` times as large: more prompts a step. Without it a step is the
        profile's, and each process takes fewer passes or, if need be, smaller ones.

    Returns
    -------
    helpers.profiles.Profile
        Its ``accumulation_steps`` are the passes of all processes. The weights are in 16 bits.

    Raises
    ------
    ValueError
        If the completions of a step do not divide by the processes.
    """
    prompts = profile.prompts_per_step * (size if scale else 1)
    whole = prompts * profile.group_size
    if whole % size:
        possible = [n for n in range(1, 2 * size) if whole % n == 0]
        raise ValueError(f"the {whole} completions of a step do not divide by {size} processes: "
                         f"start {' or '.join(map(str, possible))}, or give --scale-batch")
    each = whole // size
    micro = max(n for n in range(1, min(each, profile.micro_batch) + 1) if each % n == 0)
    return replace(profile, prompts_per_step=prompts, micro_batch=micro, quantisation=None)


def check_cards(world, cards):
    """Raise ValueError if more processes are started on this host than it has GPUs."""
    if world.local_size > cards:
        raise ValueError(f"{world.local_size} processes are started and torch finds {cards} "
                         f"GPU(s) here: start at most {cards}, one a GPU")


def decide(function):
    """Call a function in the first process and return in all what it gave.

    Its error is raised in the first process; the others end without a word.
    """
    first, answer = PartialState().is_main_process, [None, True]
    try:
        if first:
            answer = [function(), False]
    finally:  # an error, too, has to be known in all
        broadcast_object_list(answer)
    if answer[1]:
        raise SystemExit(1)
    return answer[0]


@functools.cache  # once
def _know_the_cpu_by_number():
    # of several processes accelerate calls the CPU cpu:0, which torch.load does not know
    torch.serialization.register_package(
        50, lambda stored: None, lambda stored, place: stored if place == "cpu:0" else None)


def make_trainer(profile, run, seed, world, callbacks=(), **changes):
    """Return a GRPOTrainer of trl alone for one of several processes.

    Parameters
    ----------
    profile, run, seed : helpers.profiles.Profile, pathlib.Path, int
        The profile from `cut`; as for `lab.record.make_config`.
    world : World
        This process; its local rank is its GPU.
    callbacks : sequence of transformers.TrainerCallback
        Each has to ask which process it is in.
    **changes
        Arguments of GRPOConfig that replace the profile's.

    Raises
    ------
    RuntimeError
        If the step would not be the profile's batch.
    """
    from helpers.training import prompt_dataset

    options = {"gradient_accumulation_steps": profile.accumulation_steps // world.size,
               "ddp_find_unused_parameters": False}
    if profile.needs_gpu:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = base_folder(profile)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16,
                                                     device_map={"": world.local_rank})
        tokenizer = AutoTokenizer.from_pretrained(source)
        options |= {"gradient_checkpointing": profile.gradient_checkpointing,
                    "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    else:
        model, tokenizer = make_model(replace(profile, lora_rank=0), seed)
        _know_the_cpu_by_number()
    if profile.uses_vllm:
        options |= {"vllm_mode": "colocate", "vllm_tensor_parallel_size": 1,
                    "vllm_gpu_memory_utilization": vllm_share(profile),
                    "vllm_max_model_length": (profile.max_prompt_length
                                              + profile.max_completion_length)}
    config = make_config(profile, run, seed, **options | changes)
    if config.generation_batch_size != profile.completions_per_step:
        raise RuntimeError(f"a step would sample {config.generation_batch_size} completions, not "
                           f"{profile.completions_per_step}")
    lora = None
    if profile.lora_rank:
        from peft import LoraConfig

        lora = LoraConfig(**lora_settings(profile.lora_rank), task_type="CAUSAL_LM")
    torch.manual_seed(seed)  # of a new adapter's weights: the same in all processes
    puzzles = load_split(profile.puzzles, "train").head(20_000)  # as notebook 04
    trainer = cells.run("04", "trainer", {"GRPOTrainer": {"peft_config": lora}}, model=model,
                        tokenizer=tokenizer, config=config, reward_funcs=list(REWARDS),
                        train_set=prompt_dataset(puzzles, seed),
                        callbacks=list(callbacks))["trainer"]
    if lora and profile.uses_vllm:
        engine = trainer.vllm_generation
        engine.sync_weights = restoring(trainer.model, engine.sync_weights)
    return trainer


def restoring(model, function):
    """Return a function after which the weights under a LoRA adapter are what they were before.

    To give vLLM its weights trl adds the adapter to them and takes it away again: in 16 bits both
    are rounded, so that they would drift away from those that the adapter is saved for.

    Parameters
    ----------
    model : torch.nn.Module
        Has LoRA layers of peft.
    function : callable
        What changes the weights; it is called with what the returned function gets.
    """
    @functools.wraps(function)
    def restored(*arguments, **options):
        # copied in each call: no second copy is held in between, and sharded weights may move
        base = [layer.base_layer.weight for layer in model.modules()
                if hasattr(layer, "base_layer") and hasattr(layer, "lora_A")]
        clean = [weight.detach().clone() for weight in base]
        result = function(*arguments, **options)
        with torch.no_grad():
            for weight, kept in zip(base, clean, strict=True):
                weight.copy_(kept)
        return result

    return restored


class Engine:
    """trl's colocated vLLM as `helpers.evaluation.sample_completions` asks for it."""

    def __init__(self, trainer):
        self.vllm = trainer.vllm_generation

    def load_lora(self, path, load_tensors):
        """Give vLLM the weights as they are now, with the adapter merged into them."""
        self.vllm.sync_weights()

    def fast_generate(self, prompts, settings, lora_request, use_tqdm):
        """Sample for tokenised prompts, in this process alone."""
        return self.vllm.llm.generate(prompts, sampling_params=settings, use_tqdm=use_tqdm)


def answers(trainer, profile, puzzles, stage, temperatures, seed, world):
    """Let each process answer its part of the held-out puzzles, and return all graded rows.

    Parameters
    ----------
    trainer, profile, puzzles, stage, temperatures, seed
        As for `helpers.evaluation.evaluate`, with a trainer in place of its model. With one
        process and without vLLM the rows are those of `evaluate`.
    world : World
        Which part is this process's: every `world.size`-th puzzle.

    Returns
    -------
    pandas.DataFrame
        In every process the rows of all, in the order of the puzzles.
    """
    shown = pd.DataFrame(as_shown(puzzles, seed))  # shuffled before they are shared out
    mine = shown.iloc[world.rank::world.size]
    model = Engine(trainer) if profile.uses_vllm else trainer.model
    rows = []
    for temperature in temperatures:
        if profile.uses_vllm:  # trl's engine draws from torch's state, whatever seed is given
            torch.manual_seed(seed + 1000 * world.rank + round(1000 * temperature))
        frame = sample_completions(model, trainer.processing_class, profile, mine, temperature,
                                   seed + 1000 * world.rank, shuffle=False)
        rows += frame.assign(sample=seed, puzzle=mine.index).to_dict("records")
    frame = pd.DataFrame(gather_object(rows))
    frame["turn"] = frame["temperature"].map({t: i for i, t in enumerate(temperatures)})
    frame = frame.sort_values(["turn", "puzzle"], ignore_index=True)
    frame.insert(0, "stage", stage)
    return frame.drop(columns=["turn", "puzzle"])


class Parts(TrainerCallback):
    """Write what each step took, in each process, to parts.jsonl; the first process writes.

    A row has ``seconds`` of the step, ``completion_tokens`` and ``prompt_tokens`` of all processes,
    and by process the seconds of ``sampling`` and of ``old_logps``, the log-probs of what was
    sampled. What a process waits for the others is in neither.

    Parameters
    ----------
    run : pathlib.Path
        The run's folder.
    """

    def __init__(self, run):
        self.path, self.now = run / PARTS, None

    def watch(self, trainer):
        """Time two methods of a trainer; nothing that they compute changes."""
        time_parts(trainer, self._note)

    def _note(self, part, seconds, result):
        if self.now is None:
            return
        self.now[part] += seconds
        if part == "sampling":
            self.now["prompt_tokens"] += sum(map(len, result[0]))
            self.now["completion_tokens"] += sum(map(len, result[1]))

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the rows of steps that come again."""
        if state.is_world_process_zero:
            keep_rows_until(self.path, state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.start = settled_time()
        self.now = dict.fromkeys(
            ("sampling", "old_logps", "prompt_tokens", "completion_tokens"), 0)

    def on_step_end(self, args, state, control, **kwargs):
        """Collect what all processes have measured, and write it."""
        seconds, mine, self.now = settled_time() - self.start, self.now, None
        every = gather_object([mine])
        if state.is_world_process_zero:
            row = {"step": state.global_step, "seconds": round(seconds, 3)}
            for name in ("sampling", "old_logps"):
                row[name] = [round(one[name], 3) for one in every]
            for name in ("prompt_tokens", "completion_tokens"):
                row[name] = sum(one[name] for one in every)
            append_row(self.path, row)
            print(f"step {state.global_step} of {state.max_steps}: {seconds:.1f} s", flush=True)


def summary(rows, warm_up):
    """Return medians over the steps of parts.jsonl after the warm-up.

    Parameters
    ----------
    rows, warm_up : list of dict, int
        The rows, and how many at the beginning don't count.

    Returns
    -------
    dict
        Seconds of a step and of its parts (of the slowest process in each step; ``rest`` is what
        remains: rewards, loss, gradient, optimiser, waiting), tokens and completions' rates.

    Raises
    ------
    ValueError
        If no step is left.
    """
    kept = rows[warm_up:]
    if not kept:
        raise ValueError(f"{len(rows)} steps and {warm_up} of them to warm up leave none to count: "
                         "give more --steps")

    def median(values):
        return round(statistics.median(values), 3)

    slowest = {name: [max(row[name]) for row in kept] for name in ("sampling", "old_logps")}
    rest = [row["seconds"] - a - b for row, a, b in zip(
        kept, slowest["sampling"], slowest["old_logps"], strict=True)]
    return {"steps_counted": len(kept), "first_step_seconds": rows[0]["seconds"],
            "step_seconds": median(row["seconds"] for row in kept),
            "slowest_step_seconds": max(row["seconds"] for row in kept),
            **{f"{name}_seconds": median(values) for name, values in slowest.items()},
            "rest_seconds": median(rest),
            "waiting_seconds": median(max(row["sampling"]) - min(row["sampling"]) for row in kept),
            "completion_tokens": median(row["completion_tokens"] for row in kept),
            "completion_tokens_per_s": median(row["completion_tokens"] / row["seconds"]
                                              for row in kept)}


def record(profile, seed, world, name, part="test", minutes=None, temperatures=(1.0,),
           evaluated=True, **changes):
    """Evaluate, train, evaluate again, in all processes; the first one leaves the run's folder.

    Parameters
    ----------
    profile, seed, world : helpers.profiles.Profile, int, World
        The profile from `cut`.
    name : str
        The folder's name under runs/.
    part, minutes, temperatures
        As for `lab.record.record`.
    evaluated : bool
        False trains only, for measurements of time.
    **changes
        Arguments of GRPOConfig that replace the profile's.

    Returns
    -------
    bool
        Whether the training came to its end; else the same call goes on.
    """
    from helpers.training import MetricsLog, train_or_resume

    run, started = RUNS / name, time.monotonic()
    log, parts, stop = MetricsLog(run), Parts(run), StopWhenAsked(run)
    limit = [TimeLimit(log, minutes)] if minutes else []
    trainer = make_trainer(profile, run, seed, world, [log, parts, *limit, stop], **changes)
    parts.watch(trainer)
    ready = time.monotonic() - started
    held_out, frames, spent = load_split(profile.puzzles, part), [], 0.0

    def look(stage):
        start = time.monotonic()
        if evaluated:
            frames.append(answers(trainer, profile, held_out, stage, temperatures, seed, world))
        return time.monotonic() - start

    spent += look("before")
    with stop.listening():
        train_or_resume(trainer, run, minutes, decide=decide)
    if stop.stopped:
        return False
    spent += look("after")
    _name_the_model(trainer, profile)
    trainer.save_model(str(run / "final"))  # in all processes; the first one writes
    if world.first:
        trainer.processing_class.save_pretrained(run / "final")
        more = {"stack": "trl", "processes": world.size, "ready_seconds": round(ready, 1)}
        if evaluated:
            finish(run, profile, part, pd.concat(frames, ignore_index=True), spent,
                   f"accelerate launch --num_processes {world.size} -m lab.several_gpus", **more)
        else:
            write_json(run / "config.json", read_config(run) | more)
    return True


def _name_the_model(trainer, profile):
    if profile.lora_rank and starting_point(profile) is None:  # a name, not this machine's folder
        adapter = trainer.model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = profile.model, profile.revision


def scaling(run, world, warm_up):
    """Return what a run tells about its speed, as a record of data/scaling/ holds it.

    Parameters
    ----------
    run, world, warm_up : pathlib.Path, World, int
        The run's folder; the processes; the steps at its beginning that don't count.
    """
    config = read_config(run)
    memory = {}
    if torch.cuda.is_available():
        memory = {"torch_peak_mib": torch.cuda.max_memory_allocated() >> 20}
    rows = read_rows(run / PARTS)
    return {"name": run.name, "world": world.size, "stack": "trl",
            "command": f"accelerate launch --num_processes {world.size} -m lab.several_gpus "
                       + " ".join(sys.argv[1:]),
            "model": os.path.basename(config["profile"]["model"]),
            "completions_per_step": (config["profile"]["group_size"]
                                     * config["profile"]["prompts_per_step"]),
            **{key: config[key] for key in ("profile", "seed", "ready_seconds", "versions",
                                            "hardware", "date")},
            **summary(rows, warm_up), **memory, "steps": rows}


def describe(profile, world, scale):
    """Return the line on who takes which part of a step."""
    passes = profile.accumulation_steps // world.size
    return (f"{world.size} process(es), trl alone: {profile.completions_per_step} completions a "
            f"step{' (grown with the processes)' * (scale and world.size > 1)} = {world.size} x "
            f"{passes} pass(es) of {profile.micro_batch}")


def read(argv, world):
    """Return the options and the profile of a command line; exit with one line if they are wrong.

    Parameters
    ----------
    argv : sequence of str, optional
        By default those of this process.
    world : World
        Only its first process says what is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="accelerate launch --num_processes N -m lab.several_gpus", description=__doc__)
    parser.add_argument("--profile", default="smollm2", choices=profiles.PROFILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale-batch", action="store_true",
                        help="a step N times as large, in place of the profile's")
    parser.add_argument("--steps", type=int, help="instead of the profile's")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE",
                        help="other settings of the profile to change, e.g. group_size=2")
    parser.add_argument("--minutes", type=float, help="stop training after so many minutes")
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--no-evaluation", action="store_true", help="train only")
    parser.add_argument("--time", type=int, metavar="WARM_UP",
                        help="write scaling.json into the run's folder: medians without so many "
                        "steps at the beginning")
    parser.add_argument("--name", help="the folder under runs/; <profile>-trl-seed<k> if not given")
    with nullcontext() if world.first else redirect_stderr(open(os.devnull, "w")):
        options = parser.parse_args(argv)
        try:
            if profiles.PROFILES[options.profile].needs_gpu and torch.cuda.is_available():
                check_cards(world, torch.cuda.device_count())
                torch.cuda.set_device(world.local_rank)
            given = [each for each in (options.steps, options.minutes) if each is not None]
            if min(given, default=1) <= 0:
                raise ValueError("--steps and --minutes have to be positive")
            profile = changed(profiles.choose(options.profile), options.set)
            if profile.standby:
                raise ValueError("this GPU has too little memory for lab.several_gpus, which has "
                                 "no standby of vLLM: use -m lab.record")
            profile = replace(profile, steps=options.steps or profile.steps)
            profile = cut(profile, world.size, options.scale_batch)
            if options.time is not None and not 0 <= options.time < profile.steps:
                raise ValueError(f"--time {options.time} leaves none of {profile.steps} steps")
        except (ValueError, profiles.NoGPU) as error:
            parser.exit(2, f"{error}\n")
    return options, profile


def ours(error):
    """Return whether an error was raised by this repository, which then says what to do."""
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return raised.parent in {ROOT / "helpers", ROOT / "lab"}


def main(argv=None):
    """Read the command line and record one run, in one of its processes."""
    world = World.from_environment()
    if not world.first:
        sys.stdout = open(os.devnull, "w")
        logging.disable(logging.WARNING)
    options, profile = read(argv, world)
    if profile.needs_gpu and world.size == 1:  # vLLM in this process asks torch.distributed
        alone = zip(FROM_LAUNCHER.values(), (0, 0, 1, 1), strict=True)
        for name, value in {**dict(alone), "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": 20_000 + os.getpid() % 20_000}.items():
            os.environ.setdefault(name, str(value))
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    name = options.name or (f"{profile.name}-trl{f'-x{world.size}' * options.scale_batch}"
                            f"-seed{options.seed}")
    print(describe(profile, world, options.scale_batch), flush=True)
    try:
        if world.first:
            open_run(profile, options.seed, name)
        complete = record(profile, options.seed, world, name, options.part, options.minutes,
                          options.temperatures, not options.no_evaluation)
        if complete and options.time is not None and world.first:
            write_json(RUNS / name / "scaling.json", scaling(RUNS / name, world, options.time))
    except (RuntimeError, ValueError, OSError) as error:
        if not ours(error):
            raise
        sys.exit(str(error) if world.local_rank == 0 else 1)
    if complete and world.first:
        print(f"recorded in {show(RUNS / name)}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
