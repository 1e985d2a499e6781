"""A step of the benchmark with the adapter merged into the weights while vLLM samples.

``python -m lab.merging OPTIONS`` takes the options of ``python -m lab.benchmark``; 16-bit weights
only (``--set quantisation=null``). vLLM and the trainer share one copy of the weights, so a clean
copy is kept beside it and put back after sampling. Sampling then needs no kernels for the adapter.
"""

import sys

from lab import benchmark
from lab.record import make_model


def merge_while_sampling(model):
    """Make a model's vLLM engine sample from merged weights, without the adapter's kernels.

    Parameters
    ----------
    model : peft.PeftModel
        Unsloth's model with 16-bit weights, a LoRA adapter and vLLM.

    Raises
    ------
    ValueError
        If the weights are not in 16 bits: an adapter cannot be merged into rounded ones.
    """
    import torch

    layers = [module for module in model.modules() if "default" in getattr(module, "lora_A", {})]
    if any(layer.base_layer.weight.dtype not in (torch.bfloat16, torch.float16)
           for layer in layers):
        raise ValueError("the adapter can be merged into 16-bit weights only: --set "
                         "quantisation=null")
    clean = [layer.base_layer.weight.detach().clone() for layer in layers]
    engine, generate = model.vllm_engine, model.vllm_engine.generate

    @torch.no_grad()
    def put(merged):
        for layer, weight in zip(layers, clean, strict=True):
            kept = layer.base_layer.weight
            kept.copy_(weight)
            if merged:
                product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                kept.add_((layer.scaling["default"] * product).to(kept.dtype))
        torch.cuda.synchronize()

    def from_merged(*arguments, lora_request=None, **options):
        engine.reset_prefix_cache()  # the keys and values of prompts are those of other weights
        put(merged=True)
        try:
            return generate(*arguments, **options)
        finally:
            put(merged=False)

    engine.generate = from_merged


def _make_model(profile, seed=0, **load):
    model, tokenizer = make_model(profile, seed, **load)
    merge_while_sampling(model)
    return model, tokenizer


if __name__ == "__main__":
    if any(word.startswith("--sa") for word in sys.argv):  # argparse takes --samp, too
        sys.exit("lab.merging is a way of sampling itself: leave out --sampler, or say "
                 "python -m lab.benchmark")
    benchmark.make_model = _make_model
    benchmark.main()
