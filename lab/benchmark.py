"""Time GRPO steps on a GPU: ``python -m lab.benchmark --profile smollm2 --stack unsloth``.

Stack ``unsloth`` is what the notebooks use; ``trl`` is the same training with nothing but trl, vLLM
(colocated, with its own defaults), peft and bitsandbytes. One JSON file a measurement, under
runs/benchmarks/.
"""

import argparse
import functools
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from helpers import profiles
from helpers.dataset import load_split
from helpers.forecast import card_limits
from helpers.models import base_folder, lora_settings, vllm_share
from helpers.paths import RUNS, show
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import environment, write_json
from lab import samplers
from lab.record import changed, make_config, make_model, make_trainer

FOLDER = RUNS / "benchmarks"
VARIED = ("micro_batch", "group_size", "prompts_per_step", "learning_rate", "loss_type", "beta")


def _nvidia_smi():
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used",
            "--format=csv,noheader,nounits"]


class MemoryWatch:
    """Watch the whole GPU's memory from outside this process, with nvidia-smi.

    Parameters
    ----------
    not_counted : int
        MiB that are held for another purpose, by `Ballast`.
    """

    def __init__(self, not_counted=0):
        self.not_counted = not_counted

    def __enter__(self):
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.path, self.start = FOLDER / f"memory-{os.getpid()}.csv", 0
        with open(self.path, "w") as file:
            self.process = subprocess.Popen([*_nvidia_smi(), "--loop-ms=100"], stdout=file)
        return self

    def _lines(self):
        return [int(line) for line in self.path.read_text().split() if line.isdigit()]

    def forget(self):
        """Count the peak from here on."""
        self.start = len(self._lines())

    def peak(self):
        """Return the highest use since the start, or since `forget`, in MiB."""
        return max(self._lines()[self.start:]) - self.not_counted

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()
        self.path.unlink()


class Ballast:
    """Hold all but so many GiB of the GPU in another process, to see what fits a smaller card.

    Parameters
    ----------
    card_gib : float or None
        What is left free; None holds nothing.
    """

    PROGRAM = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(0, free - int(float(sys.argv[1]) * 2**30)), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""

    def __init__(self, card_gib):
        self.card_gib, self.process, self.mib = card_gib, None, 0

    def __enter__(self):
        if self.card_gib:
            before = int(subprocess.check_output(_nvidia_smi(), text=True))
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.PROGRAM, str(self.card_gib)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self.process.stdout.readline() != "held\n":
                raise RuntimeError("the ballast could not be allocated: is the GPU in use?")
            self.mib = int(subprocess.check_output(_nvidia_smi(), text=True)) - before
        return self

    def __exit__(self, *error):
        if self.process:
            self.process.communicate()


