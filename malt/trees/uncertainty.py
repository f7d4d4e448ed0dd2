"""How sure a value is: a node's value is the mean of few leaves, so another tree of the same question would differ."""

from functools import lru_cache
from math import lgamma, sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
_GRID = 2048
"""Points at which two Beta densities are compared; the error is below 1e-4 for up to 100 leaves a node."""


class Interval(NamedTuple):
    """A 95 % interval for what a value would be with endlessly many leaves."""

    low: float
    high: float


def wilson(mean: float, leaves: float) -> Interval:
    """Return the Wilson score interval of a mean in [0, 1] over `leaves` of them (Wilson 1927).

    Rewards between 0 and 1, as a judge gives them, vary less than a coin's: for them it is wider than need be.
    """
    spread = _Z_95**2 / leaves
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * sqrt(mean * (1 - mean) / leaves + spread / (4 * leaves))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


@lru_cache(maxsize=100_000)
def order_probability(better: float, better_leaves: int, worse: float, worse_leaves: int) -> float:
    """Return the probability that the first node's true value is above the second's.

    Each true value has the posterior Beta(1 + s, 1 + n - s) after n leaves with s as their sum: a uniform prior.
    """
    import numpy as np

    points = (np.arange(_GRID) + 0.5) / _GRID
    first = _density(better * better_leaves, better_leaves, points)
    second = _density(worse * worse_leaves, worse_leaves, points)
    below = np.cumsum(second) - second / 2
    return float((first * below).sum())


def _density(total: float, leaves: int, points: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return a Beta density's weights at evenly spaced points; they sum to one."""
    import numpy as np

    a, b = 1 + total, 1 + leaves - total
    log_density = lgamma(a + b) - lgamma(a) - lgamma(b) + (a - 1) * np.log(points) + (b - 1) * np.log1p(-points)
    weights = np.exp(log_density)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised
