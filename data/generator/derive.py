"""Derive the standard jet energy corrections and the quark-gluon likelihood from the generator's
own events.

    python -m data.derive

writes standard_jec.json and quark_gluon.json into this folder (another with --output), which
data.generator.generate applies. Needed after any change of the detector or of the pile-up. The
method is in data.generator.jec and data.generator.quark_gluon; 60,000 events take some minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np

from common import storage
from common.cli import Parser, require, run_main
from common.progress import Progress
from data import ragged
from data.generator import detector, jec, pileup, quark_gluon, reconstruction, workers
from data.generator.blocks import LIBRARY, BlockMaker, Recipe, pythia_seed, random_generator
from data.generator.generate import available_cores, check_installed, terminated_as_interrupt
from data.generator.jec import StandardJEC
from data.generator.quark_gluon import Likelihood, Shape

ETA_EDGES = np.array([0.0, 0.65, 1.3, 1.6, 2.0, 2.5, 3.2])
"""Finer where the response changes: the ECAL has its gap at 1.48, the tracker ends at 2.5."""
GEN_PT_EDGES = np.array(
    [
        10,
        13,
        16,
        20,
        25,
        30,
        37,
        45,
        55,
        70,
        90,
        115,
        150,
        190,
        240,
        300,
        400,
        500,
        650,
        850,
        1100,
        1500,
        2200,
        3500.0,
    ]
)
MIN_JETS = 40  # a bin with fewer gives no point
DEGREE = 4  # of the polynomial in log pT that smooths the points of one eta bin
OFFSET_BLOCKS = 30  # of 100 bunch crossings: the offset is known to 1 % long before the response is


class OffsetMaker:
    """Bunch crossings with pile-up only."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self._library = recipe, pileup.library(pythia_seed(recipe.seed, LIBRARY))

    def __call__(self, number: int) -> np.ndarray:
        """rho and the density after charged hadron subtraction in each eta bin:

        (events, 1 + B), GeV per unit area.
        """
        events, rng = self.recipe.events_per_block, random_generator(self.recipe.seed, number)
        overlay = pileup.overlay(self._library, events, self.recipe.pileup, rng)
        candidates = detector.simulate(overlay.particles, self.recipe.detector, rng)
        kept = candidates[reconstruction.charged_hadron_subtraction(candidates)]
        eta_bin = np.searchsorted(ETA_EDGES, np.abs(kept.eta), side="right") - 1
        inside = eta_bin < len(ETA_EDGES) - 1
        bins = len(ETA_EDGES) - 1
        sums = ragged.total(
            (kept.event * bins + eta_bin)[inside], kept.pt[inside], events * bins
        ).reshape(events, bins)
        return np.column_stack(
            [
                reconstruction.densities(candidates, events).all,
                sums / (4 * np.pi * np.diff(ETA_EDGES)),
            ]
        )


@dataclasses.dataclass(frozen=True)
class ResponseJets:
    """Jets with a generator jet, (J,) each: GeV; `pt` is after L1."""

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
        recipe, self._jec = order
        self._blocks = BlockMaker(recipe)

    def __call__(self, number: int) -> ResponseJets:
        block = self._blocks.reconstructed(number)
        jets, matched = block.jets, block.gen_match >= 0
        l1 = self._jec.l1(jets.pt, jets.eta, block.area, block.densities.all[jets.event])
        hadron = reconstruction.hadron_flavour(block.hard, block.heavy, len(jets))
        shape = quark_gluon.shape(
            jets.member_jet, block.candidates[jets.member], jets.eta, jets.phi
        )
        return ResponseJets(
            pt=(jets.pt * l1)[matched],
            eta=jets.eta[matched],
            gen_pt=block.gen_jets.pt[block.gen_match[matched]],
            flavour=reconstruction.parton_flavour(block.hard, block.parton, hadron)[matched],
            shape=Shape(shape.multiplicity[matched], shape.pt_d[matched], shape.axis2[matched]),
        )


def derive(
    recipe: Recipe, *, blocks: int, processes: int
) -> tuple[StandardJEC, Likelihood, ResponseJets]:
    """Corrections and likelihood from `blocks` blocks of hard events, and the jets that they were
    derived from.
    """
    offsets = np.concatenate(
        _collect(OffsetMaker, recipe, OFFSET_BLOCKS, processes, recipe, "pile-up offset")
    )
    l1 = fit_l1(offsets)
    jets = _joined(_collect(ResponseMaker, (recipe, l1), blocks, processes, recipe, "response"))
    full = fit_l2l3(l1, jets)
    corrected = jets.pt * full.l2l3(jets.pt, jets.eta)
    used = (corrected > quark_gluon.PT_EDGES[0]) & (np.abs(jets.eta) < quark_gluon.ETA_EDGES[-1])
    shape = Shape(jets.shape.multiplicity[used], jets.shape.pt_d[used], jets.shape.axis2[used])
    return (
        full,
        quark_gluon.derive(corrected[used], jets.eta[used], shape, jets.flavour[used]),
        jets,
    )


