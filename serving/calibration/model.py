"""The model that calibrates files: its columns, its training, and its outputs.

    model = local_model("runs/latest")          # a run, a model's folder, or NAME-raw/1/model.onnx
    answers = model.answer({"jetPt": ..., "PF_pT": ..., "nPF": ...})

It takes the columns of the files (weaver/onnx/raw_model.py). All preprocessing is in the model, so
that it cannot differ from that of the training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common import storage
from common.errors import InputError
from common.exported_model import check_model
from common.layout import RAW_SUFFIX, RunFolder
from common.records import ExportRecord
from serving.validity import KEY, ModelRange, model_range
from weaver.config.expressions import Expression
from weaver.config.reference import denominator

if TYPE_CHECKING:
    import onnxruntime

Arrays = Mapping[str, np.ndarray]

BATCH = 256  # jets per execution; its data then fit into the cache of the processor
CALIBRATED_PT, CORRECTION, VALID = "calibrated_pt", "correction", "valid"
PLACES = (
    "places of "  # prefix of the name of an axis of particles, before the name of their counter
)
# numpy types by ONNX Runtime's names
GIVE_A_MODEL = (
    f"give the folder of a run (it has run.json), or a model.onnx of a model NAME{RAW_SUFFIX}"
)
EXPORT_COMMAND = "python -m exporting.export --run RUN --trial TRIAL --name NAME"

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(bool),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """An input column of the model."""

    dtype: np.dtype
    counter: str = ""
    """For particles: the input with their number in each jet. Empty for one value per jet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Description of a model."""

    name: str
    digest: str
    """Digest, equal only for equal models."""
    run_id: str
    treename: str | None
    """Tree that the training read; None if unknown."""
    label: str
    """Label of the training, like np.log(genJetPt / jetPt)."""
    reference: str
    """The pT (GeV) that the correction multiplies, like jetPt in that label; empty if unknown."""
    facts: Mapping[str, str]
    """Facts of the model card on the training: era, campaign, jet type."""
    inputs: Mapping[str, Input]
    """Input columns by branch, without counters."""
    outputs: tuple[str, ...]
    limits: ModelRange | None = None
    """Valid range of the model."""

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the columns with the number of particles of each jet."""
        names = [column.counter for column in self.inputs.values() if column.counter]
        return tuple(dict.fromkeys(names))

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Names of the quantiles among the outputs, like q16."""
        prefix = f"{CALIBRATED_PT}_"
        return tuple(name.removeprefix(prefix) for name in self.outputs if name.startswith(prefix))


class Model(Protocol):
    """A model in this process or on a server."""

    description: Description
    batch: int
    """Largest number of jets in one call of `answer`."""

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs (N,) for inputs (N, 1) and (N, P). Must be thread-safe."""
        ...

    def check_unchanged(self) -> None:
        """Check that outputs still come from the described model.

        Raises:
            ClusterError: If they may not.
        """
        ...


