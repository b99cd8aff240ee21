"""Test jets and models for the gate: a good model, and ways to harm one.

The jets have the spectrum, the resolution, the tails, the flavours and the threshold of the
project's generated jets: IQR / median 0.16 at 50 GeV and 0.06 at 1.2 TeV, light quarks 1.8 % above
gluons, 1.2 % of the jets off by more than 30 %, +4 % of bias at 30 to 40 GeV by the cut on the
reconstructed pT. The good model gains 12 to 13 %, as a network does on such jets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from physics.response import in_region

Jets = Mapping[str, np.ndarray]
"""Observers: name -> (N,)."""

NAMES = ["median", "q16", "q84"]
WIDTH_OF_Q84 = 0.9545
"""The 84 % quantile of Student's t with 8 degrees of freedom, scaled to unit variance, is this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Jets with the answers of a model: log(pT_gen / pT) and its quantiles, (N, 3)."""

    jets: Jets
    answers: np.ndarray

    def copy(self, seed: int) -> Model:
        """A bootstrap copy: as many jets, drawn with replacement."""
        number = len(self.answers)
        indices = np.random.default_rng(seed).integers(0, number, number)
        jets = {name: values[indices] for name, values in self.jets.items()}
        return Model(jets=jets, answers=self.answers[indices])

    def scaled(self, factor: float, which: np.ndarray) -> Model:
        """The calibrated pT of the jets `which` (N,) bool times a factor."""
        shift = np.where(which, np.log(factor), 0.0)
        return dataclasses.replace(self, answers=self.answers + shift[:, None])


def good_model(number: int, seed: int) -> Model:
    """A model that knows a quarter of the variance of each jet's response, and closes."""
    rng = np.random.default_rng(seed)
    num_candidates = 2 * number
    # Flat in log(pT) up to 700 GeV, then falling towards 2.5 TeV.
    log_pt = (
        np.log(14)
        + 3.9 * rng.random(num_candidates)
        + np.abs(rng.normal(0, 0.55, num_candidates)) * (rng.random(num_candidates) < 0.5)
    )
    gen_pt = np.exp(log_pt)
    eta = np.where(
        rng.random(num_candidates) < 0.68,
        1.3 * rng.random(num_candidates),
        1.3 + 1.2 * rng.random(num_candidates),
    )
    eta = eta * rng.choice([-1, 1], num_candidates)
    gluon_share = np.clip(0.62 - 0.06 * (log_pt - np.log(60)), 0.2, 0.8)
    kind = rng.random(num_candidates)
    flavour = np.select([kind < 0.05, kind < 0.14, kind < 0.14 + 0.86 * gluon_share], [5, 4, 21], 1)
    sigma = np.clip(0.132 * (gen_pt / 45) ** -0.34, 0.042, 0.16) * np.where(
        np.abs(eta) < 1.3, 1, 0.95
    )
    rho = np.clip(rng.normal(20, 6, num_candidates), 4, None)

    known_part = rng.normal(size=num_candidates)  # the part that the particles predict
    unknown_part = rng.standard_t(8, num_candidates) / np.sqrt(8 / 6)
    outlier = rng.random(num_candidates) < 0.01
    unknown_part = np.where(outlier, rng.normal(-2, 4, num_candidates), unknown_part)
    shift = np.select([flavour == 21, flavour == 5], [-0.007, -0.007], 0.011) + 0.0003 * (rho - 20)
    error = shift + sigma * (0.44 * known_part + 0.898 * unknown_part)
    jet_pt = gen_pt * np.exp(error)

    # The model corrects the known part and half of the flavour's shift, with a little noise.
    corrected = 0.5 * shift + sigma * (0.44 * known_part + 0.1 * rng.normal(size=num_candidates))
    ripple = 0.003 * np.sin(1.5 * log_pt)
    median = -corrected + ripple
    half = 0.898 * WIDTH_OF_Q84 * sigma
    answers = np.stack([median, median - half, median + half], axis=1)

    accepted_jets = np.flatnonzero((jet_pt > 30) & (gen_pt > 20))[:number]
    jets = {
        "jetPt": jet_pt,
        "genJetPt": gen_pt,
        "genJetEta": eta,
        "partonFlav": np.where(flavour == 1, rng.choice([1, -2, 3], num_candidates), flavour),
        "hadronFlav": np.where(np.isin(flavour, (4, 5)), flavour, 0),
        "rhoAll": rho,
        "jetPhi": rng.uniform(-np.pi, np.pi, num_candidates),
    }
    assert len(accepted_jets) == number
    return Model(
        jets={name: values[accepted_jets] for name, values in jets.items()},
        answers=answers[accepted_jets],
    )


def region(model: Model, name: str) -> np.ndarray:
    """Which jets lie in a region of eta."""
    return in_region(model.jets["genJetEta"], name)


