"""The ways of sampling without vLLM: rounding, copies of NF4, the wide product, the commands."""

import importlib
import json
import re
import sys
import types
from dataclasses import replace

import pytest
import torch

from helpers import profiles
from helpers.paths import ROOT
from lab import benchmark, folding, nf4_copies, samplers, sampling

NF4, BF16 = profiles.A100, replace(profiles.A100, quantisation=None)


def module(**attributes):
    made = torch.nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def vllm_with(monkeypatch, module, version=samplers.SEEN_WITH, **classes):
    """Put a vLLM of these classes in the place of the real one, installed or not."""
    names = module.split(".")
    for end in range(1, len(names) + 1):
        made = types.ModuleType(".".join(names[:end]))
        if end == 1 and "vllm" in sys.modules and not hasattr(sys.modules["vllm"], "__file__"):
            continue  # made before
        made.__version__, made.__path__ = version, []
        monkeypatch.setitem(sys.modules, made.__name__, made)
    for name, one in classes.items():
        setattr(made, name, one)


# ---- rounding

def test_rounding_at_random_keeps_the_mean_and_the_nearest_does_not():
    one, step = torch.tensor(1.0), 2.0 ** -7  # the next number of bfloat16 after 1
    for sign in (1, -1):
        exact = sign * (one + 0.2 * step)
        drawn = folding.round_at_random(exact.repeat(100_000))
        assert set(drawn.tolist()) == {sign * 1.0, sign * (1 + step)}
        assert (drawn.mean() - exact).abs() < 0.01 * step  # six standard errors are 0.0076
        assert exact.bfloat16() == sign  # all of the change is lost


def test_numbers_of_bfloat16_stay_what_they_are():
    exact = (torch.randn(10_000) * 10.0 ** torch.randint(-20, 20, (10_000,))).bfloat16().float()
    exact[:2] = torch.tensor([0.0, -0.0])
    assert torch.equal(folding.round_at_random(exact.clone()), exact)


def test_small_changes_of_a_layer_are_kept_at_random_only():
    found = folding.kept(1e-5, width=1024)
    assert found["steps"] < 0.1 and found["nearest"] < 0.2
    assert found["random"] == pytest.approx(1, abs=0.02) and found["noise"] < 0.001
    assert folding.kept(1e-2, width=256)["nearest"] == pytest.approx(1, abs=0.01)


def lora_layer(width=64, rank=16):
    def linear(inputs, outputs, **options):
        return torch.nn.Linear(inputs, outputs, bias=False, **options)

    layer = module(base_layer=linear(width, width, dtype=torch.bfloat16), scaling={"default": 2},
                   lora_A=torch.nn.ModuleDict({"default": linear(width, rank)}),
                   lora_B=torch.nn.ModuleDict({"default": linear(rank, width)}))
    layer.lora_B["default"].weight.data.mul_(1e-3)
    return layer


def test_vllm_samples_from_folded_weights_and_the_trainer_keeps_its_own():
    torch.manual_seed(0)
    layer = lora_layer()
    model = module(layer=layer)
    shared, clean = layer.base_layer.weight.data, layer.base_layer.weight.detach().clone()
    emptied = []

    class Engine:
        def generate(self, *arguments, **options):
            assert "lora_request" not in options  # the adapter's kernels are not needed
            return shared.float()

        def reset_prefix_cache(self):
            emptied.append(True)

    model.vllm_engine = Engine()
    with pytest.raises(ValueError, match="vLLM has weights of its own"):
        folding.install(model, module(weight=torch.nn.Parameter(clean)))
    folding.install(model, module(packed=torch.nn.Parameter(shared)))  # the same memory
    assert torch.equal(model.vllm_engine.generate([]), clean.float()) and not emptied
    draws = torch.stack([model.vllm_engine.generate([], lora_request="it") for _ in range(300)])
    change = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    got = draws.mean(0) - clean.float()
    assert ((got * change).sum() / change.pow(2).sum()).item() == pytest.approx(1, abs=0.02)
    assert len(emptied) == 300 and torch.equal(layer.base_layer.weight, clean)
    assert torch.equal(model.vllm_engine.generate([]), clean.float()) and len(emptied) == 301


# ---- copies of NF4 weights

