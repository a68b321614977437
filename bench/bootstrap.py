"""Intervals of medians, by resampling what was measured: times are skewed, and no formula of a normal law fits them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sgp_fast._optional import require

RESAMPLES = 2000


def median(samples: Sequence[float]) -> tuple[float, float]:
    """95% interval of the median; of fewer than three samples their range."""
    if len(samples) < 3:
        return min(samples), max(samples)
    return _interval((np.asarray(samples),), lambda a, axis: np.median(a, axis=axis))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float]:
    """95% interval of `median(slow)/median(fast)`, from samples that are taken to be independent."""
    if min(len(slow), len(fast)) < 3:
        return min(slow) / max(fast), max(slow) / min(fast)
    return _interval(
        (np.asarray(slow), np.asarray(fast)), lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis)
    )


def _interval(data, statistic) -> tuple[float, float]:  # noqa: ANN001
    """The percentile bootstrap (Efron 1979), the same for the same samples."""
    stats = require("scipy.stats", extra="bench")
    found = stats.bootstrap(
        data, statistic, n_resamples=RESAMPLES, method="percentile", vectorized=True, random_state=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)
