"""Let one matrix product give W x and A x: LoRA in vLLM without its shrink kernels and zeros.

The rows of the adapter's A are put under those of W in one tensor; vLLM's and the trainer's W
become views of its upper part, vLLM's A of its lower part. A layer is then one product, (W; A) x,
and one small kernel that adds B (A x). One adapter at a time; a batch without any keeps W x alone.
Batches of more than LIMIT rows (prompts) go vLLM's own way, over the same tensors. A x is rounded
to 16 bits, as in Unsloth's training; vLLM's kernels keep 32.
"""

import itertools

import triton
import triton.language as tl

from lab.samplers import vllm_class

LIMIT = 512  # rows
BLOCK = 64  # outputs that a program of the kernel writes, or a multiple of it


@triton.jit
def _add_product(out, b, y, slot, M, N, WIDTH, S1, S2, R: tl.constexpr, BM: tl.constexpr,
                 BN: tl.constexpr):
    """Write out[:, :N] + out[:, N + its slice's R columns] b.T; of rows of slot -1 out[:, :N]."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    first = tl.program_id(0) * BN
    columns = first + tl.arange(0, BN)
    inner = tl.arange(0, R)
    part = (first >= S1).to(tl.int32) + (first >= S2).to(tl.int32)
    there = rows < M
    b_tile = tl.load(b + columns[None, :] * R + inner[:, None])
    h = tl.load(out + rows[:, None] * WIDTH + (N + part * R + inner)[None, :],
                mask=there[:, None], other=0.0)
    base = tl.load(out + rows[:, None] * WIDTH + columns[None, :], mask=there[:, None], other=0.0)
    used = tl.load(slot + rows, mask=there, other=-1) >= 0
    product = tl.where(used[:, None], tl.dot(h, b_tile), 0.0)
    tl.store(y + rows[:, None] * N + columns[None, :],
             (base.to(tl.float32) + product).to(y.dtype.element_ty), mask=there[:, None])


def add_product(out, b, slot, outputs):
    """Return W x + B A x, (rows, outputs), from (W; A) x.

    Parameters
    ----------
    out : torch.Tensor
        (rows, outputs + slices x rank), the product of the wide tensor.
    b : torch.Tensor
        (outputs, rank), the slices' B under each other; the rank is a power of 2 from 16 on.
    slot : torch.Tensor
        (rows,) at least: the adapter's slot, or -1.
    outputs : sequence of int
        The sizes of at most three slices; multiples of BLOCK.
    """
    import torch

    rows, total = out.shape[0], sum(outputs)
    ends = [*itertools.accumulate(outputs[:-1]), total, total][:2]
    # the sizes that were fastest with 64 rows on an H100; a block lies within one slice
    wide = total >= 8192 and not any(n % (2 * BLOCK) for n in outputs)
    block_m, block_n = 16 if rows <= 16 else 32, 2 * BLOCK if wide else BLOCK
    y = torch.empty(rows, total, dtype=out.dtype, device=out.device)
    _add_product[(total // block_n, triton.cdiv(rows, block_m))](
        out, b, y, slot, rows, total, out.shape[1], *ends, R=b.shape[1], BM=block_m, BN=block_n,
        num_warps=4)
    return y


def widen(layer):
    """Give a LoRA layer of vLLM the wide tensor; W, A and B become views of it and of `product`."""
    import torch

    base, rank = layer.base_layer, layer.lora_b_stacked[0].shape[-1]
    copy = getattr(base, "weight_16", None)  # of lab.nf4_copies: no trainer shares it
    weight = base.weight if copy is None else copy
    slots, outputs = layer.lora_a_stacked[0].shape[0], tuple(layer.output_slices)
    if (slots != 1 or weight.ndim != 2 or weight.dtype not in (torch.bfloat16, torch.float16)
            or weight.dtype != layer.lora_a_stacked[0].dtype or any(n % BLOCK for n in outputs)
            or len(outputs) > 3 or weight.shape[0] != sum(outputs) or rank not in (16, 32, 64)):
        raise ValueError(f"--sampler wide takes 16-bit weights, one adapter of rank 16, 32 or 64, "
                         f"and at most three slices of multiples of {BLOCK}; here are {slots} of "
                         f"rank {rank}, slices {outputs}, weights {weight.dtype} "
                         f"{tuple(weight.shape)}")
    (rows, width), number = weight.shape, len(outputs)
    wide = torch.zeros(rows + number * rank, width, dtype=weight.dtype, device=weight.device)
    wide[:rows].copy_(weight.data)
    if copy is None:
        base.weight.data = wide[:rows]
    else:
        base.weight_16 = wide[:rows]
    product = torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device)
    layer.lora_a_stacked = tuple(part.view(1, 1, rank, width) for part in wide[rows:].split(rank))
    layer.lora_b_stacked = tuple(part.view(1, 1, -1, rank) for part in product.split(outputs))
    bias = getattr(base, "bias", None)
    layer.wide, layer.product, layer.wide_bias = wide, product, None if bias is None else (
        torch.cat([bias.data, bias.data.new_zeros(number * rank)]))
    del weight, copy
    torch.cuda.empty_cache()  # else the old tensors stay with the allocator


def install():
    """Change vLLM's LoRA layers; those that are made afterwards are concerned."""
    import torch
    from torch.nn.functional import linear

    layers, create = "vllm.lora.layers.", "create_lora_weights"
    linear_layer = vllm_class(layers + "base_linear", "BaseLinearLayerWithLoRA", create, "apply",
                              "_get_quant_method")
    merged_layer = vllm_class(layers + "column_parallel_linear",
                              "MergedColumnParallelLinearWithLoRA", create)
    own_apply = linear_layer.apply
    for kind in (linear_layer, merged_layer):  # the second has this method of its own
        def create_lora_weights(self, *arguments, own=kind.create_lora_weights, **options):
            own(self, *arguments, **options)
            with torch.no_grad():
                widen(self)

        kind.create_lora_weights = create_lora_weights

    def apply(self, x, bias=None):
        if x.ndim != 2 or x.shape[0] > LIMIT:
            return own_apply(self, x, bias)
        meta = self.punica_wrapper.token_mapping_meta
        if meta.no_lora_flag_cpu.item():
            return self._get_quant_method().apply(self.base_layer, x, bias)
        out = linear(x, self.wide, None if bias is None else self.wide_bias)
        return add_product(out, self.product, meta.token_lora_mapping, self.output_slices)

    linear_layer.apply = apply
