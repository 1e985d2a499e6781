"""One profile for each kind of machine: the only settings that differ between them."""

import os
import shutil
from dataclasses import asdict, dataclass, replace

CAPABILITY_NEEDED = (8, 0)  # Ampere: bfloat16, and vLLM's attention kernels


class NoGPU(RuntimeError):
    """A `profile` needs a GPU and torch finds none."""

    def __init__(self, profile):
        self.profile, name = profile, profile.name
        super().__init__(
            f"profile {name} needs a GPU with {profile.min_gpu_gib:.0f} GiB and torch finds none: "
            f"`python -m helpers.preflight {name}` says what is missing. Use COUNTDOWN_PROFILE=cpu "
            "here, or a machine with a GPU and the environment of environment.yml")


@dataclass(frozen=True)
class ColdStart:
    """Supervised training on solver traces, before any reinforcement learning."""

    examples: int = 100_000  # traces written
    steps: int = 8_000  # optimiser steps
    batch: int = 32  # traces a step
    learning_rate: float = 3e-3
    hit_rate: float = 0.2  # share of tries that are a real solution
    max_tries: int = 8  # tries before a trace gives up
    max_value: int = 144  # largest value that a try passes through
    lora_rank: int = 0  # 0: every weight is trained; else the adapter is merged afterwards


