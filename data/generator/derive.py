"""Derive the standard corrections and the quark-gluon likelihood from the generator's own events.

    python -m data.derive

It writes standard_jec.json and quark_gluon.json, which `python -m data.generate` applies, into the
folder of this package, or into --output. Repeat it after a change of the detector or of the
pile-up: 60,000 events take some minutes. The methods are described in data/generator/jec.py and
data/generator/quark_gluon.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from common import storage
from common.cli import Parser, output_folder, require, run_main
from common.progress import Progress
from data import ragged
from data.generator import detector, jec, pileup, quark_gluon, reconstruction, workers
from data.generator.blocks import LIBRARY, BlockMaker, Recipe, pythia_seed, random_generator
from data.generator.generate import (
    MAX_SEED,
    available_cores,
    check_installed,
    check_workers,
    terminated_as_interrupt,
)
from data.generator.jec import StandardJEC
from data.generator.quark_gluon import Likelihood, Shape
from data.generator.table import Table

ETA_EDGES = np.array([0.0, 0.65, 1.3, 1.6, 2.0, 2.5, 3.2])
"""Finer where the response changes: the ECAL has its gap at 1.48, the tracker ends at 2.5."""
# fmt: off
GEN_PT_EDGES = np.array([
    10, 13, 16, 20, 25, 30, 37, 45, 55, 70, 90, 115, 150, 190, 240, 300, 400, 500, 650, 850, 1100,
    1500, 2200, 3500.0,
])
# fmt: on
"""GeV; steps of about a third in pT."""
MIN_JETS = 40  # a bin with fewer gives no point
MOST_EVENTS = 100_000_000  # all jets of them are held in memory
DEGREE = 4  # degree of the polynomial in log pT that smooths the points of one eta bin
OFFSET_BLOCKS = 30  # blocks of 100 bunch crossings: the offset is then known to 1 %


class OffsetMaker:
    """Bunch crossings with pile-up only."""

    def __init__(self, recipe: Recipe) -> None:
        """Fill the library of pile-up collisions."""
        self.recipe = recipe
        self._library = pileup.library(pythia_seed(recipe.seed, LIBRARY))

    def __call__(self, number: int) -> np.ndarray:
        """Return the densities rho and, after charged hadron subtraction, in each of B eta bins.

        (events, 1 + B), GeV per unit area.
        """
        events = self.recipe.events_per_block
        rng = random_generator(self.recipe.seed, number)
        overlay = pileup.overlay(self._library, events, self.recipe.pileup, rng)
        candidates = detector.simulate(overlay.particles, self.recipe.detector, rng)
        jet_candidates = candidates[reconstruction.charged_hadron_subtraction(candidates)]
        bins = len(ETA_EDGES) - 1
        eta_bin = np.searchsorted(ETA_EDGES, np.abs(jet_candidates.eta), side="right") - 1
        inside = eta_bin < bins
        cell = (jet_candidates.event * bins + eta_bin)[inside]
        sums = ragged.total(cell, jet_candidates.pt[inside], events * bins)
        sums = sums.reshape(events, bins)  # (events * B,) -> (events, B)
        # A bin holds both signs of eta, each 2 pi × its width.
        density = sums / (4 * np.pi * np.diff(ETA_EDGES))
        return np.column_stack([reconstruction.densities(candidates, events).all, density])


@dataclasses.dataclass(frozen=True)
class ResponseJets(Table):
    """Jets with a generator jet, (J,) each; pt (after L1) and gen_pt in GeV."""

    pt: np.ndarray
    eta: np.ndarray
    gen_pt: np.ndarray
    flavour: np.ndarray
    shape: Shape


class ResponseMaker:
    """Jets of hard collisions, corrected for pile-up only.

    Made from (recipe, corrections with L1).
    """

    def __init__(self, order: tuple[Recipe, StandardJEC]) -> None:
        """Start the generator; `order` holds the recipe and the L1 correction."""
        recipe, self._jec = order
        self._blocks = BlockMaker(recipe)

    def __call__(self, number: int) -> ResponseJets:
        """Return the jets of a block with their response, after the L1 correction."""
        block = self._blocks.reconstructed(number)
        jets = block.jets
        l1 = self._jec.l1(jets.pt, jets.eta, block.area, block.densities.all[jets.event])
        hadron = reconstruction.hadron_flavour(block.hard, block.heavy, len(jets))
        members = block.candidates[jets.member]
        all_jets = ResponseJets(
            pt=jets.pt * l1,
            eta=jets.eta,
            gen_pt=ragged.take(block.gen_jets.pt, block.gen_match, 0.0),
            flavour=reconstruction.parton_flavour(block.hard, block.parton, hadron),
            shape=quark_gluon.shape(jets.member_jet, members, jets.eta, jets.phi),
        )
        return all_jets[block.gen_match >= 0]


def derive(
    recipe: Recipe, *, blocks: int, processes: int
) -> tuple[StandardJEC, Likelihood, ResponseJets]:
    """Return corrections and likelihood from `blocks` blocks of hard events, and their jets."""
    offsets = _collect(OffsetMaker, recipe, OFFSET_BLOCKS, processes, recipe, "pile-up offset")
    l1 = fit_l1(np.concatenate(offsets))
    parts = _collect(ResponseMaker, (recipe, l1), blocks, processes, recipe, "response")
    jets = ResponseJets.join(parts)
    corrections = fit_l2l3(l1, jets)

    # The likelihood has bins for jets that the JetNtuple stores.
    pt = jets.pt * corrections.l2l3(jets.pt, jets.eta)
    has_bin = (pt > quark_gluon.PT_EDGES[0]) & (np.abs(jets.eta) < quark_gluon.ETA_EDGES[-1])
    jets_in_bins = jets[has_bin]
    likelihood = quark_gluon.derive(
        pt[has_bin], jets_in_bins.eta, jets_in_bins.shape, jets_in_bins.flavour
    )
    return corrections, likelihood, jets


def fit_l1(offsets: np.ndarray) -> StandardJEC:
    """Return the straight line of density against rho in each eta bin, by least squares.

    offsets: (events, 1 + B) as OffsetMaker gives them.
    """
    rho = offsets[:, 0]
    design = np.column_stack([np.ones_like(rho), rho])
    (intercept, slope), *_ = np.linalg.lstsq(design, offsets[:, 1:])
    return dataclasses.replace(
        jec.no_corrections(ETA_EDGES), l1_intercept=intercept, l1_slope=slope
    )


def fit_l2l3(l1: StandardJEC, jets: ResponseJets) -> StandardJEC:
    """Return the corrections with the inverse of the median response in each eta bin.

    The median is smoothed against the L1-corrected pT. Raises InputError for too few jets.
    """
    eta_bin = l1.eta_bin(jets.eta)
    gen_bin = np.searchsorted(GEN_PT_EDGES, jets.gen_pt, side="right") - 1
    log_pt, factor = [], []
    for number in range(len(ETA_EDGES) - 1):
        rows = []
        for gen_number in range(len(GEN_PT_EDGES) - 1):
            inside = np.flatnonzero((eta_bin == number) & (gen_bin == gen_number))
            if len(inside) >= MIN_JETS:
                rows.append(median_response(jets.pt[inside], jets.gen_pt[inside]))
        require(
            len(rows) > DEGREE,
            f"too few jets in the eta bin from {ETA_EDGES[number]:g}; ask for more --events",
        )
        points, response, weight = np.array(rows).T  # (points, 3) -> 3 × (points,)
        smooth = np.polynomial.Polynomial.fit(points, response, DEGREE, w=weight)
        log_pt.append(points)
        factor.append(1 / smooth(points))
    return dataclasses.replace(l1, log_pt=tuple(log_pt), factor=tuple(factor))


def median_response(pt: np.ndarray, gen_pt: np.ndarray) -> tuple[float, float, float]:
    """Log of the median pT, median response, and 1 / the median's standard error.

    pt, gen_pt: GeV, (N,) each.
    """
    low, middle, high = np.quantile(pt / gen_pt, [0.25, 0.5, 0.75])
    # Of a normal distribution the median has the error 1.253 sigma / sqrt(N), and the quartiles are
    # 1.349 sigma apart.
    error = 1.253 * (high - low) / 1.349 / np.sqrt(len(pt))
    return float(np.log(np.median(pt))), middle, 1 / error


Order = TypeVar("Order")
Result = TypeVar("Result")


def _collect(
    maker: Callable[[Order], Callable[[int], Result]],
    order: Order,
    blocks: int,
    processes: int,
    recipe: Recipe,
    label: str,
) -> list[Result]:
    """Return the results of `maker(order)` for blocks 0, 1, ..., blocks - 1."""
    source = workers.blocks(
        maker, order, workers=processes, events_per_block=recipe.events_per_block
    )
    results = []
    with (
        contextlib.closing(source),
        Progress(label, total=blocks * recipe.events_per_block, unit="events") as progress,
    ):
        for _ in range(blocks):
            results.append(next(source))
            progress.advance(recipe.events_per_block)
    return results


CLOSURE_EDGES = (30, 60, 120, 250, 500, 1000, np.inf)
"""pT_gen (GeV) of the bins of `closure`."""


def closure(corrections: StandardJEC, jets: ResponseJets) -> list[tuple[str, list[float]]]:
    """Return median response after all corrections in bins of pT_gen, for each eta bin.

    NaN without jets.

    Returns (range of |eta|, medians between CLOSURE_EDGES).
    """
    response = jets.pt * corrections.l2l3(jets.pt, jets.eta) / jets.gen_pt
    rows = []
    for low, high in itertools.pairwise(ETA_EDGES):
        in_region = (np.abs(jets.eta) >= low) & (np.abs(jets.eta) < high)
        medians = []
        for pt_low, pt_high in itertools.pairwise(CLOSURE_EDGES):
            inside = in_region & (jets.gen_pt >= pt_low) & (jets.gen_pt < pt_high)
            medians.append(float(np.median(response[inside])) if inside.any() else float("nan"))
        rows.append((f"{low:g}-{high:g}", medians))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Return the command `python -m data.derive`."""
    parser = Parser(prog="python -m data.derive", description=__doc__)
    parser.add_argument(
        "--events",
        type=int,
        default=60_000,
        metavar="N",
        help="number of hard collisions (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=output_folder,
        default=Path(__file__).parent,
        metavar="DIR",
        help="folder for both files (default: this package)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=271_828,
        metavar="N",
        help="whole number from 0, other than the seed of a sample (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    options = parser.parse_args(argv)
    return run_main(lambda: _derive_and_write(options))


def _derive_and_write(options: Namespace) -> None:
    check_installed()
    require(
        1000 <= options.events <= MOST_EVENTS,
        f"--events is {options.events}; it must be between 1000 and {MOST_EVENTS:,}",
    )
    check_workers(options.workers)
    require(
        0 <= options.seed <= MAX_SEED, f"--seed is {options.seed}; it must be from 0 to {MAX_SEED}"
    )
    recipe = Recipe(seed=options.seed)
    blocks = options.events // recipe.events_per_block
    with terminated_as_interrupt():
        corrections, likelihood, jets = derive(
            recipe, blocks=blocks, processes=options.workers or available_cores()
        )
    made_by = {
        "command": "python -m data.derive",
        "events": blocks * recipe.events_per_block,
        "seed": recipe.seed,
        "jets": len(jets.pt),
    }
    _write(options.output / jec.STANDARD.name, jec.content(corrections, made_by))
    _write(options.output / quark_gluon.STANDARD.name, quark_gluon.content(likelihood, made_by))
    print("median response after correction, pT_gen from 30, 60, 120, 250, 500, 1000 GeV")
    for region, medians in closure(corrections, jets):
        print(f"|eta| {region:9s}", "  ".join(f"{value:.3f}" for value in medians))


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON with each innermost list on one line: a change of constants is easy to read."""

    def on_one_line(match: re.Match[str]) -> str:
        return f"[{' '.join(match[1].split())}]"

    text = json.dumps(content, indent=1, allow_nan=False)
    storage.write_text(str(path), re.sub(r"\[\s+([^\[\]]+?)\s+\]", on_one_line, text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
