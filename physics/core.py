"""Errors of the normal core of a response distribution, by the bootstrap.

The core is cut at two of its own standard deviations, so its errors are not those of a normal
sample of as many jets: sigma / sqrt(n) of the mean is too small by a factor of about 1.2, and
sigma / sqrt(2 n) of the width by about 1.6.

Sources: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 6 (standard
errors); J. Hanley, B. MacGibbon, Comput. Methods Programs Biomed. 83 (2006) 57 (draws with Poisson
counts).
"""

from __future__ import annotations

import numpy as np

from physics import response as r
from physics.response import Floats

DRAWS = 100
"""With 100 draws the error itself is known to 7 %."""

CHUNKS = 1000
"""Of more jets than this, neighbours are drawn together, so that draws stay quick.

A cut then moves by at most a thousandth of the jets.
"""


def core_errors(values: Floats, rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Estimate the standard errors of the core's mean and standard deviation: (2,).

    values: (N,), finite, N > 0. NaN where a draw has no core (r.gaussian_core).
    """
    chunks = np.array_split(np.sort(values), min(CHUNKS, len(values)))
    sizes = np.array([len(chunk) for chunk in chunks])
    means = np.array([np.mean(chunk) for chunk in chunks])
    counts = rng.poisson(sizes, (draws, len(chunks)))
    errors: Floats = np.std(counted_cores(means, counts), axis=0)
    return errors


def counted_cores(responses: Floats, counts: np.ndarray, steps: int = 50) -> Floats:
    """Compute mean and standard deviation of the core of each draw, as r.gaussian_core does.

    responses: (M,) ascending; counts: (draws, M), how often each value occurs in a draw. Returns
    (draws, 2); NaN for a draw whose quartiles coincide.
    """
    # Of values that differ little from each other, differences keep the digits of the squares.
    origin = np.median(responses)
    values = responses - origin
    number = _sums(counts)
    total = _sums(counts * values)
    squares = _sums(counts * values**2)
    draws = np.arange(len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        quartiles = []
        for share in (0.25, 0.5, 0.75):
            reaches_share = number[:, 1:] >= share * number[:, -1:]
            quartiles.append(values[np.argmax(reaches_share, axis=1)])
        mean, sigma = quartiles[1], (quartiles[2] - quartiles[0]) / 1.349
        mean, sigma = np.where(sigma > 0, (mean, sigma), np.nan)
        for _ in range(steps):
            previous = mean + sigma
            low = np.searchsorted(values, mean - r.CORE * sigma, side="right")
            high = np.searchsorted(values, mean + r.CORE * sigma, side="left")
            inside = number[draws, high] - number[draws, low]
            mean = (total[draws, high] - total[draws, low]) / inside
            square = (squares[draws, high] - squares[draws, low]) / inside
            sigma = np.sqrt(np.maximum(square - mean**2, 0)) / r.CORE_WIDTH
            if not np.any(np.abs(mean + sigma - previous) > 1e-6):
                break
    return np.stack([mean + origin, sigma], axis=-1)


def _sums(values: np.ndarray) -> np.ndarray:
    """Return sums over the values before each place, (draws, M) -> (draws, M + 1).

    The sum between two places is a difference of two of them.
    """
    return np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