def settled_time():
    """Return the time in seconds, once a GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def time_parts(trainer, note):
    """Time a trainer's sampling and its scoring of old log-probs; what they compute stays.

    Parameters
    ----------
    trainer : trl.GRPOTrainer
        Two of its methods are wrapped.
    note : callable
        Called after each with ``"sampling"`` or ``"old_logps"``, the seconds, and the result.
    """
    import torch

    def wrap(name, part):
        inner = getattr(trainer, name)

        @functools.wraps(inner)
        def timed(*args, **kwargs):
            # trl's loss calls the function of old log-probs, too, but with a gradient
            if part == "old_logps" and torch.is_grad_enabled():
                return inner(*args, **kwargs)
            start = settled_time()
            result = inner(*args, **kwargs)
            note(part, settled_time() - start, result)
            return result

        setattr(trainer, name, timed)

    wrap("_generate", "sampling")
    wrap("_get_per_token_logps_and_entropies", "old_logps")


class StepClock:
    """Time a trainer's steps and, inside them, the sampling and the scoring of old log-probs.

    Parameters
    ----------
    trainer : trl.GRPOTrainer
        Its methods are wrapped; nothing that they compute changes.
    """

    def __init__(self, trainer):
        from transformers import TrainerCallback

        self.steps, self.now = [], None
        clock = self

        class EndOfStep(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                clock.begin()

            def on_step_end(self, args, state, control, **kwargs):
                clock.end()

        trainer.add_callback(EndOfStep())
        time_parts(trainer, self._note)

    def _note(self, part, seconds, result):
        if self.now is not None:
            self.now[part] += seconds
            if part == "sampling":
                self._count(result)

    def _count(self, result):
        prompts, completions = result[0], result[1]
        self.now["prompt_tokens"] += sum(map(len, prompts))
        self.now["completion_tokens"] += sum(map(len, completions))
        # keys that sampling reads: each new token attends to the prompt and to what came before it
        self.now["attended"] += sum(len(c) * (len(p) + len(c) / 2)
                                    for p, c in zip(prompts, completions, strict=True))
        self.now["longest"] = max(self.now["longest"], max(map(len, completions)))

    def begin(self):
        """Start a step."""
        self.start = time.monotonic()
        self.now = dict.fromkeys(("sampling", "old_logps", "prompt_tokens", "completion_tokens",
                                  "attended", "longest"), 0)

    def end(self):
        """Finish a step and print its line."""
        self.now["seconds"] = settled_time() - self.start
        self.steps.append(self.now)
        print("step", len(self.steps), {k: round(v, 2) for k, v in self.now.items()}, flush=True)
        self.now = None


def plain_trainer(profile, run, rewards, dataset, seed):
    """Return a GRPOTrainer of trl alone with the profile's settings, for comparison."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import GRPOTrainer

    # trl starts vLLM in this process and asks torch.distributed for it
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": 20_000 + os.getpid() % 20_000}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # the same kernel as the other stack
    source = base_folder(profile)
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                      bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=quantisation)
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = make_config(
        profile, run, seed, save_strategy="no", vllm_mode="colocate",
        vllm_gpu_memory_utilization=vllm_share(profile),
        vllm_max_model_length=profile.max_prompt_length + profile.max_completion_length,
        gradient_checkpointing=profile.gradient_checkpointing)
    lora = LoraConfig(**lora_settings(profile.lora_rank), task_type="CAUSAL_LM")
    return GRPOTrainer(model=model, processing_class=tokenizer, reward_funcs=rewards,
                       args=config, train_dataset=dataset, peft_config=lora)


