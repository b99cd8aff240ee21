"""The residual correction of a model: fit on the validation jets, and export for correctionlib.

`fit_residual` uses nothing of the test set. The fit is not cross-validated: the network was not
trained on validation jets, so that a network that overfits its training jets is corrected by its
bias for unknown jets.

residual.json is a correction of correctionlib, schema version 2: `residual(pt, eta)` is the factor
r for the pT (GeV) that the network gives before the correction.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import GateError
from common.progress import Progress
from common.records import ResidualPoint, ResidualRecord
from exporting.candidates import ModelInfo
from exporting.spread import spread
from physics import residual as physics_residual
from physics import response as r
from physics.groups import MIN_JETS
from physics.residual import Curve, Residual

if TYPE_CHECKING:
    import torch

    from weaver.feed.dataset import Dataset

# Of a large validation set. A bin is then known to 0.1 %, and ParticleNet takes a few minutes.
MAX_JETS = 200_000
BATCH_SIZE = 500
TOLERANCE = 1e-6  # largest difference between r and what correctionlib computes
NAME = "residual"
SCHEMA_VERSION = 2

Json = dict[str, Any]


def fit_residual(
    network: torch.nn.Module, info: ModelInfo, dataset: Dataset
) -> tuple[Residual | None, str]:
    """Fit the correction on the validation jets; return it, or None and the reason."""
    import torch

    from weaver.config.reference import no_residual_because
    from weaver.onnx.residual_features import residual_features

    config = dataset.data_config
    reason = no_residual_because(config)
    if reason:
        return None, reason
    index = spread(len(dataset), MAX_JETS)
    pts, gen_pts, etas = [], [], []
    with Progress("residual correction", total=len(index), unit="jets") as progress:
        for start in range(0, len(index), BATCH_SIZE):
            batch = dataset.batch(index[start : start + BATCH_SIZE])
            with torch.no_grad():
                output = network(*(batch.inputs[name] for name in info["input_names"]))
            features = residual_features(config, batch)
            reference = features[:, 0].astype(np.float64)
            label = batch.labels[config.label_names[0]].numpy()
            central = output.reshape(len(batch), -1)[:, 0].numpy()
            pts.append(r.calibrated_pt(reference, central))
            gen_pts.append(r.calibrated_pt(reference, label))
            etas.append(features[:, 1])
            progress.advance(len(batch))
    residual = physics_residual.fit(
        np.concatenate(pts), np.concatenate(gen_pts), np.concatenate(etas)
    )
    if residual is None:
        return None, (
            f"{len(index):,} validation jets are too few: no region has two bins of pT from"
            f" {r.CLOSURE_FROM:g} GeV up with {MIN_JETS}"
        )
    return residual, ""


def residual_record(residual: Residual) -> ResidualRecord:
    """Return the record of the correction for export.json."""
    points = []
    for point in residual.points:
        log_factor = residual.curves[point.region](np.array([point.log_pt]))
        factor = math.exp(point.log_r)
        points.append(
            ResidualPoint(
                region=point.region,
                pt=math.exp(point.log_pt),
                num_jets=point.num_jets,
                needed=factor,
                error=factor * point.error,
                applied=math.exp(float(log_factor[0])),
            )
        )
    return ResidualRecord(num_jets=residual.num_jets, points=points)


def correctionlib_text(residual: Residual, model: str) -> str:
    """Return the correction as JSON of correctionlib, checked with correctionlib.

    Raises:
        GateError: If correctionlib computes another factor than physics.residual.
    """
    regions = [_pt_binning(residual.curves[region]) for region in r.REGIONS]
    edges: list[Any] = [0.0]
    # In single precision, as the exported graph compares.
    edges += [float(np.float32(edge)) for edge in physics_residual.INNER_EDGES]
    by_region = {
        "nodetype": "binning",
        "input": "eta",
        "edges": [*edges, "inf"],
        "content": regions,
        "flow": "clamp",
    }
    absolute_eta = {
        "nodetype": "formula",
        "expression": "abs(x)",
        "parser": "TFormula",
        "variables": ["eta"],
    }
    correction = {
        "name": NAME,
        "description": f"Residual correction of {model}, fitted on its validation jets: multiply"
        " the calibrated pT by it. The exported models contain it already.",
        "version": 1,
        "inputs": [
            {
                "name": "pt",
                "type": "real",
                "description": "the network's calibrated pT (GeV) before this correction",
            },
            {"name": "eta", "type": "real", "description": "jetEta"},
        ],
        "output": {"name": "r", "type": "real", "description": "factor of pT"},
        "data": {
            "nodetype": "transform",
            "input": "eta",
            "rule": absolute_eta,
            "content": by_region,
        },
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "description": "Residual closure correction",
        "corrections": [correction],
    }
    text = json.dumps(document, indent=1)
    _check(text, residual)
    return text


def _pt_binning(curve: Curve) -> Json:
    """Return the curve of a region as bins of pT: constant outside the knots, formulas between."""
    first, last = curve(np.array([curve.knots[0], curve.knots[-1]])).tolist()
    pieces: list[Any] = [math.exp(first)]
    for knot, coefficients in zip(curve.knots, curve.pieces, strict=False):
        step = "(log(x)-[4])"
        pieces.append(
            {
                "nodetype": "formula",
                "expression": f"exp([0]+{step}*([1]+{step}*([2]+{step}*[3])))",
                "parser": "TFormula",
                "variables": ["pt"],
                "parameters": [*coefficients, knot],
            }
        )
    return {
        "nodetype": "binning",
        "input": "pt",
        "edges": [0.0, *(math.exp(knot) for knot in curve.knots), "inf"],
        "content": [*pieces, math.exp(last)],
        "flow": "clamp",
    }


def _check(text: str, residual: Residual) -> None:
    """Compare correctionlib with physics.residual at and between all knots of each region."""
    import correctionlib

    correction = correctionlib.CorrectionSet.from_string(text)[NAME]
    knots = [knot for curve in residual.curves.values() for knot in curve.knots]
    log_pt = np.linspace(min(knots) - 1, max(knots) + 1, 2000)
    log_pt = np.concatenate([log_pt, knots])
    for low, _ in r.REGIONS.values():
        for eta in (low + 0.1, -low - 0.1):
            etas = np.full(len(log_pt), eta)
            theirs = np.asarray(correction.evaluate(np.exp(log_pt), etas))
            off = float(np.abs(theirs - np.exp(residual.log_r(log_pt, etas))).max())
            if not off <= TOLERANCE:
                raise GateError(
                    f"residual.json: at eta {eta:g} correctionlib's correction is off by {off:.2g}"
                    f" from the model's (allowed {TOLERANCE:g})"
                )
