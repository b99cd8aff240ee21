"""Pile-up: minimum-bias collisions laid over the hard one, drawn from a library.

The number of collisions follows the open data sample's conditions (RunIISummer16, PUMoriond17): its
mean per bunch crossing is spread around 23, and the number in one crossing is Poisson distributed
around that mean.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data import ragged
from data.generator.events import MINIMUM_BIAS, Collider, Particles, minimum_bias

MEAN_COLLISIONS = 23.0
SPREAD = 0.28  # of the mean, relative: from the start to the end of a fill and over the year
# collisions; each use is turned in phi and mirrored in eta. With a quarter of them samples differ
# by per cents
LIBRARY_SIZE = 2000
VERTEX_EFFICIENCY = 0.7  # the other collisions have too few tracks, or lie too close to one another
MAX_ETA = 3.5  # where the detector ends

# Softer than this nothing is seen of a particle (data.generator.detector): curling tracks, photons
# and hadrons far below threshold.
MIN_PT_CHARGED, MIN_PT_PHOTON, MIN_PT_HADRON = 0.25, 0.1, 0.2  # GeV


@dataclasses.dataclass(frozen=True)
class Library:
    """Minimum-bias collisions to draw from; `particles.event` is the collision."""

    particles: Particles
    size: int


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Pile-up of a block: its particles, and per event (events,) the number of collisions, the mean
    that it was drawn from, and how many good vertices are reconstructed, the hard collision's
    included."""

    particles: Particles
    collisions: np.ndarray
    mean: np.ndarray
    vertices: np.ndarray


def library(seed: int, size: int = LIBRARY_SIZE) -> Library:
    """A library of `size` collisions; takes a few seconds."""
    particles = minimum_bias(Collider(MINIMUM_BIAS), size, seed)
    return Library(particles[visible(particles)], size)


def visible(particles: Particles) -> np.ndarray:
    """Which particles can leave a trace in the detector: (N,) bool."""
    threshold = np.where(
        particles.is_charged,
        MIN_PT_CHARGED,
        np.where(particles.id == 22, MIN_PT_PHOTON, MIN_PT_HADRON),
    )
    return (np.abs(particles.eta) < MAX_ETA) & (particles.pt > threshold)


def overlay(source: Library, events: int, mean: float, rng: np.random.Generator) -> Overlay:
    """Draw the pile-up of `events` bunch crossings with `mean` collisions on average (0
    for none).
    """
    expected = np.clip(rng.normal(mean, SPREAD * mean, events), 0.0, 3 * mean)
    collisions = rng.poisson(expected)
    total = int(collisions.sum())
    drawn = rng.integers(0, source.size, total)
    turn, mirror = rng.uniform(-np.pi, np.pi, total), rng.choice([-1.0, 1.0], total)

    per_collision = source.particles.counts(source.size)
    number = per_collision[drawn]
    picked = source.particles[ragged.ranges(ragged.starts(per_collision)[drawn], number)]
    particles = dataclasses.replace(
        picked,
        event=np.repeat(np.repeat(np.arange(events), collisions), number),
        eta=picked.eta * np.repeat(mirror, number),
        phi=ragged.delta_phi(picked.phi, np.repeat(turn, number)),
        vertex=np.repeat(1 + ragged.ranges(np.zeros(events, dtype=np.int64), collisions), number),
    )
    return Overlay(
        particles, collisions, expected, vertices=1 + rng.binomial(collisions, VERTEX_EFFICIENCY)
    )