def two_models():
    """Return a policy of one layer with numbered rows, and vLLM's layer of the same numbers."""
    sides = [module(self_attn=module(), mlp=module()) for _ in range(2)]
    number = 0
    for where, names in nf4_copies.PACKED.items():
        part, packed = where.split(".")
        values = []
        for name in names:
            number += 1
            values.append(torch.full((4 + number, 8), float(number), dtype=torch.bfloat16))
            state = types.SimpleNamespace(shape=values[-1].shape)
            setattr(getattr(sides[0], part), name, module(values=values[-1], base_layer=module(
                weight=types.SimpleNamespace(quant_state=state))))
        setattr(getattr(sides[1], part), packed, module(
            base_layer=module(weight_16=torch.cat(values)), lora_a_stacked=()))
    inner = module(model=module(layers=torch.nn.ModuleList([sides[1]])))
    engine = inner  # under the names of vLLM's nesting
    for name in ("model", "model_runner", "driver_worker", "model_executor", "engine_core",
                 "engine_core", "llm_engine"):
        engine = types.SimpleNamespace(**{name: engine})
    return module(layers=torch.nn.ModuleList([sides[0]]), vllm_engine=engine), sides[1]


def test_each_projection_is_compared_with_its_own_rows(monkeypatch):
    model, inner = two_models()
    monkeypatch.setattr(nf4_copies, "trained_values", lambda module: module.values)
    found = nf4_copies.compare_with_trainer(model)
    assert found["layers_compared"] == 7 and found["largest_difference"] == 0
    inner.self_attn.qkv_proj.base_layer.weight_16[-1, -1] += 2
    assert nf4_copies.compare_with_trainer(model)["largest_difference"] == 2
    samplers.confirm(["once"], samplers.vllm_model(model))
    del inner.mlp.down_proj.base_layer.weight_16
    with pytest.raises(RuntimeError, match="once reached 3 of vLLM's 4 layers"):
        samplers.confirm(["once"], samplers.vllm_model(model))


def test_copies_are_what_bitsandbytes_dequantises(monkeypatch):
    functional = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes here")

    class Method:
        quant_config = types.SimpleNamespace(load_in_8bit=False)

        def process_weights_after_loading(self, layer):
            pass

        def apply(self, layer, x, bias=None):
            return "vLLM's own"

    vllm_with(monkeypatch, "vllm.model_executor.layers.quantization.bitsandbytes",
              BitsAndBytesLinearMethod=Method)
    nf4_copies.install()
    torch.manual_seed(0)
    made = [functional.quantize_4bit(torch.randn(n, 128, dtype=torch.bfloat16) * 0.02,
                                     compress_statistics=True, quant_type="nf4")
            for n in (128, 64, 64)]
    wanted = torch.cat([functional.dequantize_4bit(*one) for one in made])
    layer = module(weight=torch.nn.Parameter(torch.cat([values for values, _ in made]), False))
    x, bias = torch.randn(5, 128, dtype=torch.bfloat16), torch.randn(256, dtype=torch.bfloat16)
    Method().process_weights_after_loading(layer)
    assert Method().apply(layer, x) == "vLLM's own"  # not in 4 bits: no copy
    layer.weight.bnb_quant_state = {i: state for i, (_, state) in enumerate(made)}
    layer.weight.bnb_shard_offsets = torch.tensor([0, *(len(v) for v, _ in made)]).cumsum(0)
    Method().process_weights_after_loading(layer)
    assert torch.equal(layer.weight_16, wanted) and wanted.std() > 0.01
    assert torch.equal(Method().apply(layer, x, bias), torch.nn.functional.linear(x, wanted, bias))


# ---- the wide product

@pytest.fixture
def wide_lora(monkeypatch):
    """lab.wide_lora with kernels that run on the CPU, for one test."""
    pytest.importorskip("triton", reason="no triton here")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read at import
    sys.modules.pop("lab.wide_lora", None)
    yield importlib.import_module("lab.wide_lora")
    del sys.modules["lab.wide_lora"], sys.modules["lab"].wide_lora


