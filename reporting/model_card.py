"""The model card as Markdown, and its completion with the measurements on the test jets."""

from __future__ import annotations

import dataclasses

from common import storage
from common.layout import RunFolder
from common.measurements import Interval
from common.records import MetricsRecord, ModelCard


def page(card: ModelCard) -> str:
    """Return the card as Markdown."""
    lines = [f"# {card.models[0]}", ""]
    if card.notes:
        lines += [card.notes.strip(), ""]
    facts = dict(card.trained_on)
    facts["selection"] = card.selection or "none"
    facts |= {f"label {name}": text for name, text in card.label.items()}
    facts["validation jets"] = f"{card.num_validation_jets:,}"
    facts["data fingerprint"] = card.data_fingerprint
    lines += _section("Trained on", facts)
    limits = card.valid_range
    if limits is not None:
        range_facts = {
            "pT": f"{limits.min_pt:g} to {limits.max_pt:g} GeV (0.1 and 99.9 % quantiles of the"
            f" {limits.jets} jets)"
        }
        if limits.max_abs_eta is not None:
            range_facts["abs(jetEta)"] = f"at most {limits.max_abs_eta:g}"
        lines += _section("Valid range", range_facts)
    results = card.performance or {"performance": "not measured yet: the evaluation does it"}
    if card.gate:
        results = {**results, "gate": card.gate}
    lines += _section("Measured on the test jets", results)
    lines += ["## Limits", "", *(f"- {limit}" for limit in card.limits), ""]
    origin = {
        "models": ", ".join(card.models),
        "run": card.run_id,
        "trial": card.trial,
        "version": card.version,
        "commit": card.git_commit,
        "data config": card.data_config_digest,
        "packages": card.packages,
    }
    lines += _section("Origin", origin)
    return "\n".join(lines)


def _section(title: str, facts: dict[str, str]) -> list[str]:
    return [f"## {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]


def complete_card(folder: RunFolder, metrics: MetricsRecord) -> None:
    """Add the measurements to the card of a run, if the run has a card of this model."""
    card = ModelCard.find(folder.card)
    if card is None or metrics.model not in card.models:
        return
    complete = dataclasses.replace(card, performance=performance(metrics), gate=_verdict(metrics))
    complete.save(folder.card)
    storage.write_text(folder.card_page, page(complete))


def performance(metrics: MetricsRecord) -> dict[str, str]:
    """Return the measured numbers with their intervals, as text."""
    level = f"{100 * metrics.interval:g} % intervals"
    results = {"test jets": f"{metrics.num_measured:,} of {metrics.num_jets:,} ({level})"}
    if metrics.gain is not None:
        results["resolution gain over the standard JEC, pT > 30 GeV"] = metrics.gain.percent()
    if metrics.resolution is not None:
        results["resolution"] = _interval(metrics.resolution.model)
        results["resolution of the standard JEC"] = _interval(metrics.resolution.standard)
    if metrics.uncertainty is not None:
        for band in metrics.uncertainty.bands:
            results[f"coverage of {band.low} to {band.high} ({band.nominal:.0%})"] = _interval(
                band.coverage
            )
    return results


def _interval(value: Interval) -> str:
    return f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g})"


def _verdict(metrics: MetricsRecord) -> str:
    return "passed" if metrics.passed else f"refused: {'; '.join(metrics.reasons)}"
