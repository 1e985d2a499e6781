"""Intervals, pass@k, errors by kind, habits, transfer sets and the counts of many attempts."""

import json
from dataclasses import replace
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers import intervals, profiles, runs
from helpers.dataset import load_split
from helpers.mistakes import KINDS, kind, kinds
from helpers.models import load_model
from helpers.paths import DATA
from helpers.prompts import EXAMPLE, build_messages
from helpers.puzzles import canonical
from helpers.rewards import is_correct
from helpers.solver import solve
from lab import attempts
from lab.habits import HABITS, count_habits, habits, search_quality, tries
from lab.report import comparable
from lab.transfer import RANGES, puzzle_sets, wordings

# ---- intervals

def test_without_clusters_the_interval_is_students():
    values = np.array([1, 0, 0, 1, 1, 1, 0, 1], dtype=float)
    found = intervals.clustered_mean(values)
    expected = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["rate"] == values.mean()


def test_copies_of_an_answer_add_no_certainty():
    values, names = [1, 0, 0, 1, 1, 0], list("abcdef")
    once = intervals.clustered_mean(values, names)
    thrice = intervals.clustered_mean(values * 3, names * 3)
    alone = intervals.clustered_mean(values * 3)
    width = {k: f["high"] - f["low"] for k, f in
             {"once": once, "thrice": thrice, "alone": alone}.items()}
    assert width["thrice"] == pytest.approx(width["once"], rel=0.1)
    assert width["alone"] < 0.7 * width["once"]


def test_the_clustered_interval_covers_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(400):
        chance = generator.beta(0.5, 0.5, 60)  # puzzles that are easy or hard
        answers = generator.random((60, 8)) < chance[:, None]
        found = intervals.clustered_mean(answers.ravel(), np.repeat(np.arange(60), 8))
        hits += found["low"] <= 0.5 <= found["high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_one_cluster_gives_no_interval():
    for values, clusters in (([1], None), ([1, 0, 1], ["a"] * 3), ([], None)):
        with pytest.raises(ValueError, match="two clusters or more"):
            intervals.clustered_mean(values, clusters)


def test_no_success_at_all_is_not_taken_for_certainty():
    never = intervals.clustered_mean([0] * 40, list(range(20)) * 2)
    assert (never["rate"], never["low"]) == (0, 0)
    assert never["high"] == pytest.approx(1 - 0.025 ** (1 / 20))  # none of 20 clusters
    always = intervals.clustered_mean([1] * 20)
    assert (always["low"], always["high"]) == pytest.approx((0.025 ** (1 / 20), 1))
    same = intervals.paired_gain([True, False, True], [True, False, True])
    assert same["gain"] == 0 and same["low"] == -same["high"] < -0.5 and same["p"] == 1


def test_pairs_are_compared_by_those_that_changed_sides():
    before = [True] * 10 + [False] * 30
    after = [True] * 7 + [False] * 3 + [True] * 12 + [False] * 18
    found = intervals.paired_gain(before, after)
    assert (found["n"], found["won"], found["lost"]) == (40, 12, 3)
    assert found["gain"] == pytest.approx(9 / 40)
    assert found["p"] == pytest.approx(2 * sum(comb(15, i) for i in range(4)) / 2**15)
    with pytest.raises(ValueError, match="same puzzles"):
        intervals.paired_gain(before, after[:-1])


def test_pass_at_k_of_a_small_case():
    assert intervals.pass_at_k([4], [2], 2) == pytest.approx([1 - comb(2, 2) / comb(4, 2)])
    assert intervals.pass_at_k([64, 64], [0, 64], 8).tolist() == [0, 1]
    assert intervals.pass_at_k([64], [16], 1) == pytest.approx([0.25])
    for n, correct, k in (([4], [2], 5), ([4], [2], 0), ([4, 8], [2, 2], 6)):
        with pytest.raises(ValueError, match="needs k from 1"):
            intervals.pass_at_k(n, correct, k)
    with pytest.raises(ValueError, match="more correct"):
        intervals.pass_at_k([4], [5], 1)


# scipy's binomial overflows for chances below 1e-300 or so
@given(st.integers(1, 30), st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-9, 1)), st.data())
def test_pass_at_k_is_unbiased(n, chance, data):
    k = data.draw(st.integers(1, n))
    correct = np.arange(n + 1)
    estimates = intervals.pass_at_k(np.full(n + 1, n), correct, k)
    mean = (stats.binom.pmf(correct, n, chance) * estimates).sum()
    assert mean == pytest.approx(1 - (1 - chance) ** k, abs=1e-9)


