"""The spread of trainings, and the smallest gain that a test notices."""


import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lab.statistics import detectable, detectable_paired, sampling_variance, seed_spread


def test_seeds_that_differ_by_sampling_alone_show_no_spread():
    generator = np.random.default_rng(1)
    chance = generator.beta(1, 1, 300)

    def run(shift):
        right = generator.binomial(16, np.clip(chance + shift, 0, 1))
        return pd.DataFrame({"n": 16, "right": right})

    def spread(shifts):
        tables = [run(shift) for shift in shifts]
        rates = [table["right"].sum() / table["n"].sum() for table in tables]
        return seed_spread(rates, [sampling_variance(t) for t in tables])

    same, other = spread([0] * 8), spread([-0.1, -0.05, 0, 0.05, 0.1, 0.15, -0.15, 0.02])
    assert same["p"] > 0.05 and same["between"] < same["sampling"] * 1.5
    assert other["p"] < 1e-6 and 0.05 < other["between"] < 0.2
    assert other["largest"] > other["observed"] > other["sampling"]
    assert other["low"] < other["mean"] < other["high"]
    lucky = seed_spread([0.5, 0.5, 0.5], [0.02**2] * 3)
    assert lucky["between"] == 0  # no spread seen: the interval is that of sampling alone
    assert lucky["high"] - 0.5 == pytest.approx(0.02 / np.sqrt(3) * stats.t.ppf(0.975, 2))
    with pytest.raises(ValueError, match="two seeds or more"):
        seed_spread([0.5], [0.1])
    with pytest.raises(ValueError, match="two or more"):
        sampling_variance(pd.DataFrame({"n": [1], "right": [1]}))


def test_the_sampling_variance_is_that_of_repeated_runs():
    generator = np.random.default_rng(2)
    chance = generator.beta(0.5, 1, 50)
    right = generator.binomial(8, chance, (4000, 50))
    expected = (right.mean(axis=1) / 8).var()
    found = np.mean([sampling_variance(pd.DataFrame({"n": 8, "right": row}))
                     for row in right[:500]])
    assert found == pytest.approx(expected, rel=0.1)


def test_a_detectable_gain_is_detected_as_often_as_it_says():
    generator, n, rate = np.random.default_rng(3), 200, 0.4
    gain = detectable(n, rate)
    a = generator.binomial(n, rate, 4000) / n
    b = generator.binomial(n, rate + gain, 4000) / n
    pooled = (a + b) / 2
    z = (b - a) / np.sqrt(pooled * (1 - pooled) * 2 / n)
    assert (abs(z) > 1.959964).mean() == pytest.approx(0.8, abs=0.03)
    assert detectable(4 * n, rate) == pytest.approx(gain / 2, rel=0.05)
    assert np.isnan(detectable(5, 0.9))  # no rate up to 1 is far enough
    assert detectable_paired(200, 0.5) == pytest.approx(0.5 * 2.8016 / 200**0.5, rel=0.02)
