"""Whether a model's file is still the one that was exported."""

from __future__ import annotations

from typing import Any

from common import storage
from common.errors import InputError
from common.layout import RunFolder

ONNX = "/1/model.onnx"
RECORD = "export.json"  # file beside the models of a run
SHOWN = 12  # characters of a digest in an error


def check_model(uri: str, content: bytes) -> None:
    """Compare the bytes of a model with the SHA-256 in the record of its export.

    uri: REPOSITORY/NAME/1/model.onnx. A repository without the record, or a record without the
    model, is accepted. Raises InputError for other bytes than were exported.
    """
    if not uri.endswith(ONNX):
        return
    repository, _, name = uri.removesuffix(ONNX).rpartition("/")
    record = storage.join(repository, RECORD)
    expected = _digests(storage.find_json(record)).get(name)
    actual = storage.digest(content)
    if expected is None or actual == expected:
        return
    again = ""
    run = RunFolder(repository.rpartition("/")[0])
    if storage.exists(run.run):
        again = f", or export it again: {run.resume_command} --start-at export"
    raise InputError(
        f"{uri} is damaged or was replaced: its SHA-256 is {actual[:SHOWN]}..., and"
        f" {record} says {expected[:SHOWN]}...; copy the file again from where it is whole{again}"
    )


def _digests(record: Any) -> dict[str, str]:
    """Return model -> SHA-256, of an export.json of any version."""
    if not isinstance(record, dict):
        return {}
    digests = {}
    for model in (record, record.get("raw")):
        if isinstance(model, dict) and isinstance(model.get("sha256"), str):
            digests[str(model.get("model"))] = model["sha256"]
    return digests
