"""Blocks: the unit in which jets are generated.

A block is a fixed number of events. Its content depends only on the recipe and on the block's
number, so any number of processes can make blocks in any order and the sample stays the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data.generator import events, jec, jet_columns, pileup, quark_gluon
from data.generator.detector import Detector
from data.generator.reconstruction import ReconstructedBlock, reconstruct
from data.jetntuple import Columns, in_schema

# about a second: small enough for a lively progress bar, large enough that NumPy's overhead
# vanishes
EVENTS_PER_BLOCK = 100
EVENTS_PER_SEED = 10**9  # event numbers of different seeds do not overlap
LIBRARY = 2**32 - 1  # the "block" whose seed the pile-up library takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a sample depends on."""

    seed: int
    """0 or larger; samples of different seeds share no event and no pile-up."""
    events_per_block: int = EVENTS_PER_BLOCK
    pileup: float = pileup.MEAN_COLLISIONS
    """Mean number of pile-up collisions; 0 for none."""
    detector: Detector = dataclasses.field(default_factory=Detector)


class BlockMaker:
    """Makes the events of blocks. Takes one or two seconds to set up."""

    def __init__(self, recipe: Recipe) -> None:
        """Start Pythia 8 and fill the library of pile-up collisions."""
        self.recipe = recipe
        self._collider = events.Collider(events.HARD_QCD)
        self._library = pileup.library(pythia_seed(recipe.seed, LIBRARY))

    def reconstructed(self, number: int) -> ReconstructedBlock:
        """Return block `number` (from 0), simulated and reconstructed."""
        recipe = self.recipe
        hard = events.hard_events(
            self._collider, recipe.events_per_block, pythia_seed(recipe.seed, number)
        )
        rng = random_generator(recipe.seed, number)
        overlay = pileup.overlay(self._library, len(hard), recipe.pileup, rng)
        return reconstruct(hard, overlay, recipe.detector, rng)


class JetMaker:
    """Makes the JetNtuple columns of blocks, calibrated with the standard JEC."""

    def __init__(self, recipe: Recipe) -> None:
        """Start the generator and load the standard corrections."""
        self._blocks = BlockMaker(recipe)
        self._jec = jec.load()
        self._likelihood = quark_gluon.load()

    def __call__(self, number: int) -> Columns:
        """Return the columns of block `number`, which may have no jet."""
        recipe = self._blocks.recipe
        first = recipe.seed * EVENTS_PER_SEED + number * recipe.events_per_block + 1
        block = self._blocks.reconstructed(number)
        columns = jet_columns.columns(
            block, self._jec, self._likelihood, first_event=first, lumi=number + 1
        )
        return in_schema(columns)


def random_generator(seed: int, number: int) -> np.random.Generator:
    """Return the random numbers of the detector and of the pile-up in block `number`."""
    return np.random.default_rng([seed, number])


def pythia_seed(seed: int, number: int) -> int:
    """Return Pythia's own seed for block `number`: 1 to events.MAX_SEED."""
    (state,) = np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)
    return 1 + int(state % np.uint64(events.MAX_SEED))