def test_the_pass_curve_leaves_out_what_the_attempts_do_not_reach():
    table = pd.DataFrame({"n": 16, "right": [0, 1, 4, 16, 8, 2]})
    curve = intervals.pass_curve(table)
    assert curve.index.tolist() == [1, 2, 4, 8, 16]
    assert curve["rate"].is_monotonic_increasing
    assert curve.loc[1, "rate"] == pytest.approx(table["right"].mean() / 16)
    assert curve.loc[16, "rate"] == pytest.approx(5 / 6)
    assert (curve["low"] < curve["rate"]).all()


def test_seeds_that_differ_by_sampling_alone_show_no_spread():
    generator = np.random.default_rng(1)
    chance = generator.beta(1, 1, 300)

    def run(shift):
        right = generator.binomial(16, np.clip(chance + shift, 0, 1))
        return pd.DataFrame({"n": 16, "right": right})

    def spread(shifts):
        tables = [run(shift) for shift in shifts]
        rates = [table["right"].sum() / table["n"].sum() for table in tables]
        return intervals.seed_spread(rates, [intervals.sampling_variance(t) for t in tables])

    same, other = spread([0] * 8), spread([-0.1, -0.05, 0, 0.05, 0.1, 0.15, -0.15, 0.02])
    assert same["p"] > 0.05 and same["between"] < same["sampling"] * 1.5
    assert other["p"] < 1e-6 and 0.05 < other["between"] < 0.2
    assert other["largest"] > other["observed"] > other["sampling"]
    assert other["low"] < other["mean"] < other["high"]
    lucky = intervals.seed_spread([0.5, 0.5, 0.5], [0.02**2] * 3)
    assert lucky["between"] == 0  # no spread seen: the interval is that of sampling alone
    assert lucky["high"] - 0.5 == pytest.approx(0.02 / np.sqrt(3) * stats.t.ppf(0.975, 2))
    with pytest.raises(ValueError, match="two seeds or more"):
        intervals.seed_spread([0.5], [0.1])
    with pytest.raises(ValueError, match="two or more"):
        intervals.sampling_variance(pd.DataFrame({"n": [1], "right": [1]}))


def test_the_sampling_variance_is_that_of_repeated_runs():
    generator = np.random.default_rng(2)
    chance = generator.beta(0.5, 1, 50)
    right = generator.binomial(8, chance, (4000, 50))
    expected = (right.mean(axis=1) / 8).var()
    found = np.mean([intervals.sampling_variance(pd.DataFrame({"n": 8, "right": row}))
                     for row in right[:500]])
    assert found == pytest.approx(expected, rel=0.1)


def test_a_detectable_gain_is_detected_as_often_as_it_says():
    generator, n, rate = np.random.default_rng(3), 200, 0.4
    gain = intervals.detectable(n, rate)
    a = generator.binomial(n, rate, 4000) / n
    b = generator.binomial(n, rate + gain, 4000) / n
    pooled = (a + b) / 2
    z = (b - a) / np.sqrt(pooled * (1 - pooled) * 2 / n)
    assert (abs(z) > 1.959964).mean() == pytest.approx(0.8, abs=0.03)
    assert intervals.detectable(4 * n, rate) == pytest.approx(gain / 2, rel=0.05)
    assert np.isnan(intervals.detectable(5, 0.9))  # no rate up to 1 is far enough
    assert intervals.detectable_paired(200, 0.5) == pytest.approx(0.5 * 2.8016 / 200**0.5, rel=0.02)


# ---- errors by kind

NUMS, TARGET = [8, 6, 7], 14
ANSWERS = {
    "(8 - 6) * 7 = 14": "right",
    "8 + 6 * 7 = 50": "wrong value",
    "8 + 6 * 7 = 14": "false equation",
    "8 + 6 = 14": "number missing",
    "7 + 7 = 14": "number twice",  # 8 and 6 are missing, too: the first in the list is named
    "8 * 7 - 6 * 7 = 14": "number twice",
    "8 + 6 + 0 * 7 = 14": "other number",
    "2 * 7 = 14": "other number",
    "14": "malformed",
    "8 / (7 - 7) * 6 = 14": "malformed",
    "8 + 6 = 14 = 14": "malformed",
    "8 +* 6 = 14": "malformed",
    "": "malformed",
    "__import__('os') = 14": "malformed",
}