def between(model: Model, column: str, low: float, high: float) -> np.ndarray:
    """Which jets have a value from low to high."""
    return (model.jets[column] >= low) & (model.jets[column] < high)


def of_flavour(model: Model, *codes: int) -> np.ndarray:
    """Which jets have a parton of these PDG codes."""
    return np.isin(np.abs(model.jets["partonFlav"]), codes)


def with_outliers(model: Model, share: float, which: np.ndarray) -> Model:
    """A random share of the jets `which` gets a pT that is wrong by a factor of 2, up or down."""
    rng = np.random.default_rng(5)
    hit = which & (rng.random(len(which)) < share)
    factor = np.where(rng.random(len(which)) < 0.5, np.log(2), -np.log(2))
    return dataclasses.replace(model, answers=model.answers + np.where(hit, factor, 0)[:, None])


def standard_jec(model: Model) -> Model:
    """A model that leaves the standard JEC unchanged: the median is 0, with a correct interval."""
    half = (model.answers[:, 2] - model.answers[:, 1]) / 2
    half = half * 1.14  # the standard JEC has a worse resolution than the good model
    zero = np.zeros(len(half))
    return dataclasses.replace(model, answers=np.stack([zero, -half, half], axis=1))


def noisy(model: Model, size: float, which: np.ndarray) -> Model:
    """The corrections of the jets `which` with noise of `size` added."""
    noise = np.random.default_rng(6).normal(0, size, len(which))
    return dataclasses.replace(model, answers=model.answers + np.where(which, noise, 0)[:, None])


def pure_noise(model: Model) -> Model:
    """Answers that do not depend on the jet."""
    answers = model.answers - model.answers[:, :1]
    return noisy(dataclasses.replace(model, answers=answers), 0.1, np.ones(len(answers), bool))


def shuffled(model: Model) -> Model:
    """Each jet gets the answer of another."""
    order = np.random.default_rng(7).permutation(len(model.answers))
    return dataclasses.replace(model, answers=model.answers[order])


def regions_swapped(model: Model) -> Model:
    """Barrel jets get the answers of endcap jets, and the other way round."""
    rng = np.random.default_rng(8)
    barrel, endcap = (np.flatnonzero(region(model, name)) for name in ("barrel", "endcap"))
    answers = model.answers.copy()
    answers[barrel] = model.answers[rng.choice(endcap, len(barrel))]
    answers[endcap] = model.answers[rng.choice(barrel, len(endcap))]
    return dataclasses.replace(model, answers=answers)


def widened(model: Model, factor: float, which: np.ndarray) -> Model:
    """The error of log(pT) of the jets `which`, and their intervals, multiplied by a factor."""
    true = np.log(model.jets["genJetPt"] / model.jets["jetPt"])
    median = true + factor * (model.answers[:, 0] - true)
    width = factor * (model.answers - model.answers[:, :1])
    wider = median[:, None] + width
    return dataclasses.replace(model, answers=np.where(which[:, None], wider, model.answers))


def interval_times(model: Model, factor: float, which: np.ndarray) -> Model:
    """The widths of the intervals of the jets `which`, multiplied by a factor."""
    median = model.answers[:, :1]
    wider = median + factor * (model.answers - median)
    return dataclasses.replace(model, answers=np.where(which[:, None], wider, model.answers))


def with_equal_intervals(model: Model) -> Model:
    """Every jet gets an interval of the same width; together they cover 68 % of the jets."""
    true = np.log(model.jets["genJetPt"] / model.jets["jetPt"])
    median = model.answers[:, 0]
    half = np.full(len(true), np.quantile(np.abs(true - median), 0.68))
    answers = np.stack([median, median - half, median + half], axis=1)
    return dataclasses.replace(model, answers=answers)


def offset(model: Model, gev: float) -> Model:
    """A calibrated pT that is `gev` (GeV) larger for every jet."""
    calibrated = model.jets["jetPt"] * np.exp(model.answers[:, 0])
    shift = np.log1p(gev / calibrated)
    return dataclasses.replace(model, answers=model.answers + shift[:, None])


