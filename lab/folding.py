"""Sample from weights with the adapter folded in, rounded at random so that nothing is lost.

`lab.merging` rounds W + s B A to the nearest 16-bit number. W lies on the grid of 16-bit numbers
already, so a change smaller than half a step is lost whole, and after a few steps of training most
are that small. Here each number goes up or down with the probability that keeps the mean
(stochastic rounding), drawn anew before each sampling: ``python -m lab.folding`` compares the two
on a CPU.

The trainer never sees folded weights, so nothing is put back for it. In 16 bits it gets weights of
its own (3B: 5.2 GiB); with NF4 it has them, and vLLM has the copies of `lab.nf4_copies`.
"""


def round_at_random(exact):
    """Round to bfloat16's numbers in place, up or down at random, keeping the mean.

    Parameters
    ----------
    exact : torch.Tensor
        float32, finite; it is overwritten.

    Returns
    -------
    torch.Tensor
        The same tensor. Numbers that bfloat16 has stay what they are.
    """
    import torch

    # A float's bits without the sign count its size upwards, and bfloat16 has the upper 16 of them.
    # A draw added to the lower 16 carries as often as they are far from the lower neighbour.
    bits = exact.view(torch.int32)
    bits += torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device)
    bits &= -(1 << 16)
    return exact


def install(model, inner):
    """Make a model's engine sample from folded weights whenever an adapter is asked for.

    It is the policy's adapter as it is at that moment, whichever the request names.

    Parameters
    ----------
    model : peft.PeftModel
        Unsloth's, with vLLM; in bfloat16, or in NF4 and loaded after `lab.nf4_copies.install`.
    inner : torch.nn.Module
        The model inside vLLM.

    Raises
    ------
    ValueError
        If vLLM has no bfloat16 weights for a layer that has an adapter, or does not share them with
        the trainer: it would sample from the model without its adapter.
    """
    import torch

    layers = [m for m in model.modules() if "default" in getattr(m, "lora_A", {})]
    if all(layer.base_layer.weight.dtype == torch.bfloat16 for layer in layers):
        targets = []  # (the trainer's layer, what vLLM reads)
        spans = [(p.data_ptr(), p.data_ptr() + p.nbytes) for p in inner.parameters()]
        for layer in layers:
            shared = layer.base_layer.weight.data
            if not any(start <= shared.data_ptr() < end for start, end in spans):
                raise ValueError("vLLM has weights of its own, and would not see folded ones")
            layer.base_layer.weight.data = shared.clone()  # vLLM's graphs know the old address
            targets.append((layer, shared))

        def clean(layer):
            return layer.base_layer.weight.data
    else:
        from lab.nf4_copies import pairs
        from lab.nf4_copies import trained_values as clean

        targets = pairs(model)
    found = sum(sampled.dtype == torch.bfloat16 for _, sampled in targets)
    if not 0 < found == len(layers):
        raise ValueError(f"{found} of {len(layers)} layers have bfloat16 weights in vLLM")
    engine, generate = model.vllm_engine, model.vllm_engine.generate
    held = {"folded": False}

    @torch.inference_mode()  # in place, whatever mode the tensors were made in
    def put(folded):
        for layer, sampled in targets:
            if not folded:
                sampled.copy_(clean(layer))
                continue
            b, a = layer.lora_B["default"].weight.float(), layer.lora_A["default"].weight.float()
            sampled.copy_(round_at_random(torch.addmm(
                clean(layer).float(), b, a, alpha=layer.scaling["default"])))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        held["folded"] = folded

    def from_folded(*arguments, lora_request=None, **options):
        if lora_request is not None or held["folded"]:
            engine.reset_prefix_cache()  # keys and values of prompts are those of other weights
            put(lora_request is not None)
        return generate(*arguments, **options)

    engine.generate = from_folded


def kept(size, width=2048, rank=32, inputs=256):
    """Return how much of a small change of a layer is left after each kind of rounding.

    Parameters
    ----------
    size : float
        Standard deviation of B; A is drawn as peft draws it, the scaling is 2.
    width, rank, inputs : int
        Of a square layer, of its adapter; how many random inputs it gets.

    Returns
    -------
    dict of str to float
        ``steps``: the median change in steps of the weights' grid. ``nearest, random``: the share
        of it that is in the outputs. ``noise``: what random rounding adds to W x, as a share.
    """
    import torch

    torch.manual_seed(0)
    weights = (torch.randn(width, width) * 0.02).bfloat16().float()
    x = torch.randn(inputs, width)
    change = 2 * torch.randn(width, rank) * size @ (torch.rand(rank, width) * 2 - 1) / width**0.5
    step = 2.0 ** (weights.abs().clamp_min(1e-30).log2().floor() - 7)
    wanted = x @ change.T
    got = {"nearest": x @ ((weights + change).bfloat16().float() - weights).T,
           "random": x @ (round_at_random(weights + change) - weights).T}
    shares = {name: (there * wanted).sum() / wanted.pow(2).sum() for name, there in got.items()}
    found = {"steps": (change.abs() / step).median()} | shares | {
        "noise": (got["random"] - wanted).std() / (x @ weights.T).std()}
    return {name: value.item() for name, value in found.items()}


def main():
    """Print what both kinds of rounding keep of changes of several sizes."""
    print("size of B | change in steps | kept by nearest | by random | noise of the latter")
    for size in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2):
        row = kept(size)
        print(f"{size:9.0e} | {row['steps']:15.3f} | {row['nearest']:15.3f} | "
              f"{row['random']:9.3f} | {row['noise']:.5f}")


if __name__ == "__main__":
    main()
