"""One profile for each kind of machine: the only settings that differ between them."""

import os
import shutil
from dataclasses import MISSING, asdict, dataclass, fields, replace

CAPABILITY_NEEDED = (8, 0)  # Ampere: bfloat16, and vLLM's attention kernels


class NoGPU(RuntimeError):
    """A `profile` needs a GPU and torch finds none."""

    def __init__(self, profile):
        super().__init__(
            f"profile {profile.name} needs a GPU with {profile.min_gpu_gib:.0f} GiB and torch "
            f"finds none: `python -m helpers.preflight {profile.name}` says what is missing. Use "
            "COUNTDOWN_PROFILE=cpu here, or a machine with a GPU and the environment of "
            "environment.yml")
        self.profile = profile


@dataclass(frozen=True)
class ColdStart:
    """Supervised training on solver traces, before any reinforcement learning."""

    examples: int  # traces written
    steps: int  # optimiser steps
    batch: int  # traces a step
    learning_rate: float
    hit_rate: float  # share of tries that are a real solution
    max_tries: int  # tries before a trace gives up
    max_value: int  # largest value that a try passes through
    lora_rank: int = 0  # 0: every weight is trained; else the adapter is merged afterwards


@dataclass(frozen=True)
class Profile:
    """Everything that training and evaluation need to know about a machine and its model."""

    name: str
    model: str  # a Hub name, or a folder of this repository
    revision: str | None  # the Hub's commit
    puzzles: str  # data/puzzles/<puzzles>-{train,validation,test}.parquet
    cold_start: ColdStart | None
    quantisation: str | None  # "nf4": 4-bit weights under LoRA
    lora_rank: int  # 0: every weight is trained
    group_size: int  # completions a prompt
    prompts_per_step: int
    micro_batch: int  # completions in one forward and backward pass
    max_prompt_length: int  # tokens
    max_completion_length: int  # tokens
    learning_rate: float
    warmup_steps: int
    steps: int
    save_every: int  # steps between checkpoints
    mask_truncated: bool  # True: a cut-off completion gives no gradient
    uses_vllm: bool
    min_gpu_gib: float  # 0: no GPU needed
    vllm_gib: float  # GPU memory for vLLM's weights, cache and working space
    max_num_seqs: int  # completions that vLLM writes at the same time
    gradient_checkpointing: bool  # True: less memory, a second forward pass
    measured_on: str
    roomy_gib: float = 0.0  # on a GPU with less, micro-batches are a quarter of micro_batch
    standby: bool = False  # vLLM gives its memory back while the policy trains
    format_weight: float = 1.0  # of the format reward, beside 1 for the equation reward
    temperature: float = 1.0
    loss_type: str = "dapo"
    beta: float = 0.0  # no KL term, so no reference model in memory
    epsilon: float = 0.2
    epsilon_high: float = 0.28

    @property
    def needs_gpu(self):
        """Whether the profile runs on a GPU only."""
        return self.min_gpu_gib > 0

    @property
    def completions_per_step(self):
        """Completions that one optimiser step learns from."""
        return self.group_size * self.prompts_per_step

    @property
    def accumulation_steps(self):
        """Forward and backward passes that one optimiser step adds up."""
        return self.completions_per_step // self.micro_batch

    def __post_init__(self):
        """Refuse what a trainer or a sampler would silently change."""
        if self.completions_per_step % self.micro_batch:
            raise ValueError(
                f"profile {self.name}: {self.group_size} completions x {self.prompts_per_step} "
                f"prompts do not divide into micro-batches of {self.micro_batch}; change one")
        if self.max_num_seqs == 256:
            raise ValueError(f"profile {self.name}: Unsloth takes max_num_seqs=256 for 'not given' "
                             "and would choose fewer; write 255 or 257")

    def describe(self):
        """Print the batch arithmetic and the settings that matter in training."""
        print(
            f"profile {self.name}: {self.model}\n"
            f"  {self.prompts_per_step} prompts x {self.group_size} completions = "
            f"{self.completions_per_step} completions a step, in {self.accumulation_steps} "
            f"pass(es) of {self.micro_batch}\n"
            f"  {self.steps} steps at learning rate {self.learning_rate:g}, completions of at most "
            f"{self.max_completion_length} tokens, checkpoint every {self.save_every} steps\n"
            f"  weights: {self.quantisation or 'full precision'}, "
            f"{f'LoRA rank {self.lora_rank}' if self.lora_rank else 'all trained'}; "
            f"sampling: {'vLLM' if self.uses_vllm else 'transformers'}\n"
            f"  {self.measured_on}")


CPU = Profile(
    name="cpu", model="data/cold_start/cpu", revision=None, puzzles="cpu",
    cold_start=ColdStart(examples=100_000, steps=8_000, batch=32, learning_rate=3e-3,
                         hit_rate=0.2, max_tries=8, max_value=144),
    quantisation=None, lora_rank=0,
    group_size=16, prompts_per_step=8, micro_batch=128,
    max_prompt_length=16, max_completion_length=144, mask_truncated=False,
    learning_rate=2e-4, warmup_steps=0, steps=80, save_every=20,
    uses_vllm=False, min_gpu_gib=0.0, vllm_gib=0.0, max_num_seqs=0, gradient_checkpointing=False,
    measured_on="measured on 2 CPU cores: data/reference_runs/cpu-seed*",
)

