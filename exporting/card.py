"""Write the model card at the export: everything except measurements on the test jets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common import card, storage
from common.layout import RunFolder
from common.records import ExportRecord, ModelCard
from exporting.request import Export
from reporting.model_card import page

if TYPE_CHECKING:
    from weaver.feed.dataset import Dataset


def card_of(
    request: Export, record: ExportRecord, metadata: Mapping[str, object], dataset: Dataset
) -> ModelCard:
    """Return the card of the exported models; `dataset` has the validation jets."""
    facts, notes = card.read_copy(request.folder.config)
    selection = dataset.data_config.selections["train"]
    models = [record.model]
    limits = []
    if record.raw is not None:
        models.append(record.raw.model)
    if record.valid_range is None:
        limits.append("The range of the training is not known: the observers do not say the pT.")
    elif record.raw is not None:
        limits.append(
            f"{record.raw.model} returns the standard correction, with valid = false, outside of"
            f" the range, for numbers that are not finite and for jets without particles;"
            f" {record.model} answers to every jet."
        )
    else:
        limits.append("There is no raw model: a client must check the range by itself.")
    limits.append(
        "It corrects for jets like those of its selection, of the kind it was trained on."
    )
    if record.residual is None:
        limits.append(f"It has no residual correction: {record.residual_reason}.")
    return ModelCard(
        models=models,
        run_id=str(metadata["run_id"]),
        trial=request.trial,
        trained_on=facts,
        notes=notes,
        selection="" if selection is None else selection.text,
        label=json.loads(str(metadata["label"])),
        num_validation_jets=len(dataset),
        valid_range=record.valid_range,
        limits=limits,
        version=str(metadata["version"]),
        git_commit=str(metadata["git_commit"]),
        data_fingerprint=str(metadata["data_fingerprint"]),
        data_config_digest=str(metadata["data_config_digest"]),
        packages=record.versions,
    )


def write_card(folder: RunFolder, content: ModelCard) -> None:
    """Write the card as JSON and as Markdown, beside the model repository and not in it."""
    content.save(folder.card)
    storage.write_text(folder.card_page, page(content))
