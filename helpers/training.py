"""GRPO training around trl's own trainer: its settings, its log on disk, its resumption."""

import gc
import random
import sys
import time
from contextlib import contextmanager

from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from helpers.evaluation import sample_completions
from helpers.paths import show
from helpers.profiles import half_precision
from helpers.prompts import build_messages
from helpers.runs import append_row, keep_rows_until, last_checkpoint, read_rows

# trl's name of a metric -> ours
METRICS = {
    "reward": "reward",
    "rewards/equation_reward_func/mean": "equation_reward",
    "rewards/strict_format_reward_func/mean": "format_reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_spread_groups",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_ratio",
    "sampling/importance_sampling_ratio/mean": "vllm_ratio_mean",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "step_time": "step_seconds",
}


def prompt_dataset(puzzles, seed=0):
    """Return the puzzles as trl wants them, each with its numbers in a random order.

    Parameters
    ----------
    puzzles : pandas.DataFrame
        Columns ``nums`` and ``target``.
    seed : int
        Seed of the order of the numbers.

    Returns
    -------
    datasets.Dataset
        Columns ``prompt`` (a list of messages, so that trl applies the chat template), ``nums``
        and ``target`` (which trl hands to the rewards).
    """
    from datasets import Dataset

    rng = random.Random(seed)
    rows = []
    for nums, target in zip(puzzles["nums"], puzzles["target"], strict=True):
        nums = [int(n) for n in rng.sample(list(nums), len(nums))]
        prompt = build_messages(nums, target)
        rows.append({"prompt": prompt, "nums": nums, "target": int(target)})
    return Dataset.from_list(rows)