@pytest.mark.parametrize(("answer", "wanted"), ANSWERS.items())
def test_every_fault_has_its_kind(answer, wanted):
    text = f"<think>x</think>\n<answer>{answer}</answer>"
    assert kind(text, NUMS, TARGET, 20, 144) == wanted
    assert (wanted == "right") == is_correct(text, NUMS, TARGET)


def test_cut_off_is_told_from_malformed_by_the_length():
    text = "<think>8 + 6 = 14, 14"
    assert kind(text, NUMS, TARGET, 144, 144) == "cut off"
    assert kind(text, NUMS, TARGET, 143, 144) == kind(text, NUMS, TARGET) == "malformed"


@given(st.text(alphabet="0123456789+-*/(). =<>think/answer\n", max_size=80))
def test_any_text_has_one_kind(text):
    assert kind(text, NUMS, TARGET, 9, 9) in KINDS
    assert kind(f"<answer>{text}</answer>", NUMS, TARGET, 9, 9) in KINDS


# ---- habits

ENGLISH = {
    "8 + 6 = 14, but 7 is left, so that is too much.\nLet's try 8 * 7 = 56.":
        {"verification", "backtracking"},
    "I need to make 2 first, because 2 * 7 = 14.": {"sub-goals"},
    "Working backwards: 14 / 7 = 2, so I want 2 from 8 and 6.": {"backward chaining", "sub-goals"},
    "8 - 6 = 2, 2 * 7 = 14. That works.": {"verification"},
    "8 + 6 = 14 no\n6 + 8 = 14 no": {"verification"},  # the same try, written the other way
    "The numbers are 8, 6 and 7.": set(),
}


@pytest.mark.parametrize(("thought", "wanted"), ENGLISH.items())
def test_the_rules_read_words_too(thought, wanted):
    found = habits(f"<think>{thought}</think>\n<answer>8 = 14</answer>", NUMS, TARGET)
    assert {name for name, there in found.items() if there} == wanted


def test_the_answer_is_no_part_of_the_thought():
    assert tries("<think>8 + 6 = 14 no</think>\n<answer>8 * 7 = 56</answer>")[-1].steps == (
        (6, "+", 8, 14),)
    assert not any(habits("8 + 6 no yes", NUMS, TARGET).values())


def test_the_search_is_counted_step_by_step():
    text = ("<think>8 - 6 = 2, 2 * 7 = 15 no\n8 * 6 = 48, 48 - 8 = 40 yes\n"
            "7 - 6 = 1, 1 + 8 = 9 no\n8 - 6 = 2, 7 * 2 = 15 no</think>\n<answer>")
    assert search_quality(text, NUMS, TARGET) == {
        "steps": 8, "true": 6, "verdicts": 4, "sound": 3, "tries": 4, "different": 3, "legal": 3}


def test_the_labelled_sample_is_what_the_rules_are_checked_on():
    sample = pd.read_parquet(DATA / "habits.parquet")
    assert (sample["picked"] == "at random").sum() == 100
    assert set(HABITS) <= set(sample) and set(sample["stage"]) == {"before", "after"}
    recorded = pd.concat([pd.read_parquet(DATA / "reference_runs" / run / "evaluation.parquet")
                          for run in sorted(set(sample["run"]))])
    assert set(sample["completion"]) <= set(recorded["completion"])  # real outputs
    found = count_habits(sample)
    for name in ("verification", "backtracking"):
        assert found[name].tolist() == sample[name].tolist(), name
    # what the rule takes for backward chaining are slips: the sample says so
    assert found["backward chaining"].any() and not sample["backward chaining"].any()


# ---- transfer

@pytest.fixture(scope="module")
def sets():
    return {name: puzzle_sets(name, size=12) for name in RANGES}


def test_transfer_puzzles_are_new_and_can_be_solved(sets):
    for name, found in sets.items():
        trained = {tuple(sorted(nums)) for nums in load_split(name, "train")["nums"]}
        for key, rows in found.items():
            assert 6 <= len(rows) <= 12, key
            for nums, target in zip(rows["nums"], rows["target"], strict=True):
                assert tuple(sorted(nums)) not in trained
                assert len(nums) == 6 or solve(nums, int(target)), (key, nums, target)


