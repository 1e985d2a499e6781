"""Short completions first: the limit of tokens that a training samples with, changed on the way."""

from transformers import TrainerCallback


class ShortFirst(TrainerCallback):
    """Sample at most a few tokens a completion in the first steps, then the configured number.

    A longer budget comes late in DeepScaleR's recipe, too (Luo et al. 2025): sampling costs less,
    and a model that has few tries learns to choose them before it learns to make more.

    Parameters
    ----------
    trainer : trl.GRPOTrainer
        Whose sampler is limited, with vLLM or without; its ``args.max_completion_length`` holds
        afterwards.
    tokens : int
        The limit in the first steps.
    steps : int
        How many steps that are, counted from the first of the run, also in a resumed one.

    Raises
    ------
    ValueError
        If the first limit is not the lower one.
    """

    def __init__(self, trainer, tokens, steps):
        self.trainer, self.tokens, self.steps = trainer, tokens, steps
        if not 0 < tokens < trainer.args.max_completion_length:
            raise ValueError(f"the first {steps} steps are to sample {tokens} tokens: give fewer "
                             f"than the {trainer.args.max_completion_length} of the rest")

    def on_step_begin(self, args, state, control, **kwargs):
        """Set the limit: a step's completions are sampled after this."""
        early = state.global_step < self.steps
        limit = self.tokens if early else args.max_completion_length
        if args.use_vllm:
            self.trainer.vllm_generation.max_completion_length = limit
        else:
            self.trainer.generation_config.max_new_tokens = limit
