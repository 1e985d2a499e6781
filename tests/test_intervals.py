"""Intervals, paired comparisons and pass@k."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS

from helpers import intervals


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


def test_the_clustered_interval_is_that_of_statsmodels():
    generator = np.random.default_rng(0)
    clusters, values = generator.integers(0, 9, 50), generator.choice([-1.0, 0.0, 1.0], 50)
    fit = OLS(values, np.ones(50)).fit(cov_type="cluster", cov_kwds={"groups": clusters},
                                       use_t=True)
    for level in (0.95, 0.99):
        found = intervals.clustered_mean(values, clusters, level)
        assert (found["low"], found["high"]) == pytest.approx(fit.conf_int(alpha=1 - level)[0])


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
    n, correct = np.array([4, 4, 4]), np.array([0, 2, 4])
    assert intervals.pass_at_k(n, correct, 2) == pytest.approx([0, 1 - comb(2, 2) / comb(4, 2), 1])
    assert intervals.pass_at_k(64, 16, 1) == pytest.approx(0.25)
    assert intervals.pass_at_k(64, 63, 2) == 1
    with np.errstate(invalid="ignore"):
        assert np.isnan(intervals.pass_at_k(np.array([4]), np.array([2]), 5)).all()


# scipy's binomial overflows for chances below 1e-300 or so
@given(st.integers(1, 30), st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-9, 1)), st.data())
def test_pass_at_k_is_unbiased(n, chance, data):
    k = data.draw(st.integers(1, n))
    correct = np.arange(n + 1)
    estimates = intervals.pass_at_k(np.full(n + 1, n), correct, k)
    mean = (stats.binom.pmf(correct, n, chance) * estimates).sum()
    assert mean == pytest.approx(1 - (1 - chance) ** k, abs=1e-9)