def fit_l1(offsets: np.ndarray) -> StandardJEC:
    """The straight line of density against rho in each eta bin, from (events, 1 + B) as OffsetMaker
    gives them.
    """
    rho = offsets[:, 0]
    (intercept, slope), *_ = np.linalg.lstsq(
        np.column_stack([np.ones_like(rho), rho]), offsets[:, 1:]
    )
    return dataclasses.replace(
        jec.no_corrections(ETA_EDGES), l1_intercept=intercept, l1_slope=slope
    )


def fit_l2l3(l1: StandardJEC, jets: ResponseJets) -> StandardJEC:
    """The corrections with the inverse of the median response, smoothed, against the L1-corrected
    pT in each eta bin.
    """
    eta_bin, gen_bin = (
        l1.eta_bin(jets.eta),
        np.searchsorted(GEN_PT_EDGES, jets.gen_pt, side="right") - 1,
    )
    log_pt, factor = [], []
    for number in range(len(ETA_EDGES) - 1):
        inside = [
            np.flatnonzero((eta_bin == number) & (gen_bin == k))
            for k in range(len(GEN_PT_EDGES) - 1)
        ]
        rows = [_point(jets, which) for which in inside if len(which) >= MIN_JETS]
        require(
            len(rows) > DEGREE,
            f"too few jets in the eta bin from {ETA_EDGES[number]:g}; ask for more --events",
        )
        points, response, weight = np.array(rows).T
        smooth = np.polynomial.Polynomial.fit(points, response, DEGREE, w=weight)
        log_pt.append(points)
        factor.append(1 / smooth(points))
    return dataclasses.replace(l1, log_pt=tuple(log_pt), factor=tuple(factor))


def _point(jets: ResponseJets, which: np.ndarray) -> tuple[float, float, float]:
    """log of the median pT, median response, and 1 / the median's standard error, of the jets
    `which`.
    """
    response = jets.pt[which] / jets.gen_pt[which]
    low, middle, high = np.quantile(response, [0.25, 0.5, 0.75])
    # of the median of a normal distribution
    error = 1.253 * (high - low) / 1.349 / np.sqrt(len(which))
    return float(np.log(np.median(jets.pt[which]))), middle, 1 / error


def _collect(maker, order, blocks: int, processes: int, recipe: Recipe, label: str) -> list:
    source = workers.blocks(
        maker, order, workers=processes, events_per_block=recipe.events_per_block
    )
    found = []
    with (
        contextlib.closing(source),
        Progress(label, total=blocks * recipe.events_per_block, unit="events") as progress,
    ):
        for _ in range(blocks):
            found.append(next(source))
            progress.advance(recipe.events_per_block)
    return found


def _joined(parts: list[ResponseJets]) -> ResponseJets:
    def join(values) -> np.ndarray:
        return np.concatenate(list(values))

    shape = Shape(
        *(join(getattr(p.shape, f.name) for p in parts) for f in dataclasses.fields(Shape))
    )
    return ResponseJets(
        *(join(getattr(p, name) for p in parts) for name in ("pt", "eta", "gen_pt", "flavour")),
        shape=shape,
    )


def closure(corrections: StandardJEC, jets: ResponseJets) -> list[tuple[str, list[float]]]:
    """Median response after all corrections in bins of pT_gen (30, 60, 120, 250, 500, 1000 GeV),
    for each eta bin.
    """
    edges = np.array([30, 60, 120, 250, 500, 1000, np.inf])
    response = jets.pt * corrections.l2l3(jets.pt, jets.eta) / jets.gen_pt
    rows = []
    for low, high in itertools.pairwise(ETA_EDGES):
        inside = (np.abs(jets.eta) >= low) & (np.abs(jets.eta) < high)
        medians = [
            _median(response[inside & (jets.gen_pt >= a) & (jets.gen_pt < b)])
            for a, b in itertools.pairwise(edges)
        ]
        rows.append((f"{low:g}-{high:g}", medians))
    return rows


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def main(argv: list[str] | None = None) -> int:
    """The command `python -m data.derive`."""
    parser = Parser(prog="python -m data.derive", description=__doc__)
    parser.add_argument(
        "--events",
        type=int,
        default=60_000,
        metavar="N",
        help="hard collisions (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="folder (default: this package)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=271_828,
        metavar="S",
        help="not that of a sample (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one a core)")
    options = parser.parse_args(argv)
    return run_main(lambda: _derive_and_write(options))


def _derive_and_write(options) -> None:
    check_installed()
    require(options.events >= 1000, f"--events is {options.events}; at least 1000 are needed")
    require(
        options.workers is None or options.workers >= 1,
        f"--workers is {options.workers}; it must be at least 1",
    )
    require(options.seed >= 0, f"--seed is {options.seed}; it must be 0 or larger")
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


def _write(path: Path, content: dict) -> None:
    """JSON with each innermost list on one line: short enough to read a change of the constants."""
    text = json.dumps(content, indent=1, allow_nan=False)
    storage.write_text(
        str(path),
        re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        + "\n",
    )


if __name__ == "__main__":
    sys.exit(main())
