"""GRPO training around trl's own trainer: its settings, its log on disk, its resumption."""

import errno
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from helpers.evaluation import as_shown, sample_completions
from helpers.paths import show
from helpers.profiles import half_precision
from helpers.progress import Progress
from helpers.prompts import build_messages, check_template
from helpers.runs import (
    append_row,
    checkpoint_fault,
    checkpoints,
    free_name,
    held,
    keep_rows_until,
    last_checkpoint,
    read_config,
    read_rows,
    step_of,
    write_json,
)
from set_up import PROJECT

METRICS = {  # trl's name of a metric -> ours
    "reward": "reward", "rewards/equation_reward_func/mean": "equation_reward",
    "rewards/strict_format_reward_func/mean": "format_reward", "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_spread_groups", "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated", "entropy": "entropy",
    "clip_ratio/region_mean": "clip_ratio",
    "sampling/importance_sampling_ratio/mean": "vllm_ratio_mean", "grad_norm": "grad_norm",
    "loss": "loss", "learning_rate": "learning_rate", "step_time": "step_seconds",
}

SETTINGS = (  # arguments of GRPOConfig that stand in notebook 04, and that another run may change
    "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps",
    "use_vllm", "max_completion_length", "temperature", "reward_weights", "scale_rewards",
    "mask_truncated_completions", "loss_type", "beta", "epsilon", "epsilon_high", "num_iterations",
    "learning_rate", "warmup_steps", "seed")
SETTINGS_FILE = "training_settings.json"  # in a checkpoint
ANOTHER = ('Name another folder, open_run(profile, seed, name="try-1"), and run all cells from '
           "there on")
UNWRITABLE = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, getattr(errno, "EDQUOT", None)}
CUT = {"per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "use_vllm"}


def prompt_dataset(puzzles, seed=0):
    """Return the puzzles as trl wants them, each with its numbers in a random order.

    Parameters
    ----------
    puzzles, seed : pandas.DataFrame, int
        Columns ``nums`` and ``target``; the seed of the order of the numbers.

    Returns
    -------
    datasets.Dataset
        Columns ``prompt`` (as chat messages) and, for the rewards, ``nums`` and ``target``.
    """
    from datasets import Dataset

    return Dataset.from_list([{"prompt": build_messages(**puzzle)} | puzzle
                              for puzzle in as_shown(puzzles, seed)])


def housekeeping(profile):
    """Return the arguments of GRPOConfig that notebook 04 does not discuss.

    Saving and logging, number formats, and what trl and Unsloth have other defaults for.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        Whose settings they are.
    """
    # One chunk of logits for each completion; Unsloth's own choice is four.
    unsloth = {"unsloth_logit_chunk_multiplier": 1} if "unsloth" in sys.modules else {}
    return unsloth | half_precision(profile) | dict(
        top_p=1.0, top_k=0, lr_scheduler_type="constant_with_warmup", weight_decay=0.0,
        max_grad_norm=1.0, optim="adamw_8bit" if profile.needs_gpu else "adamw_torch",
        # trl decodes whole completions itself; vLLM would decode every token, twice, as it comes
        generation_kwargs={"detokenize": False} if profile.uses_vllm else None,
        # trl's defaults: a completion's tokens weigh the policy's probability of the whole
        # completion over vLLM's; beyond 3 it is left out
        vllm_importance_sampling_correction=True, vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_mode="sequence_mask",
        gradient_checkpointing=False,  # Unsloth brings its own; the CPU model needs none
        use_cpu=not profile.needs_gpu, torch_empty_cache_steps=None,
        save_strategy="steps", save_steps=profile.save_every,  # `Checkpoints` deletes older ones
        logging_steps=1, logging_nan_inf_filter=True, disable_tqdm=True, project=PROJECT)


def start_tracker(tracker, run):
    """Let a tracker write on this machine alone, under the run's name; the user's own wishes count.

    Parameters
    ----------
    tracker, run : str, pathlib.Path
        What goes to ``report_to``, and the run's folder. W&B writes there, offline; left alone it
        asks for an account in the middle of a training. Trackio writes to the Hub's cache, and
        opens no page: on Colab that would be a public one.
    """
    if tracker == "wandb":
        for name, value in {"PROJECT": PROJECT, "DIR": str(run), "MODE": "offline",
                            "DISABLE_GIT": "true"}.items():
            os.environ.setdefault(f"WANDB_{name}", value)
    if tracker == "trackio":
        import trackio

        trackio.init(PROJECT, name=run.name, resume="allow", embed=False)


def note_settings(trainer, run, checkpoint=None):
    """Write what a trainer learns with into its run's config.json, or compare it with that.

    Parameters
    ----------
    trainer, run : trl.GRPOTrainer, path
        The trainer as it is, whatever the profile says; the run's folder.
    checkpoint : path, optional
        What the run goes on from.

    Returns
    -------
    dict
        The settings; each checkpoint keeps them, too.

    Raises
    ------
    RuntimeError
        If the checkpoint was trained with other settings. More steps are no other setting, nor is
        the same batch cut in another way. Rewards are compared by name, not by their code.
    """
    now = {name: getattr(trainer.args, name) for name in SETTINGS}
    now["gradient_accumulation_steps"] *= trainer.args.world_size  # the passes of all processes
    puzzles = json.dumps(trainer.train_dataset.to_list()).encode()
    now["puzzles"] = hashlib.sha256(puzzles).hexdigest()[:12]  # the prompts, in their order
    now["reward_funcs"] = [function.__name__ for function in trainer.reward_funcs]
    if adapter := getattr(trainer.model, "peft_config", {}).get("default"):
        now["lora"] = {"r": adapter.r, "lora_alpha": adapter.lora_alpha,
                       "target_modules": sorted(adapter.target_modules)}
    config = read_config(run) if (run / "config.json").exists() else {}
    own = checkpoint and checkpoint / SETTINGS_FILE  # wherever the checkpoint was copied from
    saved = json.loads(own.read_text()) if own and own.exists() else config.get("training", {})
    different = sorted(name for name in saved.keys() - CUT if saved[name] != now.get(name))
    if saved and "lora" in now.keys() - saved.keys():
        different.append("lora")
    if CUT <= saved.keys() and _batch(saved) != _batch(now):
        different.append("gradient_accumulation_steps")
    if different and checkpoint:
        changes = ", ".join(f"{name} was {saved.get(name)}" for name in different)
        raise RuntimeError(f"{show(run)} holds a run with other settings ({changes}). "
                           f"{ANOTHER}, or delete this one to start anew; nothing was changed")
    write_json(run / "config.json", config | {"training": now})
    return now


def _batch(settings):
    return settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]