@pytest.mark.parametrize("outputs", [(128, 64, 64), (4096, 4096), (4160, 4096)])
def test_the_wide_product_is_that_of_weights_and_adapter(outputs, monkeypatch, wide_lora):
    rank, width = 16, 32

    class Layer(torch.nn.Module):
        def create_lora_weights(self):
            made = {"dtype": torch.float16}
            self.lora_a_stacked = tuple(torch.zeros(1, 1, rank, width, **made) for _ in outputs)
            self.lora_b_stacked = tuple(torch.zeros(1, 1, n, rank, **made) for n in outputs)

        def _get_quant_method(self):
            return types.SimpleNamespace(apply=lambda base, x, bias: x @ base.weight.T + bias)

        def apply(self, x, bias=None):
            return "vLLM's own"

    class Merged(Layer):
        create_lora_weights = Layer.create_lora_weights  # its own, as vLLM's has

    vllm_with(monkeypatch, "vllm.lora.layers.base_linear", BaseLinearLayerWithLoRA=Layer)
    vllm_with(monkeypatch, "vllm.lora.layers.column_parallel_linear",
              MergedColumnParallelLinearWithLoRA=Merged)
    wide_lora.install()
    torch.manual_seed(0)
    layer = Merged()
    layer.base_layer = torch.nn.Linear(width, sum(outputs), dtype=torch.float16)
    layer.output_slices, before = outputs, layer.base_layer.weight.detach().clone()
    layer.create_lora_weights()
    weight, bias = layer.base_layer.weight.detach(), layer.base_layer.bias.detach()
    assert torch.equal(weight, before)
    assert weight.data_ptr() == layer.wide.data_ptr()  # one tensor
    for stacked in (*layer.lora_a_stacked, *layer.lora_b_stacked):  # as vLLM loads an adapter
        stacked.copy_(torch.randn_like(stacked) * 0.1)
    slot = torch.tensor([0, -1] + [0] * 18 + [7] * 9)  # longer than the batch, as vLLM's
    flag = torch.tensor([False])
    layer.punica_wrapper = types.SimpleNamespace(token_mapping_meta=types.SimpleNamespace(
        no_lora_flag_cpu=flag, token_lora_mapping=slot))
    x = torch.randn(20, width, dtype=torch.float16)
    base = x.double() @ before.double().T + bias.double()
    added = torch.cat([x.double() @ a[0, 0].double().T @ b[0, 0].double().T for a, b in zip(
        layer.lora_a_stacked, layer.lora_b_stacked, strict=True)], dim=1)
    added[1] = 0  # the token without an adapter
    got = layer.apply(x, bias).double()
    assert (got - base - added).abs().max() < 0.01 < 0.2 < added.abs().max()
    flag[0] = True
    assert (layer.apply(x, bias).double() - base).abs().max() < 0.01
    assert layer.apply(torch.zeros(wide_lora.LIMIT + 1, width)) == "vLLM's own"
    layer.output_slices = (outputs[0] + 2, outputs[1] - 2)  # a block would lie in two slices
    with pytest.raises(ValueError, match="multiples of 64; here are 1 of rank 16"):
        layer.create_lora_weights()


# ---- what is chosen

@pytest.mark.parametrize("sampler, profile, message", [
    (["wide", "fold"], BF16, "wide and --sampler fold exclude each other"),
    (["once"], BF16, "once is for NF4 weights"),
    (["fold"], NF4, "with NF4 say --sampler once fold"),
    (["wide"], NF4, "with NF4 say --sampler once wide"),
    (["once"], replace(NF4, standby=True), "not tried with vLLM in standby"),
    (["fold"], profiles.CPU, "profile cpu samples without it"),
])
def test_what_does_not_go_together_is_refused(sampler, profile, message):
    with pytest.raises(ValueError, match=message):
        samplers.check_choice(sampler, profile)
    for fits in ((), ["once"], ["once", "wide"], ["fold", "once"]):
        samplers.check_choice(fits, NF4)
    for fits in ((), ["wide"], ["fold"]):
        samplers.check_choice(fits, BF16)