class LocalModel:
    """A model in ONNX Runtime, in this process."""

    def __init__(self, description: Description, session: onnxruntime.InferenceSession) -> None:
        """Use a session of ONNX Runtime."""
        self.description = description
        self.batch = BATCH
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs by name, (N,) each."""
        answers = self._session.run(self._outputs, dict(inputs))
        return {name: column[:, 0] for name, column in zip(self._outputs, answers, strict=True)}

    def check_unchanged(self) -> None:
        """Do nothing, since the whole file was read at the start."""


def local_model(place: str) -> LocalModel:
    """Load a model from the folder of a run, the folder of a model, or its file.

    Raises:
        InputError: If there is no model that takes columns, if it is of an earlier version, or if
            it is not the file that was exported.
    """
    from weaver.onnx.runtime import session

    uri = onnx_at(storage.absolute(place))
    content = storage.read_bytes(uri)
    check_model(uri, content)
    try:
        # One thread per execution: the steps of a file run in parallel, which is faster.
        runtime = session(content, threads=1)
    except Exception as error:  # ONNX Runtime has its own exceptions
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{uri} is not an ONNX model that can be run: {reason}; give the model.onnx of an"
            " export"
        ) from None
    model = LocalModel(_description(uri, content, runtime), runtime)
    _try(model, uri)
    return model


def _try(model: LocalModel, uri: str) -> None:
    """Run a model on two empty jets.

    Raises:
        InputError: If it takes other inputs than models of this project.
    """
    inputs = {}
    for name, column in model.description.inputs.items():
        inputs[name] = np.zeros((2, 2 if column.counter else 1), column.dtype)
    for counter in model.description.counters:
        inputs[counter] = np.zeros((2, 1), np.int32)
    try:
        answers = model.answer(inputs)
        reason = ""
    except Exception as error:  # ONNX Runtime has its own exceptions
        reason = str(error).strip().splitlines()[0]
    else:
        other = [name for name, values in answers.items() if values.shape != (2,)]
        if other:
            reason = f"{', '.join(other)} is not one number for each jet"
    if reason:
        raise InputError(
            f"{uri} is not a model of this project that takes the files' columns: {reason}; give"
            f" the model.onnx of a model NAME{RAW_SUFFIX}"
        )


def onnx_at(place: str) -> str:
    """Return the address of the model's file.

    Raises:
        InputError: If there is not exactly one.
    """
    if place.endswith(".onnx"):
        if not storage.exists(place):
            raise InputError(f"there is no file {place}; {GIVE_A_MODEL}")
        return place
    run = RunFolder(place)
    if storage.exists(run.run):
        return _onnx_of_run(run)
    files = [entry.uri for entry in storage.entries(place) if entry.uri.endswith("/model.onnx")]
    raw = [uri for uri in files if uri.split("/")[-3].endswith(RAW_SUFFIX)]
    if len(raw or files) == 1:
        return (raw or files)[0]
    if not files:
        raise InputError(f"there is no model at {place}; {GIVE_A_MODEL}")
    raise InputError(f"{place} has {len(raw or files)} models; give one: {', '.join(raw or files)}")


def _onnx_of_run(run: RunFolder) -> str:
    record = ExportRecord.find(run.export)
    if record is None:
        raise InputError(
            f"{run.uri} has no exported model yet; resume the run: {run.resume_command}"
        )
    if record.raw is None:
        raise InputError(
            f"{run.uri} has no model that takes the files' columns:"
            f" {record.raw_reason or 'it was exported without one (--raw-model none)'}"
        )
    return run.onnx(record.raw.model)


def _description(uri: str, content: bytes, session: onnxruntime.InferenceSession) -> Description:
    """Return the description in a model's file.

    Raises:
        InputError: If the model does not take columns.
    """
    inputs = {}
    for entry in session.get_inputs():
        if entry.type not in TYPES:
            raise InputError(
                f"{uri}: the input {entry.name} is of the type {entry.type}, and columns of files"
                f" are one of {', '.join(TYPES)}; give the model.onnx of a model NAME{RAW_SUFFIX}"
            )
        if len(entry.shape) != 2:
            raise InputError(
                f"{uri}: the input {entry.name} has the shape {entry.shape}, and columns of files"
                " have two axes, (jets, numbers of a jet); give the model.onnx of a model"
                f" NAME{RAW_SUFFIX}"
            )
        axis = str(entry.shape[-1])
        counter = axis.removeprefix(PLACES) if axis.startswith(PLACES) else ""
        inputs[entry.name] = Input(dtype=TYPES[entry.type], counter=counter)
    metadata = session.get_modelmeta().custom_metadata_map
    name = metadata.get("model") or storage.name(uri)
    outputs = [output.name for output in session.get_outputs()]
    return describe(uri, name, storage.digest(content), metadata, inputs, outputs)


def describe(
    where: str,
    name: str,
    digest: str,
    facts: Mapping[str, str],
    inputs: Mapping[str, Input],
    outputs: Sequence[str],
) -> Description:
    """Return the description of a model.

    Args:
        where: The model, for errors.
        name: Its name.
        digest: Its digest.
        facts: Metadata of its file (exporting/export.py), or parameters of its configuration on a
            server.
        inputs: Its inputs, counters included.
        outputs: Names of its outputs.

    Raises:
        InputError: If the model does not take columns, or is of an earlier version.
    """
    if not {CALIBRATED_PT, CORRECTION} <= set(outputs):
        raise InputError(
            f"{where} answers with {', '.join(outputs)}, so it does not take the files' columns;"
            f" give the model NAME{RAW_SUFFIX} beside it"
        )
    if VALID not in outputs:
        raise InputError(
            f"{where} comes from an earlier version, whose models do not say which jets are valid;"
            f" export it again: {EXPORT_COMMAND}"
        )
    counters = {column.counter for column in inputs.values()}
    labels = _texts(where, facts, "label")
    return Description(
        name=name,
        digest=digest,
        run_id=facts.get("run_id", ""),
        treename=facts.get("treename") or None,
        label="; ".join(labels.values()),
        reference=_reference(where, labels),
        facts=_texts(where, facts, "trained_on"),
        inputs={name: column for name, column in inputs.items() if name not in counters},
        outputs=tuple(outputs),
        limits=limits_of(where, facts, inputs),
    )


def limits_of(where: str, facts: Mapping[str, str], inputs: Collection[str]) -> ModelRange | None:
    """Return the valid range of a model; None if it has none.

    Raises:
        InputError: If the text of the range is invalid.
    """
    if KEY not in facts:
        return None
    try:
        limits = model_range(facts[KEY])
        limits.check_inputs(inputs)
        return limits
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _texts(where: str, metadata: Mapping[str, str], key: str) -> dict[str, str]:
    """Return a JSON mapping of texts from the metadata of a model.

    Raises:
        InputError: If it is not one.
    """
    try:
        content = json.loads(metadata.get(key) or "{}")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{where}: its metadata '{key}' is {metadata[key][:100]!r}, not a JSON object of names"
            f" and texts; export it again: {EXPORT_COMMAND}"
        )
    return {name: str(value) for name, value in content.items()}


def _reference(where: str, labels: Mapping[str, str]) -> str:
    """Return the pT that a label divides by: jetPt of {"target": "np.log(genJetPt / jetPt)"}."""
    for text in labels.values():
        reference = denominator(Expression(text, f"the label of {where}"))
        if reference is not None:
            return reference.text
    return ""