def grpo_options(profile, run, seed=0):
    """Return the arguments of trl's GRPOConfig for a profile, every setting that matters given.

    The weights are those of the format and the equation reward, in this order.

    Unsloth's GRPOConfig has other defaults than trl's (learning rate, weight decay, warm-up, the
    vLLM correction), so every setting in which they differ and that acts in training is given.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        Where the settings come from.
    run : path
        The run's folder; checkpoints go there.
    seed : int
        Seed of the order of the prompts, of sampling, and of the trainer.
    """
    return {
        "output_dir": str(run),
        "per_device_train_batch_size": profile.micro_batch,
        "gradient_accumulation_steps": profile.accumulation_steps,
        "num_generations": profile.group_size,
        "max_completion_length": profile.max_completion_length,
        "max_steps": profile.steps,
        "learning_rate": profile.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": profile.warmup_steps,
        "optim": "adamw_8bit" if profile.needs_gpu else "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "loss_type": profile.loss_type,
        "reward_weights": [profile.format_weight, 1.0],
        "scale_rewards": "group",
        "beta": profile.beta,
        "epsilon": profile.epsilon,
        "epsilon_high": profile.epsilon_high,
        "num_iterations": 1,
        "mask_truncated_completions": profile.mask_truncated,
        "temperature": profile.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "use_vllm": profile.uses_vllm,
        # trl's defaults: a completion's tokens weigh the policy's probability of the whole
        # completion over vLLM's; beyond 3 it is left out
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        # trl decodes whole completions itself; vLLM would decode every token, twice, as it comes
        "generation_kwargs": {"detokenize": False} if profile.uses_vllm else None,
        "use_cpu": not profile.needs_gpu,
        **half_precision(profile),
        "gradient_checkpointing": False,  # Unsloth brings its own; the CPU model needs none
        "torch_empty_cache_steps": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": True,
        "save_strategy": "steps",
        "save_steps": profile.save_every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def grpo_config(profile, run, seed=0, **changes):
    """Return trl's GRPOConfig for a profile: `grpo_options`, with `changes` in their place."""
    from trl import GRPOConfig

    if "unsloth" in sys.modules:  # one chunk of logits for each completion, not four
        changes = {"unsloth_logit_chunk_multiplier": 1} | changes
    return GRPOConfig(**(grpo_options(profile, run, seed) | changes))


class MetricsLog(TrainerCallback):
    """Append one row a step to the run's metrics.jsonl, also across an interruption.

    A row is on the disk before the checkpoint of its step is; on resuming, the rows after the
    checkpoint are dropped, because those steps are done again.
    """

    def __init__(self, run):
        self.path = run / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        """Keep the rows that the checkpoint knows of, and go on counting their seconds."""
        rows = keep_rows_until(self.path, state.global_step)
        self.start = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append the row of a step."""
        if "reward" not in (logs or {}):
            return
        row = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 2)}
        row |= {ours: float(logs[theirs]) for theirs, ours in METRICS.items() if theirs in logs}
        append_row(self.path, row)


class TimeLimit(TrainerCallback):
    """Stop after so many minutes of training, to compare settings at equal cost.

    The clock is that of the run's `MetricsLog`, so the minutes before an interruption count; the
    last step leaves a checkpoint.
    """

    def __init__(self, log, minutes):
        self.log, self.seconds = log, 60 * minutes

    def on_step_end(self, args, state, control, **kwargs):
        """Stop after the step in which the time ran out."""
        if time.monotonic() - self.log.start > self.seconds:
            control.should_training_stop = control.should_save = True


class LiveCurves(TrainerCallback):
    """Redraw reward, length and entropy in the notebook while the model trains."""

    def __init__(self, run, every=5):
        self.run, self.every, self.handle = run, every, None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Redraw every few steps."""
        if "reward" in (logs or {}) and state.global_step % self.every == 0:
            self.draw()

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the last steps, too."""
        self.draw()

    def draw(self):
        """Show the curves, replacing those shown before."""
        import matplotlib.pyplot as plt
        from IPython.display import display

        from helpers.plots import training_curves

        rows = read_rows(self.run / "metrics.jsonl")
        if not rows:
            return
        figure = training_curves({self.run.name: rows})
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)


class SampleLog(TrainerCallback):
    """Sample the same few puzzles every some steps into samples.jsonl, to see thoughts change."""

    def __init__(self, run, tokenizer, profile, puzzles, every):
        self.path, self.every = run / "samples.jsonl", every
        self.arguments = (tokenizer, profile, puzzles)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Keep the rows that the checkpoint knows of; sample before the first step."""
        if not keep_rows_until(self.path, state.global_step):
            self.sample(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Sample every `every` steps."""
        if state.global_step % self.every == 0:
            self.sample(model, state.global_step)

    def sample(self, model, step):
        """Append one row a puzzle."""
        frame = sample_completions(model, *self.arguments, temperature=1.0)
        for row in frame.to_dict("records"):
            append_row(self.path, {"step": step} | row)


@contextmanager
def collecting_between_steps(trainer):
    """Keep Python's garbage collector out of a trainer's steps; collect after each of them.

    Sampling makes small objects for every token. Their number triggers the collector, which then
    walks everything that is alive: with trl and a data set loaded 458,000 objects, 0.25 s on a CPU
    core, and more with Unsloth and vLLM. What is alive at the beginning is left out here.
    """

    class CollectAfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            gc.collect()

    trainer.add_callback(CollectAfterStep)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        trainer.remove_callback(CollectAfterStep)


def train_or_resume(trainer, run, minutes=None):
    """Train to the end, from the run's last checkpoint if it has one.

    Parameters
    ----------
    trainer : trl.GRPOTrainer
        Whose ``output_dir`` is the run's folder.
    run : path
        The run's folder. A complete run is not trained further; its weights are loaded.
    minutes : float, optional
        A run that has trained so long is complete, too.

    Raises
    ------
    RuntimeError
        If the disk is full or became read-only; what the last checkpoint holds is kept.
    """
    checkpoint = last_checkpoint(run)
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    seconds = [row["seconds"] for row in read_rows(run / "metrics.jsonl") if row["step"] == done]
    if done >= trainer.args.max_steps or (minutes and seconds and seconds[0] > 60 * minutes):
        print(f"{show(run)} is complete ({done} steps); delete the folder to train anew")
        trainer._load_from_checkpoint(str(checkpoint))  # trainer.train would add a step
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, LiveCurves):
                callback.draw()
        return
    if done:
        print(f"Resuming {show(run)} after step {done} of {trainer.args.max_steps}")
    trainer.remove_callback(PrinterCallback)  # the metrics are in the file and in the figure
    logging.disable_progress_bar()  # one bar for each checkpoint's files
    try:
        with collecting_between_steps(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except OSError as error:
        raise RuntimeError(
            f"training stopped: cannot write to {show(run)} ({error}). Free space or make it "
            "writable and run this cell again: it resumes from the last checkpoint"
        ) from error
