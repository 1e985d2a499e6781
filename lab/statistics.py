"""How far trainings differ beyond sampling, and how small a gain a test would notice.

The methods are scipy's and statsmodels'; here they are given this project's tables.
"""

import numpy as np
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_effectsize


def sampling_variance(table):
    """Return the variance of a run's success rate that comes from sampling alone.

    The puzzles are held fixed, as they are for runs that answer the same ones: what is left is the
    chance in the completions, sum of p (1 - p) / (n - 1) over the puzzles, divided by their squared
    number.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a puzzle: ``n`` attempts (two or more), ``right`` of them correct.
    """
    if table["n"].min() < 2:
        raise ValueError("one attempt a puzzle cannot tell its chance from its difficulty: sample "
                         "two or more")
    share = table["right"] / table["n"]
    return float((share * (1 - share) / (table["n"] - 1)).sum() / len(table) ** 2)


def seed_spread(rates, variances, level=0.95):
    """Take the spread between trainings apart from the sampling error within each.

    A random-effects summary with the Paule-Mandel estimate and Hartung and Knapp's interval, as
    meta-analyses of separate studies use them: each training is a study. Where the rates lie closer
    together than sampling explains, the interval is not narrowed for it (Roever, Knapp and Friede
    2015, "Hartung-Knapp-Sidik-Jonkman approach and its modification").

    Parameters
    ----------
    rates : sequence of float
        One success rate a training.
    variances : sequence of float
        Each rate's sampling variance, from `sampling_variance`.
    level : float
        The intervals' confidence.

    Returns
    -------
    dict of str to float
        ``mean, low, high`` of all trainings like these; ``sampling``, the standard deviation
        expected from sampling alone; ``observed``, the one seen; ``between``, what is left for the
        trainings; ``p`` of the test that they do not differ; ``largest``, the upper end of the
        interval for the standard deviation of a normal population of rates.
    """
    rates, variances = np.asarray(rates, dtype=float), np.asarray(variances, dtype=float)
    if len(rates) < 2:
        raise ValueError("one training has no spread: record two seeds or more")
    summary = combine_effects(rates, variances, method_re="iterated", use_t=True, alpha=1 - level)
    _, plain, _, scaled = summary.conf_int(alpha=1 - level)  # random effects, Student's quantile
    low, high = max(plain, scaled, key=np.ptp)  # rates closer than chance make no certainty
    observed, freedom = rates.std(ddof=1), len(rates) - 1
    return {
        "mean": float(summary.mean_effect_re), "low": float(low), "high": float(high),
        "sampling": float(np.sqrt(variances.mean())), "observed": float(observed),
        "between": float(np.sqrt(max(summary.tau2, 0.0))),
        "p": float(summary.test_homogeneity().pvalue),
        "largest": float(observed * np.sqrt(freedom / stats.chi2.ppf((1 - level) / 2, freedom))),
    }


def detectable(n, rate, power=0.8, level=0.95):
    """Return the smallest true gain that two separate tests of `n` puzzles each would notice.

    Parameters
    ----------
    n : int
        Puzzles in each test.
    rate : float
        The lower one of the two success rates.
    power : float
        The chance to notice it.
    level : float
        One less the chance to see a difference where there is none.
    """
    effect = NormalIndPower().solve_power(nobs1=n, alpha=1 - level, power=power)
    angle = np.arcsin(np.sqrt(rate)) + effect / 2  # Cohen's h is twice the difference of these
    if angle >= np.pi / 2:
        return float("nan")
    higher = np.sin(angle) ** 2
    assert abs(proportion_effectsize(higher, rate) - effect) < 1e-9
    return float(higher - rate)


def detectable_paired(n, deviation, power=0.8, level=0.95):
    """Return the smallest true gain that a paired test of `n` puzzles would notice.

    Parameters
    ----------
    n : int
        Puzzles, each asked before and after.
    deviation : float
        Standard deviation of the differences of a puzzle's answers (-1, 0 or 1).
    power, level : float
        As in `detectable`.
    """
    effect = TTestPower().solve_power(nobs=n, alpha=1 - level, power=power)
    return float(effect * deviation)