# What the tests run: long enough for a gain that is larger than noise, and no longer.
CPU_SHORT = replace(CPU, name="cpu-short", steps=40, save_every=10, prompts_per_step=4,
                    micro_batch=64, measured_on="a shorter cpu run, for the tests")

SMOLLM2 = Profile(
    name="smollm2", model="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac", puzzles="3to4",
    cold_start=ColdStart(examples=51_200, steps=800, batch=64, learning_rate=1.5e-3,
                         hit_rate=0.3, max_tries=8, max_value=999, lora_rank=64),
    quantisation="nf4", lora_rank=32,
    group_size=16, prompts_per_step=16, micro_batch=32,
    max_prompt_length=256, max_completion_length=640, mask_truncated=True,
    format_weight=0.0,  # the cold start taught the form; notebook 04, section 9
    learning_rate=2e-4, warmup_steps=5, steps=65, save_every=25,
    uses_vllm=True, min_gpu_gib=14.0, vllm_gib=8.0, max_num_seqs=320, gradient_checkpointing=False,
    roomy_gib=28.0,  # the whole GPU's peak was 26.4 GiB: data/benchmarks/smollm2-unsloth.json
    measured_on="measured on H100s: data/reference_runs/smollm2-*",
)

A100 = Profile(
    name="a100", model="Qwen/Qwen2.5-3B-Instruct",
    revision="aa8e72537993ba99e69dfaafa59ed015b17504d1", puzzles="3to4",
    cold_start=None,  # an instruct model is meant to start without; not tried
    quantisation="nf4", lora_rank=32,
    group_size=8, prompts_per_step=8, micro_batch=8,
    max_prompt_length=256, max_completion_length=1024,
    mask_truncated=True,  # as DAPO has it; whether it lengthens completions here was not tried
    learning_rate=1e-5, warmup_steps=20, steps=500, save_every=25,
    uses_vllm=True, min_gpu_gib=38.0, vllm_gib=10.0, max_num_seqs=64, gradient_checkpointing=True,
    measured_on="steps timed with random weights on an H100 (data/benchmarks); Qwen2.5-3B's own "
                "were not at hand: learning is not measured",
)

PROFILES = {p.name: p for p in (CPU, CPU_SHORT, SMOLLM2, A100)}


def choose(name=None):
    """Return the profile for this machine and print why it was chosen.

    Parameters
    ----------
    name : str, optional
        A profile's name. Without it the variable COUNTDOWN_PROFILE decides, else the hardware.

    Raises
    ------
    ValueError
        If there is no such profile.
    NoGPU
        If the profile needs a GPU and this machine has none that torch can use.
    """
    reason = "asked for"
    if name is None and (name := os.environ.get("COUNTDOWN_PROFILE") or None):
        reason = "COUNTDOWN_PROFILE says so"
    if name is not None and name not in PROFILES:
        raise ValueError(f"no profile is called {name!r}; choose one of {', '.join(PROFILES)}")
    gib = _gpu_gib()
    if name is None:
        fitting = [p for p in (A100, SMOLLM2) if gib >= p.min_gpu_gib]
        name = fitting[0].name if fitting else CPU.name
        reason = f"the GPU has {gib:.0f} GiB" if gib else "torch finds no GPU"
        if not gib and shutil.which("nvidia-smi"):
            print("There is an NVIDIA driver here, but torch finds no GPU: "
                  "`python -m helpers.preflight smollm2` says what is wrong")
    profile = PROFILES[name]
    if profile.needs_gpu and gib == 0:
        raise NoGPU(profile)
    print(f"Profile {name} ({reason})")
    if profile.uses_vllm and old_gpu():
        print("This GPU is older than compute capability 8.0, and vLLM has no attention kernel for "
              "it: transformers samples, many times slower, and training is in float16. That was "
              "never run on such a card")
        profile = replace(profile, uses_vllm=False)
    if gib < profile.roomy_gib:
        small = profile.micro_batch // 4
        print(f"The GPU has less than {profile.roomy_gib:g} GiB: micro-batches of {small}, which "
              "was not measured")
        profile = replace(profile, micro_batch=small, roomy_gib=0.0)
    return profile


def settings(profile):
    """Return a profile as a plain dict, as a run's config.json holds it."""
    return asdict(profile)


def differences(profile, saved):
    """Return the names of the settings in which a saved profile differs from this one.

    ``measured_on`` is a remark, no setting; a setting that is younger than the saved profile is
    taken to have been at its default, or, if it has none, as it is here.
    """
    here = settings(profile)
    defaults = {f.name: f.default for f in fields(profile) if f.default is not MISSING}
    saved = here | defaults | saved
    if saved["cold_start"] and here["cold_start"]:
        saved["cold_start"] = here["cold_start"] | saved["cold_start"]
    return sorted(n for n in here.keys() - {"measured_on"} if saved[n] != here[n])


def old_gpu():
    """Whether there is a GPU without bfloat16, for which vLLM has no attention kernel either."""
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() < CAPABILITY_NEEDED


def half_precision(profile):
    """Return a trainer's arguments for a profile's 16-bit format: float16 on an old GPU."""
    old = profile.needs_gpu and old_gpu()
    return {"bf16": profile.needs_gpu and not old, "fp16": old}


def _gpu_gib():
    """Memory of the first GPU in GiB; 0 without one."""
    from torch import cuda

    return cuda.get_device_properties(0).total_memory / 2**30 if cuda.is_available() else 0.0
