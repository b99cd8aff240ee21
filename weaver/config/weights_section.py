"""Parse the `weights` section of a data config; weaver/config/weights.py explains its keys."""

from __future__ import annotations

import dataclasses
import itertools

from common.errors import unknown
from weaver.config.document import Document, Options, is_names
from weaver.config.weights import METHODS, USES, Histograms, Reweighting, histograms_from

KEYS = frozenset(
    {
        "use_precomputed_weights",
        "weight_branches",
        "reweight_method",
        "reweight_basewgt",
        "reweight_vars",
        "reweight_classes",
        "class_weights",
        "reweight_threshold",
        "reweight_discard_under_overflow",
        "reweight_hists",
        "use_as",
    }
)
WEIGHT = "_weight_"
BASE_WEIGHT = "_basewgt_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """The section's content; all None in a data config without weights."""

    name: str | None = None
    """The column that holds a jet's weight."""
    use: str | None = None
    """One of weights.USES."""
    reweighting: Reweighting | None = None
    hists: Histograms | None = None


def parse_weights(document: Document) -> Weights:
    """Read `weights`, and define the weight's expression where it is a product of branches.

    Raises InputError for a value that does not exist or does not fit the others.
    """
    if document.options.get("weights") is None:
        return Weights()
    section = document.mapping("weights")
    document.check_keys("weights", section, KEYS)
    if not isinstance(section.get("use_precomputed_weights"), bool):
        raise document.error("weights", "use_precomputed_weights must be true or false")
    use = section.get("use_as")
    if use not in (None, *USES):
        raise document.error("weights", unknown("use_as", str(use), USES))
    use = use or USES[0]

    if not section["use_precomputed_weights"]:
        reweighting = _parse_reweighting(document, section)
        hists = section.get("reweight_hists")
        if hists:
            hists = histograms_from(hists, reweighting, f"{document.source}: weights")
        return Weights(name=WEIGHT, use=use, reweighting=reweighting, hists=hists)

    names = section.get("weight_branches")
    if not isinstance(names, list) or not names:
        raise document.error(
            "weights", "use_precomputed_weights needs weight_branches: [branch, ...]"
        )
    document.define(WEIGHT, "*".join(map(str, names)), "weights")
    return Weights(name=WEIGHT, use=use)


def _parse_reweighting(document: Document, section: Options) -> Reweighting:
    method = section.get("reweight_method")
    if method not in METHODS:
        raise document.error("weights", unknown("reweight_method", str(method), METHODS))

    classes = section.get("reweight_classes")
    if not is_names(classes) or not classes:
        raise document.error(
            "weights",
            "reweight_classes must be a list of columns that are 1 for the jets of a class, found"
            f" {classes!r}",
        )
    factors = section.get("class_weights")
    if factors is not None and (not isinstance(factors, list) or len(factors) != len(classes)):
        raise document.error(
            "weights",
            f"class_weights must be one number for each of {len(classes)} reweight_classes, found"
            f" {factors!r}",
        )

    # weaver-core's default
    threshold = document.number(
        section.get("reweight_threshold", 10), "weights: reweight_threshold"
    )
    if not 0 <= threshold <= 100:
        raise document.error(
            "weights", f"reweight_threshold is a percentile from 0 to 100, found {threshold}"
        )
    base = section.get("reweight_basewgt")
    if base:
        document.define(BASE_WEIGHT, base, "weights")
    (first, first_bins), (second, second_bins) = _parse_bins(document, section)
    if factors is not None:
        factors = tuple(document.number(factor, "weights: class_weights") for factor in factors)
    return Reweighting(
        method=method,
        variables=(first, second),
        bins=(first_bins, second_bins),
        classes=tuple(classes),
        class_weights=factors,
        threshold=threshold,
        discard=bool(section.get("reweight_discard_under_overflow", True)),
        base=BASE_WEIGHT if base else None,
    )


def _parse_bins(document: Document, section: Options) -> list[tuple[str, tuple[float, ...]]]:
    """Return the two variables of the histograms, each with the rising edges of its bins."""
    variables = section.get("reweight_vars")
    if not isinstance(variables, dict) or len(variables) != 2:
        raise document.error(
            "weights",
            "reweight_vars must name two variables with the edges of their bins, found"
            f" {variables!r}",
        )
    bins = []
    for name, edges in variables.items():
        numbers = []
        for edge in edges if isinstance(edges, list) else ():
            numbers.append(document.number(edge, f"weights: reweight_vars: {name}"))
        if len(numbers) < 2 or any(low >= high for low, high in itertools.pairwise(numbers)):
            raise document.error(
                "weights",
                f"reweight_vars: '{name}' needs two or more rising edges of bins, found {edges!r}",
            )
        bins.append((str(name), tuple(numbers)))
    return bins
