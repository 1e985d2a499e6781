"""Let vLLM sample from NF4 weights that were dequantised once, at loading.

Each NF4 linear layer of vLLM gets a 16-bit copy of its own quantised values. The 4-bit weights
stay: Unsloth's trainer shares them and reads them as before, so both still have the same values.
The copies of 3B's layers take 5.2 GiB, which vLLM counts as weights: give it more memory.
"""

from lab.samplers import vllm_class, vllm_model

PACKED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "self_attn.o_proj": ("o_proj",),
          "mlp.gate_up_proj": ("gate_proj", "up_proj"), "mlp.down_proj": ("down_proj",)}


def dequantised(weight):
    """Return the values of a layer of vLLM in 16 bits.

    Parameters
    ----------
    weight : torch.nn.Parameter
        vLLM's: the packed values of several projections, one after the other, with bitsandbytes'
        state and the first byte of each.

    Returns
    -------
    torch.Tensor
        (outputs of all projections, inputs), in the type that the states name.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    states, offsets = weight.bnb_quant_state, [int(at) for at in weight.bnb_shard_offsets]
    rows = [states[i].shape[0] for i in range(len(states))]
    copy = torch.empty(sum(rows), states[0].shape[1], dtype=states[0].dtype, device=weight.device)
    for i, part in enumerate(copy.split(rows)):
        part.copy_(dequantize_4bit(weight.data[offsets[i]:offsets[i + 1]], states[i]))
    return copy


def install():
    """Change vLLM's class of NF4 layers; layers that are loaded afterwards are concerned."""
    from torch.nn.functional import linear

    kind = vllm_class("vllm.model_executor.layers.quantization.bitsandbytes",
                      "BitsAndBytesLinearMethod", "apply", "process_weights_after_loading")
    own_process, own_apply = kind.process_weights_after_loading, kind.apply

    def process_weights_after_loading(self, layer):
        own_process(self, layer)
        if not self.quant_config.load_in_8bit and hasattr(layer.weight, "bnb_quant_state"):
            layer.weight_16 = dequantised(layer.weight)

    def apply(self, layer, x, bias=None):
        copy = getattr(layer, "weight_16", None)
        return own_apply(self, layer, x, bias) if copy is None else linear(x, copy, bias)

    kind.process_weights_after_loading, kind.apply = process_weights_after_loading, apply


def pairs(model):
    """Return (LoRA layer of the trainer, its rows of vLLM's copy) of all layers with a copy."""
    trained, found = dict(model.named_modules()), []
    start = next(name for name in trained if name.endswith("layers.0")).removesuffix("0")
    for i, layer in enumerate(vllm_model(model).model.layers):
        for where, names in PACKED.items():
            copy, row = getattr(layer.get_submodule(where).base_layer, "weight_16", None), 0
            for name in names if copy is not None else ():
                module = trained[f"{start}{i}.{where.partition('.')[0]}.{name}"]
                rows = module.base_layer.weight.quant_state.shape[0]
                found.append((module, copy[row:row + rows]))
                row += rows
    return found


def trained_values(module):
    """Return what the trainer dequantises a LoRA layer's 4-bit weights to, (outputs, inputs)."""
    import torch
    from unsloth.kernels.utils import fast_dequantize

    weight = module.base_layer.weight
    with torch.no_grad():
        return fast_dequantize(weight, weight.quant_state)


def compare_with_trainer(model):
    """Return the largest difference of vLLM's copies and what Unsloth's trainer dequantises."""
    both = pairs(model)
    if not both:
        raise ValueError("no layer of vLLM has a copy: install() comes before loading")
    worst = max((trained_values(module).float() - copy.float()).abs().max().item()
                for module, copy in both)
    size = sum(copy.numel() * copy.element_size() for _, copy in both)
    return {"layers_compared": len(both), "largest_difference": worst,
            "copies_gib": round(size / 2**30, 2)}