def test_each_transfer_set_is_what_it_is_called(sets):
    for name, found in sets.items():
        ranges = RANGES[name]
        for key, rows in found.items():
            largest = [max(nums) for nums in rows["nums"]]
            counts = {len(nums) for nums in rows["nums"]}
            if key.endswith("numbers"):
                assert counts == {{"four": 4, "five": 5, "six": 6}[key.split()[0]]}
            else:
                assert counts <= {3, 4}
            assert all(x > ranges["high"] for x in largest) == key.startswith("numbers to")
            assert (rows["target"] > ranges["target_high"]).all() == key.startswith("targets")
    with pytest.raises(ValueError, match="no puzzle set"):
        puzzle_sets("5to6")


def test_a_wording_asks_for_the_same_puzzle():
    for name in RANGES:
        found = wordings(name)
        assert found["as trained"] is build_messages
        texts = {key: build(NUMS, TARGET)[-1]["content"] for key, build in found.items()}
        assert all("8, 6, 7" in text and "14" in text for text in texts.values())
        assert len(set(texts.values())) == len(texts) - 1  # one leaves the user's message alone
    assert EXAMPLE["completion"] in wordings("3to4")["other words"]([1, 2, 3], 6)[-1]["content"]
    assert "other words" not in wordings("cpu")


def test_the_tiny_models_tokenizer_reads_its_wordings_whole():
    _, tokenizer = load_model(profiles.CPU)
    for key, build in wordings("cpu").items():
        text = tokenizer.apply_chat_template(build([8, 6, 7], 14), tokenize=False)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], key


# ---- attempts

def test_attempts_are_counted_by_puzzle_whatever_the_order_of_its_numbers():
    text = "<think>x</think>\n<answer>{}</answer>"
    frame = pd.DataFrame({
        "nums": [[8, 6, 7], [7, 8, 6], [1, 2]], "target": [14, 14, 3], "tokens": [10, 20, 144],
        "completion": [text.format("(8 - 6) * 7 = 14"), text.format("8 + 6 = 14"), "<think>1 +"]})
    table = attempts.tally(frame, limit=144)
    assert table["nums"].tolist() == [[6, 7, 8], [1, 2]] and table["n"].tolist() == [2, 1]
    assert table["right"].tolist() == [1, 0] and table["tokens"].tolist() == [15, 144]
    assert table["number missing"].tolist() == [1, 0] and table["cut off"].tolist() == [0, 1]
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()
    assert kinds(frame, 144).tolist() == ["right", "number missing", "cut off"]


@pytest.fixture(scope="module")
def sampled():
    model, tokenizer = load_model(profiles.CPU)
    profile = replace(profiles.CPU, max_completion_length=40)
    jobs = attempts.plan("cpu", puzzles=4, samples=3, transfer_samples=2)
    return jobs, attempts.attempt(model, tokenizer, profile, jobs, "before", seed=5)


def test_the_plan_is_sampled_whole(sampled):
    jobs, table = sampled
    names = {(name, wording) for name, wording, *_ in jobs}
    assert {("held-out", "as trained"), ("four numbers", "as trained"),
            ("held-out", "no instructions")} <= names
    assert len(jobs) == len({(job[0], job[1], job[2]) for job in jobs})
    groups = table.groupby(["set", "wording", "temperature"], sort=False)
    assert [(len(rows), set(rows["n"])) for _, rows in groups] == [
        (len(job[4]), {job[3]}) for job in jobs]
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()


def test_runs_with_other_puzzles_or_columns_are_refused(sampled, tmp_path):
    _, table = sampled
    tables = {"a": table, "b": table, "fewer": table.iloc[:-1],
              "old": table.drop(columns="cut off")}
    for name, rows in tables.items():
        (tmp_path / name).mkdir()
        rows.to_parquet(tmp_path / name / "attempts.parquet", index=False)
    folders = {name: tmp_path / name for name in tables}
    both = attempts.load_attempts([folders["a"], folders["b"]])
    assert both["run"].tolist() == ["a"] * len(table) + ["b"] * len(table)
    for name, words in (("fewer", "other puzzles"), ("old", "no column cut off")):
        with pytest.raises(ValueError, match=words):
            attempts.load_attempts([folders["a"], folders[name]])
    with pytest.raises(ValueError, match="no attempts.parquet"):
        attempts.load_attempts([tmp_path])
    with pytest.raises(ValueError, match="no run was given"):
        attempts.load_attempts([])


# ---- the recorded attempts

