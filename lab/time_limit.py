"""Trainings that stop early: by the clock, or when they are asked to."""

import signal
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback

from helpers.paths import show


def in_any_process(flag, args):
    """Return whether a flag is set in any process of a training; all have to ask, at one step.

    Parameters
    ----------
    flag : bool
        This process's own.
    args : transformers.TrainingArguments
        How many processes there are, and this one's device.
    """
    if args.world_size == 1:
        return bool(flag)
    flags = torch.tensor([int(flag)], device=args.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


class TimeLimit(TrainerCallback):
    """Stop after so many minutes of training, to compare settings at equal cost.

    The clock is that of the run's `MetricsLog`, so the minutes before an interruption count; the
    last step leaves a checkpoint. Of several processes the first has the clock.
    """

    def __init__(self, log, minutes):
        self.log, self.seconds = log, 60 * minutes

    def on_step_end(self, args, state, control, **kwargs):
        """Stop after the step in which the time ran out."""
        late = state.is_world_process_zero and time.monotonic() - self.log.start > self.seconds
        if in_any_process(late, args):
            control.should_training_stop = control.should_save = True


class StopWhenAsked(TrainerCallback):
    """Stop all processes after one step, with a checkpoint: by Ctrl-C, or by a file.

    Parameters
    ----------
    run : pathlib.Path
        The run's folder: a file named ``stop`` in it stops the training, and is deleted.
    """

    def __init__(self, run):
        self.file, self.stopped, self.interrupted = Path(run) / "stop", False, False

    @contextmanager
    def listening(self):
        """Take Ctrl-C (SIGINT) as a request, as long as it is entered."""
        def ask(number, frame):
            self.interrupted = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args, state, control, **kwargs):
        """Stop if any process was asked to; a training that is at its end is complete."""
        asked = self.interrupted or state.is_world_process_zero and self.file.exists()
        if not in_any_process(asked, args):
            return
        self.stopped = state.global_step < state.max_steps
        control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            self.file.unlink(missing_ok=True)

    def on_save(self, args, state, control, **kwargs):
        """Say so, once the checkpoint is there."""
        if self.stopped and state.is_world_process_zero:
            print(f"Asked to stop: step {state.global_step} of {state.max_steps} is saved in "
                  f"{show(self.file.parent)}, and the same command goes on", flush=True)