class MetricsLog(TrainerCallback):
    """Append one row a step to the run's metrics.jsonl, also across an interruption."""

    def __init__(self, run):
        self.path = run / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the rows after the checkpoint, whose steps come again; go on counting seconds."""
        rows = state.is_world_process_zero and keep_rows_until(self.path, state.global_step)
        self.start = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append the row of a step; it is on the disk before the step's checkpoint is."""
        if "reward" in (logs or {}) and state.is_world_process_zero:
            row = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 2)}
            row |= {ours: float(logs[name]) for name, ours in METRICS.items()
                    if math.isfinite(logs.get(name, math.nan))}  # NaN is no JSON
            append_row(self.path, row)


class Checkpoints(TrainerCallback):
    """Keep the two newest whole checkpoints; what a reader copied or renamed is left alone.

    The trainer's own ``save_total_limit`` deletes whatever begins with "checkpoint-".
    """

    def __init__(self, run, settings):
        self.run, self.settings = run, settings

    def on_save(self, args, state, control, **kwargs):
        """Note the settings beside the weights; delete what is older than the two newest."""
        if state.is_world_process_zero:
            write_json(self.run / f"checkpoint-{state.global_step}" / SETTINGS_FILE, self.settings)
            whole = [folder for step, folder in checkpoints(self.run).items()
                     if step <= state.global_step and not checkpoint_fault(folder, step)]
            for folder in whole[2:]:
                if not folder.is_symlink():
                    shutil.rmtree(folder)