@dataclass(frozen=True)
class Profile:
    """All that training and evaluation need to know; the defaults are the values of cpu."""

    name: str = "cpu"
    model: str = "data/cold_start/cpu"  # a Hub name, or a folder of this repository
    revision: str | None = None  # the Hub's commit
    puzzles: str = "cpu"  # "cpu", "3to4", "public" or a file: `helpers.dataset.load_split`
    cold_start: ColdStart | None = ColdStart()
    quantisation: str | None = None  # "nf4": 4-bit weights under LoRA
    lora_rank: int = 0  # 0: every weight is trained
    group_size: int = 16  # completions a prompt
    prompts_per_step: int = 8
    micro_batch: int = 128  # completions in one forward and backward pass
    max_prompt_length: int = 16  # tokens
    max_completion_length: int = 144  # tokens, when held-out puzzles are answered
    training_length: int | None = None  # tokens in training, if fewer than that
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    steps: int = 80
    save_every: int = 20  # steps between checkpoints
    mask_truncated: bool = False  # True: a cut-off completion gives no gradient
    uses_vllm: bool = False
    min_gpu_gib: float = 0.0  # 0: no GPU needed
    vllm_gib: float = 0.0  # GPU memory for vLLM's weights, cache and working space
    max_num_seqs: int = 0  # completions that vLLM writes at the same time
    gradient_checkpointing: bool = False  # True: less memory, a second forward pass
    measured_on: str = "measured on 2 CPU cores: data/reference_runs/cpu-seed*"
    roomy_gib: float = 0.0  # a GPU with less takes what stands in `SMALLER`
    standby: bool = False  # vLLM gives its memory back while the policy trains
    smoke_steps: int = 0  # of a first, short training that only shows that all works: notebook 04
    format_weight: float = 1.0  # of the format reward, beside 1 for the equation reward
    temperature: float = 1.0
    loss_type: str = "dapo"
    beta: float = 0.0  # no KL term, so no reference model in memory
    epsilon: float = 0.2
    epsilon_high: float = 0.28

    # What follows from the settings; accumulation: forward and backward passes a step.
    needs_gpu = property(lambda self: self.min_gpu_gib > 0)
    completions_per_step = property(lambda self: self.group_size * self.prompts_per_step)
    accumulation_steps = property(lambda self: self.completions_per_step // self.micro_batch)
    sampled_length = property(lambda self: self.training_length or self.max_completion_length)

    def __post_init__(self):
        """Refuse what a trainer or a sampler would silently change."""
        if min(self.group_size, self.prompts_per_step, self.micro_batch) < 1:
            raise ValueError(f"profile {self.name}: group_size, prompts_per_step and micro_batch "
                             "have to be 1 or more")
        if self.completions_per_step % self.micro_batch:
            raise ValueError(
                f"profile {self.name}: {self.group_size} completions x {self.prompts_per_step} "
                f"prompts do not divide into micro-batches of {self.micro_batch}; change one")
        if self.training_length == 0 or not 0 < self.sampled_length <= self.max_completion_length:
            raise ValueError(f"profile {self.name}: training_length is {self.training_length}; "
                             f"give 1 to {self.max_completion_length} tokens")
        if self.max_num_seqs == 256:
            raise ValueError(f"profile {self.name}: Unsloth takes max_num_seqs=256 for 'not given' "
                             "and would choose fewer; write 255 or 257")

    def describe(self):
        """Print the batch arithmetic and the settings that matter in training."""
        weights = f"LoRA rank {self.lora_rank}" if self.lora_rank else "all trained"
        smoke = " (a smoke run: it shows that all works)" * (self.steps <= self.smoke_steps)
        print(f"profile {self.name}: {self.model}\n  {self.prompts_per_step} prompts x "
              f"{self.group_size} completions = {self.completions_per_step} completions a step, in "
              f"{self.accumulation_steps} pass(es) of {self.micro_batch}\n"
              f"  {self.steps} steps{smoke} at learning rate {self.learning_rate:g}, completions "
              f"of at most {self.sampled_length} tokens, checkpoint every {self.save_every} steps"
              f"\n  weights: {self.quantisation or 'full precision'}, {weights}; sampling: "
              f"{'vLLM' if self.uses_vllm else 'transformers'}\n  {self.measured_on}")


CPU = Profile()
# What the tests run: long enough for a gain that is larger than noise, and no longer.
CPU_SHORT = Profile(name="cpu-short", prompts_per_step=4, micro_batch=64, steps=40, save_every=10,
                    measured_on="a shorter cpu run, for the tests")

SMOLLM2 = Profile(
    name="smollm2", model="HuggingFaceTB/SmolLM2-135M-Instruct", puzzles="3to4",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac", quantisation="nf4", lora_rank=32,
    cold_start=ColdStart(examples=51_200, steps=800, batch=64, learning_rate=1.5e-3, hit_rate=0.3,
                         max_value=999, lora_rank=64),
    prompts_per_step=16, micro_batch=32, warmup_steps=5, steps=65, save_every=25,
    max_prompt_length=256, max_completion_length=640, mask_truncated=True,
    format_weight=0.0,  # the cold start taught the form; notebook 04, section 10
    uses_vllm=True, min_gpu_gib=14.0, vllm_gib=8.0, max_num_seqs=320,
    roomy_gib=28.0,  # the whole GPU's peak was 26.4 GiB: data/benchmarks/smollm2-unsloth.json
    measured_on="measured on H100s: data/reference_runs/smollm2-*")

A100 = Profile(  # where the values come from: docs/gpu.md, "The recipe for Qwen2.5-3B-Instruct"
    name="a100", model="Qwen/Qwen2.5-3B-Instruct", puzzles="3to4",
    revision="aa8e72537993ba99e69dfaafa59ed015b17504d1", quantisation="nf4", lora_rank=32,
    cold_start=None,  # an instruct model is meant to start without; not tried
    group_size=8, micro_batch=8, learning_rate=2e-5, warmup_steps=10, steps=150, save_every=10,
    smoke_steps=20, max_prompt_length=256, max_completion_length=1024, format_weight=0.1,
    uses_vllm=True, min_gpu_gib=21.0, roomy_gib=38.0, vllm_gib=10.0, max_num_seqs=64,
    gradient_checkpointing=True,
    measured_on="steps timed with random weights on an H100 (data/benchmarks); Qwen2.5-3B's own "
                "were not at hand: learning is not measured")

PROFILES = {p.name: p for p in (CPU, CPU_SHORT, SMOLLM2, A100)}
SMALLER = {  # settings on a GPU with less than the profile's roomy_gib, by profile
    "smollm2": {"micro_batch": 8}, "a100": {"standby": True}}
settings = asdict  # of a profile: the plain dict that a run's config.json holds


def choose(name=None, bits=None):
    """Return the profile for this machine and print why it was chosen.

    Parameters
    ----------
    name : str, optional
        A profile's name. Without it, or with "auto", the variable COUNTDOWN_PROFILE decides, else
        the hardware.
    bits : int, optional
        16 keeps a GPU's frozen weights in 16 bits: faster steps, more memory. 4 rounds them.

    Raises
    ------
    ValueError, NoGPU
        If there is no such profile; if it needs a GPU and torch finds none that it can use.
    """
    reason, name = "asked for", None if name == "auto" else name
    if name is None and os.environ.get("COUNTDOWN_PROFILE"):
        name, reason = os.environ["COUNTDOWN_PROFILE"], "COUNTDOWN_PROFILE says so"
    if name is not None and name not in PROFILES:
        raise ValueError(f"no profile is called {name!r}; choose one of {', '.join(PROFILES)}")
    if bits not in (None, 4, 16):
        raise ValueError(f"bits is {bits!r}: the weights are kept in 4 or in 16")
    gib = _gpu_gib()
    if name is None:
        name = next(p.name for p in (A100, SMOLLM2, CPU) if gib >= p.min_gpu_gib)
        reason = f"the GPU has {gib:.0f} GiB" if gib else "torch finds no GPU"
        if gib and old_gpu():  # such as a T4
            name, reason = CPU.name, ("vLLM has no attention kernel for this old GPU; smollm2 can "
                                      "be asked for by name, which was never tried on one")
        if not gib and shutil.which("nvidia-smi"):
            print("There is an NVIDIA driver here, but torch finds no GPU: "
                  "`python -m helpers.preflight smollm2` says what is wrong")
    profile = PROFILES[name]
    if profile.needs_gpu and gib == 0:
        raise NoGPU(profile)
    print(f"Profile {name} ({reason})")
    if bits and profile.needs_gpu:
        profile = replace(profile, quantisation="nf4" if bits == 4 else None)
    if profile.uses_vllm and old_gpu():
        print("This GPU is older than compute capability 8.0, and vLLM has no attention kernel for "
              "it: transformers samples, many times slower, and training is in float16. Three "
              "steps were tried on a newer card, none on such a one")
        profile = replace(profile, uses_vllm=False)
    if gib < profile.roomy_gib:
        small = replace(profile, roomy_gib=0.0, **SMALLER[name])
        print(f"The GPU has less than {profile.roomy_gib:g} GiB: micro-batches of "
              f"{small.micro_batch}{' and vLLM in standby' * small.standby}, tried on a larger "
              "card whose memory was held: docs/gpu.md")
        profile = small
    return profile


def differences(profile, saved):
    """Return the names of the settings in which a saved profile differs from this one.

    ``measured_on`` is a remark, no setting; a setting that is younger than the saved profile is
    taken to be as it is here, unless it is known what such runs had.
    """
    here, known = settings(profile), {
        "format_weight": 1.0, "roomy_gib": 0.0, "standby": False, "training_length": None}
    saved = here | known | saved
    if here["cold_start"] and saved["cold_start"]:
        saved["cold_start"] = here["cold_start"] | saved["cold_start"]
    return sorted(n for n in here.keys() - {"measured_on"} if saved[n] != here[n])


def old_gpu():
    """Whether there is a GPU without bfloat16, for which vLLM has no attention kernel either."""
    from torch import cuda
    return cuda.is_available() and cuda.get_device_capability() < CAPABILITY_NEEDED


def half_precision(profile):
    """Return a trainer's arguments for a profile's 16-bit format: float16 on an old GPU."""
    fp16 = profile.needs_gpu and old_gpu()
    return {"bf16": profile.needs_gpu and not fp16, "fp16": fp16}


def _gpu_gib():  # the memory of the first GPU; 0 without one
    from torch import cuda
    return cuda.get_device_properties(0).total_memory / 2**30 if cuda.is_available() else 0.0
