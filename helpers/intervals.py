"""Means, gains and pass@k with intervals, as notebook 05 computes them."""

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import comb
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint


def clustered_mean(values, clusters=None, level=0.95):
    """Return a mean with an interval that holds for values that come in clusters.

    Parameters
    ----------
    values : sequence of float or bool
        One value an observation.
    clusters : sequence, optional
        Each value's cluster, for example its puzzle: values may depend on each other inside a
        cluster, not across. Without it every value is a cluster.
    level : float
        The interval's confidence.

    Returns
    -------
    dict of str to float
        ``rate, low, high``: the mean and Student's interval on the cluster-robust standard error
        (as statsmodels has it, and Stata), with clusters less one degrees of freedom. Where
        all values are 0, or all 1, there is no error to go by: then Clopper and Pearson's interval
        on the clusters, as if each were one answer.

    Raises
    ------
    ValueError
        If there are fewer than two clusters.
    """
    values = np.asarray(values, dtype=float)
    groups = range(len(values)) if clusters is None else clusters
    codes, _ = pd.factorize(pd.Series(list(groups), dtype=object))
    if len(values) == 0 or codes.max() < 1:
        raise ValueError(f"{len(values)} value(s) of {len(set(codes))} cluster(s): an interval "
                         "needs two clusters or more; sample more puzzles")
    rate, count = values.mean(), codes.max() + 1
    if set(values) in ({0}, {1}):
        low, high = proportion_confint(rate * count, count, alpha=1 - level, method="beta")
    else:
        sums = np.bincount(codes, values - rate)  # relatives that err together add up
        error = np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values)
        reach = error * stats.t.ppf((1 + level) / 2, count - 1)
        low, high = rate - reach, rate + reach
    return {"rate": float(rate), "low": float(low), "high": float(high)}


def paired_gain(before, after, clusters=None, level=0.95):
    """Compare one answer before with one after for each of the same puzzles.

    Parameters
    ----------
    before, after : sequence of bool
        Whether each puzzle was solved, in the same order.
    clusters, level
        As for `clustered_mean`.

    Returns
    -------
    dict
        ``n`` puzzles; ``won`` (solved after only), ``lost`` (before only); ``gain``, the difference
        of the rates, from ``low`` to ``high``; ``p`` of McNemar's exact test, which takes every
        puzzle as independent.
    """
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape:
        raise ValueError(f"{len(before)} answers before and {len(after)} after: pairs need the "
                         "same puzzles in the same order")
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    gain, low, high = clustered_mean(after.astype(int) - before, clusters, level).values()
    test = mcnemar([[0, lost], [won, 0]], exact=True)  # the pairs that agree do not enter
    return {"n": len(before), "won": won, "lost": lost, "gain": gain,
            "low": low if won or lost else -high, "high": high, "p": float(test.pvalue)}


def pass_at_k(n, correct, k):
    """Return the unbiased estimate of the chance that one of `k` attempts solves a puzzle.

    The chance that `k` of the `n` attempts, drawn without replacement, hold a correct one (Chen et
    al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1).

    Parameters
    ----------
    n, correct : array_like of int
        Attempts at each puzzle, and the correct ones among them.
    k : int
        Attempts that count, at most the smallest `n`: beyond that the estimate is not a number.
    """
    return 1 - comb(n - correct, k) / comb(n, k)