RECORDED = sorted(attempts.ATTEMPTS.glob("*-seed*"))
each_recorded = pytest.mark.parametrize("run", RECORDED, ids=lambda run: run.name)


def test_there_are_recorded_attempts_of_two_trainings_or_more():
    assert len(RECORDED) >= 2
    attempts.load_attempts(RECORDED)  # refuses runs that were not asked the same


def test_the_runs_of_the_attempts_are_whole_and_stand_beside_the_reference_runs():
    """Every step, every test puzzle, every grade as it is given today."""
    beside = [*runs.find_runs("cpu"), *RECORDED, *(DATA / "gallery").glob("*-seed*")]
    found, left_out = comparable(beside)
    assert not left_out and len(found) == len(beside)


@each_recorded
def test_attempts_were_trained_with_the_profiles_settings(run):
    config = json.loads((run / "config.json").read_text())
    name = config["profile"]["name"]
    assert run.name == f"{name}-seed{config['seed']}"
    assert set(profiles.differences(profiles.PROFILES[name], config["profile"])) <= {"measured_on"}
    assert {file.name for file in run.iterdir()} == {
        "config.json", "metrics.jsonl", "evaluation.parquet", "attempts.parquet"}


@each_recorded
def test_recorded_attempts_are_what_the_plan_asks(run):
    """Every puzzle, prompt and temperature once a stage, and every completion has one kind."""
    config = json.loads((run / "config.json").read_text())
    words = config["attempts"]["command"].split()
    assert words[:3] == ["python", "-m", "lab.attempts"]
    assert not {"--puzzles", "--samples", "--transfer-samples"} & set(words)
    table = pd.read_parquet(run / "attempts.parquet")
    planned = [(name, wording, t, samples, *canonical(*row))
               for name, wording, t, samples, puzzles, _ in attempts.plan(
                   config["profile"]["puzzles"])
               for row in zip(puzzles["nums"], puzzles["target"], strict=True)]
    assert set(table["stage"]) == {"before", "after"}
    for _, rows in table.groupby("stage"):
        asked = [(*row[:4], *canonical(*row[4:])) for row in rows[
            ["set", "wording", "temperature", "n", "nums", "target"]].itertuples(index=False)]
        assert sorted(asked) == sorted(planned)
    assert (table[list(KINDS)] >= 0).all(axis=None)
    assert (table[list(KINDS)].sum(axis=1) == table["n"]).all()
    assert table["n"].sum() == config["attempts"]["completions"]
    limit = config["profile"]["max_completion_length"]
    assert table["tokens"].between(1, limit).all()
    assert (table["tokens"] * table["n"] >= table["cut off"] * limit - 1e-6).all()


@each_recorded
def test_recorded_attempts_agree_with_the_runs_own_evaluation(run):
    """One attempt a puzzle, graded from its text, and 64 are draws from the same chances."""
    table, frame = (pd.read_parquet(run / f"{name}.parquet") for name in ("attempts", "evaluation"))
    table = table[(table["set"] == attempts.HELD_OUT) & (table["wording"] == attempts.TRAINED)]
    for (stage, temperature), rows in table.groupby(["stage", "temperature"]):
        once = frame[(frame["stage"] == stage) & (frame["temperature"] == temperature)]
        assert len(once) == len(rows)
        variance = intervals.sampling_variance(rows) * (1 + rows["n"].iloc[0])
        difference = once["correct"].mean() - rows["right"].sum() / rows["n"].sum()
        assert abs(difference) < 3.5 * variance**0.5, (stage, temperature)


def test_before_training_the_recorded_attempts_come_from_one_model():
    """The start is shared: puzzle by puzzle, the rates before differ by no more than chance."""
    table = attempts.load_attempts(RECORDED)
    table = table[(table["stage"] == "before") & (table["n"] > 8)]
    for _, rows in table.groupby("temperature"):
        hits = rows.pivot(index=["nums", "target"], columns="run", values="right").to_numpy()
        n = rows["n"].iloc[0]
        mean = hits.mean(axis=1, keepdims=True)
        used = (mean[:, 0] > 2) & (mean[:, 0] < n - 2)  # elsewhere chi-squared is a poor fit
        hits, mean = hits[used], mean[used]
        squares = ((hits - mean) ** 2 / (mean * (1 - mean / n))).sum()
        freedom = len(hits) * (hits.shape[1] - 1)
        assert 1e-4 < stats.chi2.sf(squares, freedom) < 1 - 1e-4
