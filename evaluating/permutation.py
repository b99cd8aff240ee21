"""Importance of each group of inputs of a model: the gain lost when the group is shuffled.

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
from evaluating.inference import BATCH_SIZE, Predictor
from evaluating.inputs import Columns, TestSet
from physics import groups
from physics import response as r
from physics.response import Floats

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SHUFFLINGS = 5
SECONDS = 6.0
"""Approximate time of all shufflings together; a slow model gets fewer jets."""
MIN_JETS = 500
"""Smallest number of jets; with fewer the gain after shuffling is dominated by fluctuations."""


def importances(
    session: InferenceSession,
    test: TestSet,
    columns: Columns,
    jets_per_second: float | None,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> Importances | None:
    """Measure the importance of each group of inputs on the test jets above 30 GeV.

    Args:
        session: The model.
        test: The test jets.
        columns: Observers of the test jets, (N,) each.
        jets_per_second: Speed of the model, which limits the number of jets.
        seed: Seed of the shuffling.
        batch_size: Jets per call of the model.

    Returns:
        The loss of gain of each group; None with fewer than MIN_JETS jets, or where the response
        has no width.
    """
    bin_of_all = groups.SUMMARY[-1]
    usable = np.asarray(columns["jetPt"]) > 0
    jets = np.flatnonzero(bin_of_all.contains(columns["genJetPt"], columns["genJetEta"]) & usable)
    names = [entry.name for entry in session.get_inputs()]
    input_groups = group_inputs(names, test.data_config.input_shapes)
    if len(jets) < MIN_JETS or not input_groups:
        return None
    affordable = SECONDS * (jets_per_second or 0.0) / (SHUFFLINGS * len(input_groups))
    number = min(len(jets), max(MIN_JETS, math.floor(affordable)))
    jets = jets[np.arange(number) * len(jets) // number]  # evenly spread
    rng = np.random.default_rng(seed)
    predictor = Predictor(session, test)
    momenta = {name: np.asarray(columns[name])[jets] for name in ("jetPt", "genJetPt")}

    total = number * (1 + SHUFFLINGS * len(input_groups))
    with Progress("shuffling inputs", total=total, unit="jets") as progress:

        def gain_with(shuffled_inputs: list[str], donors: np.ndarray) -> float:
            """Return the gain with these inputs of the jets `donors`, indices of shape (n,)."""
            parts = []
            for start in range(0, number, batch_size):
                own, other = jets[start : start + batch_size], donors[start : start + batch_size]
                tensors = predictor.tensors(own, dict.fromkeys(shuffled_inputs, other))
                parts.append(predictor.run(tensors)[:, 0])
                progress.advance(len(own))
            return gain(momenta, np.concatenate(parts))

        reference_gain = gain_with([], jets)
        results = []
        for name, inputs in input_groups.items():
            losses = []
            for _ in range(SHUFFLINGS):
                losses.append(reference_gain - gain_with(inputs, rng.permutation(jets)))
            results.append(InputImportance(name=name, inputs=inputs, gain_lost=losses))
    if not np.isfinite(
        [reference_gain, *(loss for group_result in results for loss in group_result.gain_lost)]
    ).all():
        return None
    results.sort(key=lambda group_result: group_result.mean, reverse=True)
    return Importances(num_jets=number, gain=reference_gain, groups=results)


def group_inputs(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Return the inputs that are shuffled together, by the name of their group.

    Inputs of particles with the same name before the last underscore, like pf_features and pf_mask,
    form one group. Inputs that the data config does not have are not shuffled.

    Args:
        names: Inputs of the model.
        shapes: Shapes of the data config's groups, (-1, C, P) for particles.
    """
    input_groups: dict[str, list[str]] = {}
    for name in names:
        if name not in shapes:
            continue
        is_sequence = len(shapes[name]) > 2
        key = name.rsplit("_", 1)[0] if is_sequence else name
        input_groups.setdefault(f"{key} (particles)" if is_sequence else name, []).append(name)
    return input_groups


def gain(columns: Mapping[str, Any], output: Floats) -> float:
    """Return the gain in resolution over the standard JEC (per cent).

    Args:
        columns: jetPt and genJetPt (GeV), (N,).
        output: log(pT_gen / pT), (N,).

    Returns:
        The gain; NaN where a response has no width, or no finite median.
    """
    gen_pt = columns["genJetPt"]
    model = r.response(r.calibrated_pt(columns["jetPt"], output), gen_pt)
    standard = r.response(columns["jetPt"], gen_pt)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(r.gain(r.quantiles(model), r.quantiles(standard)))
