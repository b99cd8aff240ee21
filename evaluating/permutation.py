"""What each group of inputs is worth to a model: shuffle it among the jets, and measure again.

Inputs that describe the same particles (coordinates, features, mask) are shuffled together, so that
each particle stays whole. Source: L. Breiman, Machine Learning 45 (2001) 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.measurements import Importances, InputImportance
from common.progress import Progress
from evaluating.inference import BATCH_SIZE, Answerer
from evaluating.inputs import Columns, TestSet
from physics import groups
from physics import response as r
from physics.response import Floats

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SHUFFLINGS = 5
SECONDS = 6.0
"""All shufflings together take about so long; fewer jets are taken where the model is slow."""
LEAST_JETS = 500
"""Below, the gain of the shuffled jets says little; with fewer test jets nothing is measured."""


def importances(
    session: InferenceSession,
    test: TestSet,
    columns: Columns,
    jets_per_second: float | None,
    seed: int,
) -> Importances | None:
    """What each group of the model's inputs is worth on the test jets above 30 GeV.

    columns: observers, name -> (N,). jets_per_second: the model's speed. None with fewer than
    LEAST_JETS jets, and where a model's answers have no width.
    """
    one = groups.SUMMARY[-1]
    usable = np.asarray(columns["jetPt"]) > 0
    jets = np.flatnonzero(one.contains(columns["genJetPt"], columns["genJetEta"]) & usable)
    names = [entry.name for entry in session.get_inputs()]
    together = grouped(names, test.data_config.input_shapes)
    if len(jets) < LEAST_JETS or not together:
        return None
    affordable = SECONDS * (jets_per_second or 0.0) / (SHUFFLINGS * len(together))
    number = min(len(jets), max(LEAST_JETS, math.floor(affordable)))
    jets = jets[np.arange(number) * len(jets) // number]  # evenly spread
    rng = np.random.default_rng(seed)
    answerer = Answerer(session, test)
    observed = {name: np.asarray(columns[name])[jets] for name in ("jetPt", "genJetPt")}

    total = number * (1 + SHUFFLINGS * len(together))
    with Progress("shuffling inputs", total=total, unit="jets") as progress:

        def gain_with(shuffled: list[str], donors: np.ndarray) -> float:
            """The gain where the inputs `shuffled` are those of the jets `donors`."""
            parts = []
            for start in range(0, number, BATCH_SIZE):
                own, other = jets[start : start + BATCH_SIZE], donors[start : start + BATCH_SIZE]
                tensors = answerer.tensors(own, dict.fromkeys(shuffled, other))
                parts.append(answerer.run(tensors)[:, 0])
                progress.advance(len(own))
            return gain(observed, np.concatenate(parts))

        in_place = gain_with([], jets)
        measured = []
        for name, inputs in together.items():
            lost = []
            for _ in range(SHUFFLINGS):
                lost.append(in_place - gain_with(inputs, rng.permutation(jets)))
            measured.append(InputImportance(name=name, inputs=inputs, gain_lost=lost))
    if not np.isfinite([in_place, *(lost for one in measured for lost in one.gain_lost)]).all():
        return None
    measured.sort(key=lambda one: one.mean, reverse=True)
    return Importances(num_jets=number, gain=in_place, groups=measured)


def grouped(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Name of a group -> the inputs that are shuffled together.

    names: the model's inputs. shapes: those of the data config's groups, (-1, C, P) for particles.
    Particles whose inputs have a name in common before the underscore, as pf_features and pf_mask,
    are one group. Inputs that the data config does not have are left alone.
    """
    together: dict[str, list[str]] = {}
    for name in names:
        if name not in shapes:
            continue
        is_sequence = len(shapes[name]) > 2
        key = name.rsplit("_", 1)[0] if is_sequence else name
        together.setdefault(f"{key} (particles)" if is_sequence else name, []).append(name)
    return together


def gain(columns: Mapping[str, Any], output: Floats) -> float:
    """Gain of resolution over the standard JEC (per cent); output: log(pT_gen / pT), (N,).

    NaN where a response has no width, or no finite median.
    """
    gen_pt = columns["genJetPt"]
    model = r.response(r.calibrated_pt(columns["jetPt"], output), gen_pt)
    standard = r.response(columns["jetPt"], gen_pt)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(r.gain(r.quantiles(model), r.quantiles(standard)))