class SampleLog(TrainerCallback):
    """Sample the same held-out puzzles every some steps into samples.jsonl, and at both ends.

    Their share of right answers tells what the training's own puzzles cannot: whether it carries
    over. Their texts show how thoughts change.
    """

    def __init__(self, run, tokenizer, profile, puzzles, every=25):
        self.path, self.every = run / "samples.jsonl", every
        self.arguments = (tokenizer, profile, puzzles)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Keep the rows that the checkpoint knows of; sample before the first step."""
        if state.is_world_process_zero:
            keep_rows_until(self.path, state.global_step or -1)  # half of a first look may be there
            if state.global_step == 0:
                self._sample(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Sample every `every` steps, and after the last one."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and state.is_world_process_zero:
            self._sample(model, state.global_step)

    def _sample(self, model, step):
        rows = sample_completions(model, *self.arguments, temperature=1.0).to_dict("records")
        append_row(self.path, *({"step": step} | row for row in rows))


@contextmanager
def collecting_between_steps(trainer):
    """Keep Python's garbage collector out of a trainer's steps; collect after each of them."""

    class CollectAfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            gc.collect()

    trainer.add_callback(CollectAfterStep)
    gc.collect()
    gc.freeze()  # what is alive now is never walked
    gc.disable()  # sampling's many small objects would set it off, to walk all that is alive
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        trainer.remove_callback(CollectAfterStep)


class Stopped(KeyboardInterrupt):
    """The stop button: a notebook shows one line, and Run All ends here."""

    def _render_traceback_(self):
        return [str(self)]


def _remember(model):
    """Keep a copy of what is trained, once: on the model, as the next trainer may be a new one."""
    if not hasattr(model, "initial_weights"):
        model.initial_weights = {name: p.detach().to("cpu", copy=True)
                                 for name, p in model.named_parameters() if p.requires_grad}


def _begin_anew(trainer, done):
    """Make a trainer that was stopped in this kernel like one that a fresh kernel has made.

    Else it would go on in the middle of a batch that is gone, with its metrics and its gradient.
    """
    trainer._step, trainer._buffered_inputs, trainer._last_loaded_step = 0, None, -1
    trainer._current_train_step_time = 0.0
    for kept in (*trainer._metrics.values(), *trainer._logs.values(),
                 trainer._pending_extra_logs, trainer._pending_metrics):
        kept.clear()
    trainer.optimizer = trainer.lr_scheduler = None
    with torch.no_grad():  # a checkpoint, if there is one, is loaded over them
        for name, p in trainer.model.named_parameters():
            if p.requires_grad:
                p.copy_(trainer.model.initial_weights[name])
    set_seed(trainer.args.seed + done + trainer.args.process_index)  # as trl, at any step


def _check(trainer, run):
    """Refuse what would train something else than the settings say."""
    places = [trainer.args.output_dir, *(
        callback.path.parent for callback in trainer.callback_handler.callbacks
        if isinstance(callback, MetricsLog | SampleLog))]
    if any(Path(place).resolve() != Path(run).resolve() for place in places):
        raise ValueError(f"the trainer writes to {show(places[0])}, not to {show(run)}: run the "
                         "cells from open_run on again; nothing was changed")
    if trainer.args.max_steps < 1 or trainer.args.max_steps % 1:
        raise ValueError(f"a run is counted in whole steps, not {trainer.args.max_steps}: give "
                         "steps, 1 or more")
    check_template(trainer.processing_class)
    if trainer.args.n_gpu > 1:
        raise RuntimeError(f"{trainer.args.n_gpu} GPUs are visible, and each would get a batch: "
                           "set CUDA_VISIBLE_DEVICES=0 before the kernel starts")
    needed = trainer.args.generation_batch_size // trainer.args.num_generations
    if len(trainer.train_dataset) < needed:
        raise ValueError(f"{len(trainer.train_dataset)} puzzles are fewer than the {needed} of one "
                         "step: give more puzzles, or train with fewer prompts a step")


def _let_tied_weights_be_missing(trainer, run):
    def loaded(result):
        tied = set(getattr(trainer.model, "all_tied_weights_keys", None) or ())
        strange = [*set(result.missing_keys) - tied, *result.unexpected_keys]
        if strange:
            raise RuntimeError(f"the checkpoint in {show(run)} is of another model: {strange[0]}")
        trainer.model.tie_weights()

    trainer._issue_warnings_after_load = loaded  # the trainer's own warns of tied weights, too


def _same_order(trainer, done):
    """Let the puzzles of later epochs come in the order of a run that was never stopped."""
    make = type(trainer)._get_train_sampler
    puzzles = trainer.args.generation_batch_size // trainer.args.num_generations

    def sampler(*arguments, **options):
        made = make(trainer, *arguments, **options)
        epoch = made.num_samples // puzzles * trainer.num_iterations  # its steps
        for _ in range(done // epoch if made.shuffle else 0):
            torch.randperm(made.num_samples, generator=made.generator)  # an epoch's order
        return made

    trainer._get_train_sampler = sampler


def train_or_resume(trainer, run, minutes=None, steps=None, decide=lambda plan: plan()):
    """Train to the end, from the run's last whole checkpoint if it has one.

    Parameters
    ----------
    trainer, run : trl.GRPOTrainer, path
        The trainer's ``output_dir`` is the run. Of a complete run only the weights are loaded. A
        new run begins with the weights that the model had when it was first given here.
    minutes : float, optional
        A run that has trained so long is complete, too.
    steps : int, optional
        Where the end is, in place of the trainer's ``max_steps``. Without it a run that has these
        steps already goes on to the number that it was asked for last.
    decide : callable, optional
        Of several processes it calls a function in the first and returns what that gave in all.

    Raises
    ------
    RuntimeError, ValueError
        If the disk is full or became read-only; what the last checkpoint holds is kept. If another
        process trains in the folder, or it holds a run with other settings: see `note_settings`.
        If the trainer has several GPUs, too few puzzles, or a chat template that does not fit.
    Stopped
        A KeyboardInterrupt, in one line.
    """
    trainer.args.max_steps = trainer.args.max_steps if steps is None else steps
    _let_tied_weights_be_missing(trainer, run)
    with ExitStack() as holding:
        _train(trainer, run, *decide(lambda: _plan(trainer, run, minutes, steps, holding)))


def _plan(trainer, run, minutes, steps, holding):
    _check(trainer, run)
    holding.enter_context(held(run))
    checkpoint = last_checkpoint(run)
    done = step_of(checkpoint) if checkpoint else 0
    if steps is None and done >= trainer.args.max_steps:
        trainer.args.max_steps = max(done, read_config(run).get("training", {}).get("max_steps", 0))
    steps = trainer.args.max_steps
    settings = note_settings(trainer, run, checkpoint)
    if not done and (run / "final").exists():
        raise RuntimeError(f"{show(run)} holds a trained model and no whole checkpoint: training "
                           f"would begin anew over it. {ANOTHER}, or move this one")
    seconds = [row["seconds"] for row in read_rows(run / "metrics.jsonl") if row["step"] == done]
    if done >= steps or (minutes and seconds and seconds[0] > 60 * minutes):
        print(f"{show(run)} is complete ({done} steps). Ask for more steps to go on; to train anew "
              'name another folder, open_run(profile, seed, name="try-1")')
        return checkpoint, done, steps, None
    for step, folder in checkpoints(run).items():
        if step > done:  # not whole, and in the way of a new one
            folder.rename(free_name(folder))
    if (run / "final").exists():  # of fewer steps: nothing may take it for what comes now
        (run / "final").rename(free_name(run / "final", f"step-{done}"))
    if done:
        print(f"Resuming {show(run)} after step {done} of {steps}")
    return checkpoint, done, steps, settings


def _train(trainer, run, checkpoint, done, steps, settings):
    trainer.args.max_steps = steps
    _remember(trainer.model)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Progress):
            callback.trainer = trainer
            if settings is None and trainer.is_world_process_zero():
                callback.show_complete(steps)
    if settings is None:  # trainer.train would add a step
        return trainer._load_from_checkpoint(str(checkpoint))
    trainer.remove_callback(PrinterCallback)  # the metrics are in the file and in the figure
    trainer.remove_callback(Checkpoints)
    trainer.add_callback(Checkpoints(run, settings))
    logging.disable_progress_bar()  # one bar for each checkpoint's files
    _begin_anew(trainer, done)
    _same_order(trainer, done)
    try:
        with collecting_between_steps(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save has no OSError
        full = shutil.disk_usage(run).free < 2**26
        if not full and getattr(error, "errno", None) not in UNWRITABLE:
            raise
        raise RuntimeError(
            f"training stopped: cannot write to {show(run)} ({error}). Free space or make it "
            "writable and run this cell again: it resumes from the last checkpoint") from error
    except KeyboardInterrupt:
        kept = last_checkpoint(run)
        kept = f"checkpoint at {step_of(kept)}" if kept else "no checkpoint yet"
        raise Stopped(f"Stopped after step {trainer.state.global_step} of {steps}; {kept}. "
                      "Run this cell again to go on.") from None
