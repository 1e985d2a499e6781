"""What a sampled token costs: ``python -m lab.sampling --max-num-seqs 320`` (needs a GPU).

Profile a100's architecture with random weights, loaded as notebook 04 loads it (Unsloth and vLLM).
Writes runs/benchmarks/sampling-<name>.json. ``--profile-steps`` also writes where the time goes,
by Python function and by kernel; ``--sampler`` samples in another way (`lab.samplers`), and
``--check`` shows whether that is still the policy.
"""

import argparse
import cProfile
import pstats
import shlex
import sys
import time
from dataclasses import replace

from helpers import profiles
from helpers.models import load_model
from helpers.paths import show
from helpers.runs import environment, write_json
from lab import samplers
from lab.benchmark import FOLDER, random_weights

WAYS = {  # what trl asks for today, and what could be asked instead
    "today": {"logprobs": 0},
    "no log-probs": {},
    "flat log-probs": {"logprobs": 0, "flat_logprobs": True},
    "decoded": {"logprobs": 0, "detokenize": True},
}
PROMPT_TOKENS = 200


def generate(engine, adapter, prompt, completions, tokens, **options):
    """Sample `completions` of exactly `tokens` tokens; return the seconds that it took."""
    from vllm import SamplingParams

    settings = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True,
                              **{"detokenize": False} | options)
    start = time.monotonic()
    engine.generate([{"prompt_token_ids": prompt}] * completions, settings, lora_request=adapter,
                    use_tqdm=False)
    return time.monotonic() - start


def profile_steps(name, sample):
    """Write what 24 tokens cost, by Python function and by kernel, into two text files."""
    import torch

    python = cProfile.Profile()
    python.runcall(sample, 24)
    with open(FOLDER / f"sampling-{name}-python.txt", "w") as file:
        pstats.Stats(python, stream=file).sort_stats("tottime").print_stats(45)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as kernels:
        sample(24)
        torch.cuda.synchronize()
    (FOLDER / f"sampling-{name}-kernels.txt").write_text(
        kernels.key_averages().table(sort_by="self_device_time_total", row_limit=30))


def main():
    """Read the command line, load the model, measure, write the table."""
    parser = argparse.ArgumentParser(prog="python -m lab.sampling", description=__doc__)
    parser.add_argument("--quantisation", choices=["nf4"], help="16-bit weights if left out")
    parser.add_argument("--max-num-seqs", type=int, default=320,
                        help="completions at a time; Unsloth takes 256 for 'not given'")
    parser.add_argument("--vllm-gib", type=float, default=30.0)
    parser.add_argument("--completions", type=int, nargs="+", default=[8, 64, 128, 256])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help="what is asked for; all of them if left out: " + ", ".join(WAYS))
    parser.add_argument("--name")
    parser.add_argument("--profile-steps", action="store_true")
    parser.add_argument("--check", action="store_true",
                        help="then compare vLLM's log-probs with the policy's")
    samplers.add_option(parser)
    options = parser.parse_args()
    try:
        samplers.check_choice(options.sampler,
                              replace(profiles.A100, quantisation=options.quantisation))
    except ValueError as error:
        parser.error(str(error))
    name = options.name or f"{options.quantisation or '16bit'}-{options.max_num_seqs}"
    weights = FOLDER / "random_weights"
    if not list(weights.glob("*.safetensors")):
        random_weights(profiles.A100, weights)
    profile = replace(profiles.choose("a100"), model=str(weights), revision=None,
                      quantisation=options.quantisation, max_num_seqs=options.max_num_seqs,
                      vllm_gib=options.vllm_gib)
    start = time.monotonic()
    model, tokenizer = samplers.load_with(options.sampler, load_model)(profile)
    loading = round(time.monotonic() - start, 1)
    model.save_lora(str(FOLDER / "lora"))
    adapter = model.load_lora(str(FOLDER / "lora"), load_tensors=True)
    prompt = tokenizer("The quick brown fox " * 60)["input_ids"][:PROMPT_TOKENS]

    def sample(tokens, completions=64, lora=True, **settings):
        return generate(model.vllm_engine, adapter if lora else None, prompt, completions, tokens,
                        **settings)

    sample(32, logprobs=0)  # what the first call compiles is not counted
    rows = []
    for completions in options.completions:
        for way in options.ways:
            for lora in (True, False):
                seconds = min(sample(options.tokens, completions, lora, **WAYS[way])
                              for _ in range(2))
                rows.append({"way": way, "completions": completions, "adapter": lora,
                             "tokens": options.tokens, "seconds": round(seconds, 3),
                             "ms_a_token": round(1000 * seconds / options.tokens, 2),
                             "tokens_per_s": round(completions * options.tokens / seconds)})
                print(rows[-1], flush=True)
    if options.profile_steps:
        profile_steps(name, sample)
    found = {
        "command": "python -m lab.sampling " + shlex.join(sys.argv[1:]),
        "quantisation": options.quantisation, "sampler": options.sampler,
        "max_num_seqs": options.max_num_seqs, "loading_seconds": loading,
        "prompt_tokens": PROMPT_TOKENS, "rows": rows, **environment()}
    write_json(FOLDER / f"sampling-{name}.json", found)  # before the check: it may fail
    if options.check:
        found["check"] = samplers.compare_log_probs(model, tokenizer, FOLDER / "lora",
                                                    options.sampler)
        print(found["check"])
        write_json(FOLDER / f"sampling-{name}.json", found)
    print("written to", show(FOLDER / f"sampling-{name}.json"))


if __name__ == "__main__":
    main()