def all_jets(model: Model) -> np.ndarray:
    """A mask (N,) that selects every jet."""
    return np.ones(len(model.answers), dtype=bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harm:
    """A way to harm a good model, and the quantities that the gate may name in its refusal."""

    apply: Callable[[Model], Model]
    reasons: tuple[str, ...]
    gate: str = "default"


CLOSURE, GAIN, COVERAGE = ("closure",), ("gain", "resolution"), ("coverage",)
TAILS = ("tail beyond 30 %", "tail beyond a factor 1.5")
FLAVOUR = ("flavour spread",)

HARMS = {
    "8 % up below 60 GeV": Harm(
        apply=lambda m: m.scaled(1.08, between(m, "genJetPt", 0, 60)), reasons=CLOSURE
    ),
    "3 % of jets off by a factor 2": Harm(
        apply=lambda m: with_outliers(m, 0.03, all_jets(m)), reasons=TAILS
    ),
    "1.8 % up": Harm(apply=lambda m: m.scaled(1.018, all_jets(m)), reasons=CLOSURE),
    "does nothing": Harm(apply=standard_jec, reasons=("gain",), gate="strict"),
    "noise": Harm(apply=pure_noise, reasons=GAIN),
    "shuffled": Harm(apply=shuffled, reasons=GAIN),
    "regions swapped": Harm(apply=regions_swapped, reasons=GAIN),
    "8 % up in a slice of eta": Harm(
        apply=lambda m: m.scaled(1.08, between(m, "genJetEta", 0.5, 1.0)), reasons=CLOSURE
    ),
    "gluons 5 % up": Harm(apply=lambda m: m.scaled(1.05, of_flavour(m, 21)), reasons=FLAVOUR),
    "light quarks 5 % up": Harm(
        apply=lambda m: m.scaled(1.05, of_flavour(m, 1, 2, 3)), reasons=FLAVOUR
    ),
    "wider by 20 %": Harm(apply=lambda m: widened(m, 1.2, all_jets(m)), reasons=GAIN),
    "intervals half as wide": Harm(
        apply=lambda m: interval_times(m, 0.5, all_jets(m)), reasons=COVERAGE
    ),
}
"""Name -> a harmful model."""

MORE_HARMS = {
    "5 % down above 300 GeV": Harm(
        apply=lambda m: m.scaled(0.95, between(m, "genJetPt", 300, 1e9)), reasons=CLOSURE
    ),
    "5 % down above 1000 GeV": Harm(
        apply=lambda m: m.scaled(0.95, between(m, "genJetPt", 1000, 1e9)), reasons=CLOSURE
    ),
    "8 % down below 60 GeV": Harm(
        apply=lambda m: m.scaled(0.92, between(m, "genJetPt", 0, 60)), reasons=CLOSURE
    ),
    "1.8 % down": Harm(apply=lambda m: m.scaled(0.982, all_jets(m)), reasons=CLOSURE),
    "3 GeV too much": Harm(apply=lambda m: offset(m, 3), reasons=CLOSURE),
    "3 GeV too little": Harm(apply=lambda m: offset(m, -3), reasons=CLOSURE),
    "8 % up in a narrow slice of eta": Harm(
        apply=lambda m: m.scaled(1.08, between(m, "genJetEta", -2.05, -1.95)), reasons=CLOSURE
    ),
    "8 % up in a slice of phi": Harm(
        apply=lambda m: m.scaled(1.08, between(m, "jetPhi", 1.0, 1.5)), reasons=CLOSURE
    ),
    "rises with pile-up": Harm(
        apply=lambda m: dataclasses.replace(
            m, answers=m.answers + 0.004 * (m.jets["rhoAll"] - 20)[:, None]
        ),
        reasons=CLOSURE,
    ),
    "gluons 5 % down": Harm(apply=lambda m: m.scaled(0.95, of_flavour(m, 21)), reasons=FLAVOUR),
    "light quarks 5 % down": Harm(
        apply=lambda m: m.scaled(0.95, of_flavour(m, 1, 2, 3)), reasons=FLAVOUR
    ),
    "b 5 % down": Harm(apply=lambda m: m.scaled(0.95, of_flavour(m, 5)), reasons=FLAVOUR),
    "c 5 % up": Harm(apply=lambda m: m.scaled(1.05, of_flavour(m, 4)), reasons=FLAVOUR),
    "endcap wider by 30 %": Harm(
        apply=lambda m: widened(m, 1.3, region(m, "endcap")), reasons=("resolution",)
    ),
    "wider by 40 % above 300 GeV": Harm(
        apply=lambda m: widened(m, 1.4, between(m, "genJetPt", 300, 1e9)), reasons=("resolution",)
    ),
    "3 % of endcap jets off by a factor 2": Harm(
        apply=lambda m: with_outliers(m, 0.03, region(m, "endcap")), reasons=TAILS
    ),
    "1 % of jets off by a factor 2": Harm(
        apply=lambda m: with_outliers(m, 0.01, all_jets(m)), reasons=TAILS
    ),
    "intervals twice as wide": Harm(
        apply=lambda m: interval_times(m, 2, all_jets(m)), reasons=COVERAGE
    ),
    "intervals all of one width": Harm(apply=with_equal_intervals, reasons=COVERAGE),
    "intervals half as wide above 300 GeV": Harm(
        apply=lambda m: interval_times(m, 0.5, between(m, "jetPt", 300, 1e9)), reasons=COVERAGE
    ),
    "intervals of the endcap half as wide": Harm(
        apply=lambda m: interval_times(m, 0.5, region(m, "endcap")), reasons=COVERAGE
    ),
}