def random_weights(profile, folder):
    """Write a model of the profile's architecture with random weights, and a tokenizer.

    Where the real weights are not at hand this is enough for memory and speed: every completion
    runs to the longest length, which is the worst case.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        ``a100`` only: the sizes below are those of Qwen2.5-3B-Instruct's config.json.
    folder : pathlib.Path
        Where the model is saved, in bfloat16 (6.2 GB).
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from lab.coldstart import load_tokenizer

    if profile.name != "a100":
        raise ValueError(f"random weights are for profile a100; {profile.name} has its own")
    tokenizer = load_tokenizer(profiles.SMOLLM2)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36,
        num_attention_heads=16, num_key_value_heads=2, max_position_embeddings=32_768,
        rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, use_sliding_window=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.to("cpu").save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def summary(steps, warm_up):
    """Return medians over the steps after the warm-up, and rates of sampling and training."""
    kept = steps[warm_up:]

    def median(values):
        return round(statistics.median(values), 3)

    update = [s["seconds"] - s["sampling"] for s in kept]
    return {
        "steps_counted": len(kept),
        "first_step_seconds": round(steps[0]["seconds"], 1),
        "step_seconds": median(s["seconds"] for s in kept),
        "slowest_step_seconds": round(max(s["seconds"] for s in kept), 2),
        "sampling_seconds": median(s["sampling"] for s in kept),
        "old_logps_seconds": median(s["old_logps"] for s in kept),
        "update_seconds": median(u - s["old_logps"] for u, s in zip(update, kept, strict=True)),
        "completion_tokens": median(s["completion_tokens"] for s in kept),
        "prompt_tokens": median(s["prompt_tokens"] for s in kept),
        "sampled_tokens_per_s": median(s["completion_tokens"] / s["sampling"] for s in kept),
        "trained_tokens_per_s": median((s["completion_tokens"] + s["prompt_tokens"]) / u
                                       for u, s in zip(update, kept, strict=True)),
    }


def shares(model, steps, result, card):
    """Return what a run moved and computed at least, as shares of what the card reaches.

    Parameters
    ----------
    model : torch.nn.Module
        The policy; its adapter is left out.
    steps : list of dict
        The steps that count, from `StepClock`.
    result : dict
        Their `summary`.
    card : dict
        From `card_limits`.

    Returns
    -------
    dict
        ``sampling_of_bandwidth``: the weights as they are stored, read once for each token of the
        longest completion, and the keys and values that are attended to.
        ``training_of_matrix_rate``: two operations a weight and token in each of three passes (old
        log-probs; forward; backward, which goes through the frozen weights without a gradient for
        them). Attention, and what gradient checkpointing computes again, are left out of it.
    """
    base = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    stored = sum(p.numel() * p.element_size() for p in base.values())
    weights = sum(p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in base.values())
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2  # bytes a token
    moved = statistics.median(
        (s["longest"] * stored + s["attended"] * cached) / s["sampling"] for s in steps)
    computed = 6 * weights * result["trained_tokens_per_s"]
    return {"weights": weights, "stored_gib": round(stored / 2**30, 2),
            "sampling_of_bandwidth": round(moved / 1e12 / card["copy_tb_per_s"], 4),
            "training_of_matrix_rate": round(computed / 1e12 / card["matrix_tflops"], 4)}


def split_changes(profile, items):
    """Return (profile, arguments of GRPOConfig) with changes that need no loading anew.

    Raises
    ------
    ValueError
        If a setting acts when the model is loaded.
    """
    own = [item for item in items if item.partition("=")[0] in profiles.settings(profile)]
    late = [item for item in own if item.partition("=")[0] not in VARIED]
    if late:
        raise ValueError(f"{late[0]} acts when the model is loaded: give it to --set, in a run of "
                         "its own")
    others = dict(item.split("=", 1) for item in items if item not in own)
    return changed(profile, own), {k: json.loads(v) for k, v in others.items()}


def measure(profile, stack, warm_up=3, seed=0, name=None, vary=(), load=None, card_gib=None,
            sampler=()):
    """Run some GRPO steps, return and write what they took; again for each variation.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        ``steps`` are run; the first `warm_up` of them don't count.
    stack : str
        ``unsloth`` or ``trl``.
    warm_up, seed : int
        Steps that don't count; seed of the adapter, of the order of the prompts and of sampling.
    name : str, optional
        Of the JSON file; variations have their change in it.
    vary : sequence of str
        Changes, each measured by itself with the model that is loaded (``unsloth`` only):
        settings in `VARIED` or arguments of GRPOConfig, as ``setting=value``.
    load : dict, optional
        Further arguments of Unsloth's ``from_pretrained``.
    card_gib : float, optional
        Run as on a card with so much memory; the rest is held by another process.
    sampler : sequence of str
        How vLLM samples instead of its own way (``unsloth`` only): see `lab.samplers`.

    Returns
    -------
    list of dict
        The profile's measurement, then one for each variation.
    """
    import torch

    name = name or f"{profile.name}-{stack}"
    rewards = [strict_format_reward_func, equation_reward_func]
    results = []
    with Ballast(card_gib) as ballast, MemoryWatch(ballast.mib) as watch:
        card = card_limits()
        watch.forget()
        start = time.monotonic()
        if stack == "unsloth":
            make = samplers.load_with(sampler, make_model)
            model, tokenizer = make(profile, seed, **(load or {}))
        from helpers.training import collecting_between_steps, prompt_dataset

        dataset = prompt_dataset(load_split(profile.puzzles, "train"), seed)
        for change in ((), *((item,) for item in vary)):
            changed, arguments = split_changes(profile, change)
            run = FOLDER / re.sub(r"[^\w.-]+", "-", "-".join([name, *change])).strip("-")
            if stack == "unsloth":
                config = make_config(changed, run, seed, save_strategy="no", **arguments)
                trainer = make_trainer(model, tokenizer, config, rewards, dataset)
            else:
                trainer = plain_trainer(changed, run, rewards, dataset, seed)
            loaded = time.monotonic() - start
            print(f"{run.name}: ready after {loaded:.0f} s", flush=True)
            clock = StepClock(trainer)
            torch.cuda.reset_peak_memory_stats()
            with collecting_between_steps(trainer):
                trainer.train()
            found = summary(clock.steps, warm_up)
            results.append({
                "name": run.name, "stack": stack, "seed": seed, "change": list(change),
                "command": "python -m lab.benchmark " + " ".join(sys.argv[1:]),
                "profile": profiles.settings(changed) | {"model": (  # of a folder its name alone
                    changed.model if changed.revision else os.path.basename(changed.model))},
                "loaded_with": load or {}, "sampler": list(sampler), "card_gib": card_gib,
                "environment_variables": {
                    k: v for k, v in sorted(os.environ.items())  # no folder of this machine
                    if k.startswith(("UNSLOTH_", "VLLM_")) and os.sep not in v},
                "loading_seconds": None if change else round(loaded, 1),
                **found, **shares(trainer.model, clock.steps[warm_up:], found, card),
                "whole_gpu_peak_mib": watch.peak(),
                "torch_peak_mib": torch.cuda.max_memory_allocated() >> 20,
                "card": card, "steps": clock.steps,
                **environment(), "cpu_cores": os.cpu_count(), "machine": platform.machine(),
            })
            write_json(FOLDER / f"{run.name}.json", results[-1])
            del trainer
            gc.collect()
            torch.cuda.empty_cache()
            watch.forget()
    return results


def main():
    """Read the command line, measure, print the results."""
    parser = argparse.ArgumentParser(prog="python -m lab.benchmark", description=__doc__)
    parser.add_argument("--profile", default="smollm2", choices=["smollm2", "a100"])
    parser.add_argument("--stack", default="unsloth", choices=["unsloth", "trl"])
    parser.add_argument("--steps", type=int, default=23)
    parser.add_argument("--warm-up", type=int, default=3, help="steps that don't count")
    parser.add_argument("--name", help="of the result's file; <profile>-<stack> if not given")
    parser.add_argument("--random-weights", action="store_true",
                        help="a100: random weights of the architecture, for worst-case lengths")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE",
                        help="settings of the profile to change, e.g. max_num_seqs=32")
    parser.add_argument("--vary", nargs="*", default=[], metavar="SETTING=VALUE",
                        help="changes to measure, too, one after the other, without loading "
                        "anew; of the batch or of GRPOConfig, e.g. micro_batch=16")
    parser.add_argument("--load", nargs="*", default=[], metavar="ARGUMENT=VALUE",
                        help="further arguments of Unsloth's from_pretrained, e.g. "
                        "enable_prefix_caching=false")
    parser.add_argument("--card-gib", type=float, metavar="GIB",
                        help="hold the rest of the GPU in another process, as if it had only so "
                        "much memory")
    samplers.add_option(parser)
    options = parser.parse_args()
    try:
        profile = profiles.choose(options.profile)
        profile = changed(replace(profile, steps=options.steps), options.set)
        samplers.check_choice(options.sampler, profile)
        for item in options.vary:
            split_changes(profile, [item])
        load = {name: json.loads(value) for name, value in
                (item.split("=", 1) for item in options.load)}
    except (ValueError, profiles.NoGPU) as error:
        parser.error(str(error))
    if options.stack == "trl" and (options.vary or load or options.sampler):
        parser.error("--vary, --load and --sampler are for the stack unsloth")
    if options.random_weights:
        folder = FOLDER / "random_weights"
        if not list(folder.glob("*.safetensors")):
            random_weights(profile, folder)
        profile = replace(profile, model=str(folder), revision=None)
    for result in measure(profile, options.stack, options.warm_up, name=options.name,
                          vary=options.vary, load=load, card_gib=options.card_gib,
                          sampler=options.sampler):
        print(json.dumps({k: v for k, v in result.items() if k not in ("steps", "profile")},
                         indent=1))
        print("written to", show(FOLDER / f"{result['name']}.json"))


if __name__ == "__main__":
    main()
