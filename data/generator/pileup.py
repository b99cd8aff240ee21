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
SPREAD = 0.28  # relative to the mean: from the start to the end of a fill and over the year
# collisions; each use is turned in phi and mirrored in eta. With a quarter of them samples differ
# by per cents
LIBRARY_SIZE = 2000
VERTEX_EFFICIENCY = 0.7  # the other collisions have too few tracks, or lie too close to one another
MAX_ETA = 3.5  # end of the detector

# Softer particles leave no signal (data.generator.detector): curling tracks, photons and hadrons
# far below threshold.
MIN_PT_CHARGED, MIN_PT_PHOTON, MIN_PT_HADRON = 0.25, 0.1, 0.2  # GeV


@dataclasses.dataclass(frozen=True)
class Library:
    """Minimum-bias collisions to draw from; `particles.event` is the collision."""

    particles: Particles
    size: int


@dataclasses.dataclass(frozen=True)
class Overlay:
    """Pile-up of a block: its particles, and numbers per event, (events,) each."""

    particles: Particles
    collisions: np.ndarray
    """Pile-up collisions."""
    mean: np.ndarray
    """The mean that the number of collisions was drawn from."""
    vertices: np.ndarray
    """Good vertices that are reconstructed, the hard collision's included."""


def library(seed: int, size: int = LIBRARY_SIZE) -> Library:
    """Return a library of `size` collisions; takes a few seconds."""
    particles = minimum_bias(Collider(MINIMUM_BIAS), size, seed)
    return Library(particles[visible(particles)], size)


def visible(particles: Particles) -> np.ndarray:
    """Return which particles can leave a trace in the detector: (N,) bool."""
    of_neutral = np.where(particles.id == 22, MIN_PT_PHOTON, MIN_PT_HADRON)
    threshold = np.where(particles.is_charged, MIN_PT_CHARGED, of_neutral)
    return (np.abs(particles.eta) < MAX_ETA) & (particles.pt > threshold)


def overlay(source: Library, events: int, mean: float, rng: np.random.Generator) -> Overlay:
    """Draw the pile-up of `events` bunch crossings with `mean` collisions on average, 0 for none.

    Each collision is rotated in phi at random, and mirrored in eta in half of the cases.
    """
    mean_collisions = np.clip(rng.normal(mean, SPREAD * mean, events), 0.0, 3 * mean)
    collisions = rng.poisson(mean_collisions)
    total = int(collisions.sum())
    indices = rng.integers(0, source.size, total)
    turn = rng.uniform(-np.pi, np.pi, total)
    mirror = rng.choice([-1.0, 1.0], total)

    per_collision = source.particles.counts(source.size)
    number = per_collision[indices]
    particles_of_collisions = source.particles[
        ragged.ranges(ragged.starts(per_collision)[indices], number)
    ]
    # One entry a collision, (total,); `number` repeats each for its particles.
    event = np.repeat(np.arange(events), collisions)
    vertex = 1 + ragged.ranges(np.zeros(events, dtype=np.int64), collisions)
    particles = dataclasses.replace(
        particles_of_collisions,
        event=np.repeat(event, number),
        eta=particles_of_collisions.eta * np.repeat(mirror, number),
        phi=ragged.delta_phi(particles_of_collisions.phi, np.repeat(turn, number)),
        vertex=np.repeat(vertex, number),
    )
    vertices = 1 + rng.binomial(collisions, VERTEX_EFFICIENCY)
    return Overlay(particles, collisions, mean_collisions, vertices)
