"""GRPO from scratch, as it stands in notebook 06, agrees with the installed trl.

Piece by piece and as a whole. The functions are those of the notebook's cells.
"""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from helpers import profiles
from helpers.dataset import load_split
from helpers.models import load_model
from helpers.runs import read_rows
from helpers.training import METRICS, prompt_dataset
from lab import beside_trl
from lab.beside_trl import Lockstep, Witness, witness
from lab.report import regrade

CODE = beside_trl.notebook_code()
scratch = SimpleNamespace(**CODE)

SMALL = replace(profiles.CPU, group_size=4, prompts_per_step=4, micro_batch=16, steps=2,
                max_completion_length=50, mask_truncated=True, learning_rate=2e-3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset():
    """Puzzles of three numbers and of two, so that prompts are padded."""
    puzzles = load_split("cpu", "train").sample(30, random_state=0)[["nums", "target"]]
    short = pd.DataFrame({"nums": [[a, 7] for a in range(1, 11)], "target": range(8, 18)})
    return prompt_dataset(pd.concat([puzzles, short]).sample(frac=1, random_state=1))


class Compare(Witness):
    """Keep, for each optimiser step, trl's weights, loss and gradients."""

    def start(self):
        self.steps, self.weights, self.losses = [], None, []
        self.add_callback(self.Gradients(self))
        self.train()
        return self

    def _compute_loss(self, model, inputs):
        self.weights = self.weights or deepcopy(model.state_dict())
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        return loss

    class Gradients(TrainerCallback):
        def __init__(self, trainer):
            self.trainer = trainer

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            here = self.trainer
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
            assert all(gradient.dtype == torch.float64 for gradient in gradients.values())
            here.steps.append((here.weights, here.rolled_out, here.asked, sum(here.losses),
                               gradients))
            here.weights, here.losses = None, []


def with_trl(profile, dataset, folder, monkeypatch, **changes):
    """Train with trl in float64: in float32 rounding alone comes to 1e-5 where gradients cancel."""
    monkeypatch.setattr(beside_trl, "Witness", Compare)
    model, tokenizer = load_model(profile)
    trainer = witness(model.double(), tokenizer, profile, dataset, folder, max_grad_norm=0,
                      save_strategy="no", **changes)
    if profile.beta:
        trainer.ref_model.double()
    return trainer.start().steps, tokenizer


def from_scratch(profile, tokenizer, steps):
    """Yield loss, gradients and clip shares of the same steps, all pieces computed here."""
    model, reference = load_model(profile)[0].double(), load_model(profile)[0].double()
    old_logps = {}
    for weights, rolled_out, asked, _, _ in steps:
        model.load_state_dict(weights)
        tokens = rolled_out["completion_ids"]
        batch = scratch.make_batch(tokenizer, profile, asked[:: profile.group_size], tokens)
        assert torch.equal(batch["prompts"], rolled_out["prompt_ids"])
        assert torch.equal(batch["mask"], rolled_out["completion_mask"])
        torch.testing.assert_close(batch["advantages"], rolled_out["advantages"])
        kept = batch["mask"].any(dim=1)
        assert kept.any() and (not kept.all() or not profile.mask_truncated)
        logps = scratch.token_logps(scratch.completion_logits(model, batch), tokens)
        batch["old_logps"] = old_logps.setdefault(id(rolled_out), logps.detach())
        if profile.beta:
            with torch.no_grad():
                logits = scratch.completion_logits(reference, batch)
            batch["reference_logps"] = scratch.token_logps(logits, tokens)
        loss = scratch.grpo_loss(logps, batch, profile)
        model.zero_grad()
        loss.backward()
        ratio = (logps - batch["old_logps"]).exp().detach()[batch["mask"].bool()]
        yield loss.item(), {name: p.grad for name, p in model.named_parameters()}, ratio


def assert_same_gradients(here, there):
    assert here.keys() == there.keys() and len(here) > 20
    for name, expected in there.items():
        assert expected.norm() > 0, name
        assert (here[name] - expected).norm() <= 1e-5 * expected.norm(), name


CASES = [(loss_type, beta, scale) for loss_type, scale in
         (("grpo", "group"), ("dapo", "group"), ("dr_grpo", "none")) for beta in (0.0, 0.04)]


@pytest.mark.parametrize(("loss_type", "beta", "scale"), CASES)
def test_loss_and_gradients_of_every_parameter(tmp_path, dataset, monkeypatch, loss_type, beta,
                                               scale):
    """Two optimiser steps on one batch: at ratio 1, and where the clip acts."""
    profile = replace(SMALL, loss_type=loss_type, beta=beta)
    if scale == "none":
        plain = scratch.group_advantages
        monkeypatch.setitem(CODE, "group_advantages", lambda r, g: plain(r, g, scale=False))
    steps, tokenizer = with_trl(profile, dataset, tmp_path, monkeypatch, scale_rewards=scale,
                                num_iterations=2)
    assert len(steps) == 2
    results = list(from_scratch(profile, tokenizer, steps))
    for (_, _, _, expected, gradients), (loss, here, _) in zip(steps, results, strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        assert_same_gradients(here, gradients)
    first, second = (ratio for _, _, ratio in results)
    assert (first == 1).all()
    assert (second < 1 - profile.epsilon).any() and (second > 1 + profile.epsilon_high).any()


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_one_pass_is_trls_accumulation_of_two(tmp_path, dataset, monkeypatch, loss_type):
    profile = replace(SMALL, loss_type=loss_type, micro_batch=8, steps=1)
    steps, tokenizer = with_trl(profile, dataset, tmp_path, monkeypatch)
    ((_, _, _, expected, gradients),) = steps
    ((loss, here, _),) = from_scratch(profile, tokenizer, steps)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_same_gradients(here, gradients)


def test_training_in_lockstep_stays_together(tmp_path, dataset):
    """Sampling, rewards, optimiser and metrics, too: three whole steps of both."""
    profile = replace(SMALL, steps=3, learning_rate=2e-4, mask_truncated=False)
    runs = {name: tmp_path / name for name in ("trl", "scratch")}
    for run in runs.values():
        run.mkdir()
    (model, tokenizer), (mine, _) = load_model(profile), load_model(profile)
    start = {name: p.detach().clone() for name, p in mine.named_parameters()}
    trainer = witness(model, tokenizer, profile, dataset, runs["trl"], 5, save_strategy="no")
    trainer.sampling_seed = 5
    steps = beside_trl.training_steps(mine, tokenizer, profile, dataset, 5)
    trainer.add_callback(Lockstep(trainer, steps, runs))
    trainer.train()
    rows = {name: read_rows(run / "metrics.jsonl") for name, run in runs.items()}
    assert [row["step"] for row in rows["scratch"]] == [1, 2, 3]
    assert all(row["same_completions"] == 1 for row in rows["scratch"])
    for here, there in zip(rows["scratch"], rows["trl"], strict=True):
        for name in set(METRICS.values()) - {"step_seconds", "vllm_ratio_mean"}:
            assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-6), name
        assert here["update_seconds"] > 0 < here["generation_seconds"]
    for (name, here), there in zip(mine.named_parameters(), model.parameters(), strict=True):
        moved = (there - start[name]).norm()
        assert moved > 0 and (here - there).norm() < 1e-2 * moved, name


def test_three_updates_on_one_batch_with_clipped_gradients(tmp_path, dataset):
    profile = replace(SMALL, steps=3, beta=10.0)
    (model, tokenizer), (mine, _) = load_model(profile), load_model(profile)
    trainer = witness(model, tokenizer, profile, dataset, tmp_path, num_iterations=3,
                      save_strategy="no")
    trainer.train()
    batch = scratch.make_batch(tokenizer, profile, trainer.asked[:: profile.group_size],
                                  trainer.rolled_out["completion_ids"])
    optimizer = torch.optim.AdamW(mine.parameters(), lr=profile.learning_rate, weight_decay=0.0)
    reference = load_model(profile)[0]
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert len(rows) == 3 and max(row["grad_norm"] for row in rows[:2]) > 2  # clipped to 1
    for there in rows:
        here = scratch.update(mine, optimizer, batch, profile, reference)
        for name in ("loss", "grad_norm", "entropy"):
            assert here[name] == pytest.approx(there[name], rel=1e-3), name
        assert here["clip_ratio"] == pytest.approx(there["clip_ratio/region_mean"], abs=5e-3)
    assert here["clip_ratio"] > 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_is_generates(dataset, temperature):
    """Same random numbers, same tokens: with padded prompts, ended and cut-off completions."""
    model, tokenizer = load_model(profiles.CPU)
    profile = replace(SMALL, max_completion_length=60, temperature=temperature)
    puzzles = [dataset[i] for i in range(6)]
    prompts, mask = scratch.encode_prompts(tokenizer, puzzles)
    assert (mask == 0).any()
    here = scratch.sample_group(model, tokenizer, profile, puzzles,
                                torch.Generator().manual_seed(3))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        there = model.generate(
            input_ids=prompts.repeat_interleave(4, dim=0), do_sample=True, top_k=0, top_p=1.0,
            attention_mask=mask.repeat_interleave(4, dim=0), max_new_tokens=60,
            temperature=temperature)[:, prompts.shape[1]:]
    assert here.shape == there.shape and (here == there).float().mean() > 0.97
    ended = (here == tokenizer.eos_token_id).any(dim=1)
    assert ended.any() and not ended.all()


def test_puzzles_come_in_trls_order():
    for n, size, seed in ((40, 4, 0), (41, 8, 3)):
        sampler = RepeatSampler(range(n), mini_repeat_count=2, batch_size=size, seed=seed)
        order = scratch.puzzle_order(n, size, seed)
        for _ in range(2):  # two rounds through the data
            steps = [next(order) for _ in range(n // size)]
            assert list(sampler) == [i for step in steps for i in step for _ in range(2)]


def test_advantages_of_each_group_alone():
    rewards = torch.tensor([2.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    advantages = scratch.group_advantages(rewards, 4)
    torch.testing.assert_close(advantages[:4], torch.tensor([1.5, -0.5, -0.5, -0.5]), rtol=1e-3,
                               atol=0)
    assert (advantages[4:] == 0).all()
    assert scratch.group_advantages(rewards, 4, scale=False)[:4].tolist() == [.75, -.25, -.25, -.25]


def test_mask_ends_with_the_first_end_token():
    tokens = torch.tensor([[7, 5, 0, 5], [5, 7, 7, 7], [7, 7, 7, 5], [7, 7, 7, 7]])
    whole = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert scratch.completion_mask(tokens, 5).tolist() == whole
    assert scratch.completion_mask(tokens, 5, drop_truncated=True).tolist() == (
        whole[:3] + [[0, 0, 0, 0]])


def test_an_unknown_loss_type_and_an_unfit_profile_say_so(dataset):
    model, tokenizer = load_model(profiles.CPU)
    with pytest.raises(ValueError, match="choose grpo, dapo or dr_grpo"):
        other = replace(SMALL, loss_type="bnpo")
        next(beside_trl.training_steps(model, tokenizer, other, dataset))
    unfit = profiles.SMOLLM2, replace(SMALL, warmup_steps=2), replace(SMALL, micro_batch=8)
    for profile in unfit:
        with pytest.raises(ValueError, match="use profile cpu"):
            next(beside_trl.training_steps(model, tokenizer, profile, dataset))
    with pytest.raises(ValueError, match="3 puzzles, and a step asks 4"):
        next(beside_trl.training_steps(model, tokenizer, SMALL, dataset.select(range(3))))


def test_a_lockstep_run_is_not_overwritten(tmp_path, monkeypatch):
    from helpers import runs

    monkeypatch.setattr(runs, "RUNS", tmp_path)
    (tmp_path / "trl-seed0").mkdir()
    (tmp_path / "trl-seed0" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RuntimeError, match="holds a run already: delete the folder"):
        beside_trl.record(profiles.CPU, 0)


def test_the_recorded_pairs_are_whole_and_of_one_kind():
    pairs = sorted(beside_trl.RECORDED.glob("scratch-seed*"))
    assert pairs
    for here in pairs:
        there = here.with_name(here.name.replace("scratch", "trl"))
        configs = [json.loads((run / "config.json").read_text()) for run in (here, there)]
        assert [config.pop("trainer") for config in configs] == ["scratch", "trl"]
        for name in ("profile", "seed", "versions", "hardware", "date", "command", "evaluated_on"):
            assert configs[0][name] == configs[1][name]
        for run, config in zip((here, there), configs, strict=True):
            rows = read_rows(run / "metrics.jsonl")
            assert [row["step"] for row in rows] == list(range(1, config["profile"]["steps"] + 1))
            frame = pd.read_parquet(run / "evaluation.parquet")
            assert len(frame) == 2 * 3 * len(load_split("cpu", "test"))
            assert (regrade(frame) == frame["correct"]).all()
