"""A training that stops by the clock, so that settings are compared at equal cost."""

import time

from transformers import TrainerCallback


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