@pytest.mark.parametrize("command, arguments, message", [
    (sampling, ["--sampler", "once"], "once is for NF4"),
    (sampling, ["--quantisation", "nf4", "--sampler", "fold"], "say --sampler once fold"),
    (sampling, ["--sampler", "merged"], "invalid choice"),
    (sampling, ["--ways", "yesterday"], "invalid choice"),
    (benchmark, ["--profile", "a100", "--sampler", "wide"], "say --sampler once wide"),
    (benchmark, ["--profile", "a100", "--stack", "trl", "--sampler", "once"], "stack unsloth"),
])
def test_the_commands_say_so_before_anything_is_loaded(command, arguments, message, monkeypatch,
                                                       capsys):
    monkeypatch.setattr(profiles, "choose", lambda name: NF4)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_another_vllm_is_refused(monkeypatch):
    vllm_with(monkeypatch, "vllm.layers", Linear=type("Linear", (), {"apply": 1}))
    assert samplers.vllm_class("vllm.layers", "Linear", "apply").__name__ == "Linear"
    with pytest.raises(RuntimeError, match="vllm.layers.Linear has no shrink: "):
        samplers.vllm_class("vllm.layers", "Linear", "apply", "shrink")
    with pytest.raises(RuntimeError, match="Gone has no apply"):
        samplers.vllm_class("vllm.layers", "Gone", "apply")
    sys.modules["vllm"].__version__ = "0.26.0"
    with pytest.raises(RuntimeError, match="vLLM 0.25.1, and this is 0.26.0"):
        samplers.vllm_class("vllm.layers", "Linear", "apply")
    pinned = re.search(r"- vllm==(\S+)", (ROOT / "environment.yml").read_text()).group(1)
    assert pinned == samplers.SEEN_WITH, "look at the patched classes again, then move SEEN_WITH"


def test_classes_are_changed_before_loading_and_weights_are_folded_after(monkeypatch):
    order = []
    monkeypatch.setattr(samplers, "prepare_environment", lambda profile: order.append("prepared"))
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    monkeypatch.setattr(nf4_copies, "install", lambda: order.append("once"))
    monkeypatch.setattr(folding, "install", lambda model, inner: order.append("fold"))

    def load(profile, seed, **options):
        order.append(("load", seed, options))
        return two_models()[0], "tokenizer"

    assert samplers.load_with([], load) is load
    samplers.load_with(["fold", "once"], load)(NF4, 3, more=1)
    assert order == ["prepared", "once", ("load", 3, {"more": 1}), "fold"]
    with pytest.raises(ValueError, match="exclude each other"):
        samplers.load_with(["wide", "fold"], load)(BF16, 0)


def test_agreement_tells_the_policy_from_the_model_without_its_adapter():
    torch.manual_seed(0)
    base = -torch.rand(8, 16)
    policy = base + torch.randn(8, 16) * 0.1
    same = samplers.agreement(policy, base, policy)
    assert (same["mean_ratio"], same["largest_difference"], same["kept"]) == (1, 0, 1)
    assert same["mean_absolute_change"] == pytest.approx(0.08, abs=0.02)
    assert samplers.agreement(policy, base, base)["kept"] == 0
    assert samplers.agreement(policy, base, policy - 0.1)["mean_ratio"] == pytest.approx(1.10517)


def test_the_record_says_how_it_was_made(monkeypatch, tmp_path):
    arguments = ["--sampler", "wide", "--ways", "no log-probs", "--completions", "8", "--tokens",
                 "64", "--check", "--name", "try"]
    (tmp_path / "random_weights").mkdir()
    (tmp_path / "random_weights" / "model.safetensors").touch()
    model = types.SimpleNamespace(save_lora=lambda folder: None, vllm_engine=None,
                                  load_lora=lambda folder, load_tensors: "adapter")
    monkeypatch.setattr(profiles, "choose", lambda name: NF4)
    monkeypatch.setattr(sys, "argv", ["sampling", *arguments])
    for name, value in {"FOLDER": tmp_path, "generate": lambda *a, **k: 2.0, "load_model": None,
                        "environment": dict}.items():
        monkeypatch.setattr(sampling, name, value)
    monkeypatch.setattr(samplers, "load_with", lambda sampler, load: lambda profile: (
        model, lambda text: {"input_ids": [1] * 300}))
    monkeypatch.setattr(samplers, "compare_log_probs", lambda *a: {"B 0.02": {"kept": 1.0}})
    sampling.main()
    found = json.loads((tmp_path / "sampling-try.json").read_text())
    assert found["command"] == ("python -m lab.sampling --sampler wide --ways 'no log-probs' "
                                "--completions 8 --tokens 64 --check --name try")
    assert found["sampler"] == ["wide"] and found["check"]["B 0.02"]["kept"] == 1
    assert [(row["way"], row["adapter"], row["ms_a_token"]) for row in found["rows"]] == [
        ("no log-probs", True, 31.25), ("no log-probs", False, 31.25)]
