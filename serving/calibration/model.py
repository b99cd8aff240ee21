"""The model that calibrates: its columns, what it says of its training, and its answers.

    model = local_model("runs/latest")          # a run, a model's folder, or NAME-raw/1/model.onnx
    answers = model.answer({"jetPt": ..., "PF_pT": ..., "nPF": ...})

It is one that takes the files' own columns (weaver/onnx/raw_model.py), so that nothing is computed
here and nothing can be computed differently than in training.
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

BATCH = 256  # jets of one execution: what it works on then stays in the processor's cache
CALIBRATED, CORRECTION, VALID = "calibrated_pt", "correction", "valid"
PLACES = "places of "  # begins the name of the axis of particles, before the name of their counter
# ONNX Runtime's name of a type -> numpy's
TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(bool),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A column that the model takes."""

    dtype: np.dtype
    counter: str = ""
    """Of particles: the input that says how many a jet has. Empty for one value a jet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a model."""

    name: str
    digest: str
    """Equal for equal models alone."""
    run_id: str
    treename: str | None
    """The tree that the training read; None where it is not known."""
    label: str
    """What the network learnt, such as np.log(genJetPt / jetPt)."""
    reference: str
    """The pT (GeV) that the correction multiplies, as jetPt in that label; empty where the model
    does not say."""
    facts: Mapping[str, str]
    """What the model card says of the training: era, campaign, jet type."""
    inputs: Mapping[str, Input]
    """Branch -> what it is; counters are not among them."""
    outputs: tuple[str, ...]
    limits: ModelRange | None = None
    """The jets that the model is meant for."""

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the columns that count the particles of each jet."""
        names = [column.counter for column in self.inputs.values() if column.counter]
        return tuple(dict.fromkeys(names))

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Names of the quantiles that the model answers with, such as q16."""
        prefix = f"{CALIBRATED}_"
        return tuple(name.removeprefix(prefix) for name in self.outputs if name.startswith(prefix))


class Model(Protocol):
    """Where answers come from."""

    description: Description
    batch: int
    """The most jets of one call of `answer`."""

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs (N,) for inputs (N, 1) and (N, P). Several threads may call it at once."""
        ...

    def check_unchanged(self) -> None:
        """Raise ClusterError where answers may come from another model than the described one."""
        ...


class LocalModel:
    """A model in ONNX Runtime, in this process."""

    def __init__(self, description: Description, session: onnxruntime.InferenceSession) -> None:
        """Answer with a session of ONNX Runtime."""
        self.description = description
        self.batch = BATCH
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs for jets; column name -> (N,)."""
        answers = self._session.run(self._outputs, dict(inputs))
        return {name: column[:, 0] for name, column in zip(self._outputs, answers, strict=True)}

    def check_unchanged(self) -> None:
        """Do nothing: it has been read whole."""


def local_model(place: str) -> LocalModel:
    """The model at an address: a run's folder, a model's folder, or its file.

    Raises InputError where there is none that takes columns, for one of an earlier version, and for
    another one than was exported.
    """
    from weaver.onnx.runtime import session

    uri = onnx_at(storage.absolute(place))
    content = storage.read_bytes(uri)
    check_model(uri, content)
    try:
        # One thread an execution: the steps of a file run side by side, which is faster.
        runtime = session(content, threads=1)
    except Exception as error:  # ONNX Runtime raises kinds of its own
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{uri} is no ONNX model that can be run: {reason}") from None
    model = LocalModel(_description(uri, content, runtime), runtime)
    _try(model, uri)
    return model


def _try(model: LocalModel, uri: str) -> None:
    """Ask a model about two empty jets. Raises InputError where it takes other inputs than ours."""
    inputs = {}
    for name, column in model.description.inputs.items():
        inputs[name] = np.zeros((2, 2 if column.counter else 1), column.dtype)
    for counter in model.description.counters:
        inputs[counter] = np.zeros((2, 1), np.int32)
    try:
        answers = model.answer(inputs)
        reason = ""
    except Exception as error:  # ONNX Runtime raises kinds of its own
        reason = str(error).strip().splitlines()[0]
    else:
        other = [name for name, values in answers.items() if values.shape != (2,)]
        if other:
            reason = f"{', '.join(other)} is not one number for each jet"
    if reason:
        raise InputError(
            f"{uri} is no model of this project that takes the files' columns: {reason}; give the"
            f" model.onnx of a model NAME{RAW_SUFFIX}"
        )


def onnx_at(place: str) -> str:
    """The address of the model's file. Raises InputError where there is not exactly one."""
    if place.endswith(".onnx"):
        if not storage.exists(place):
            raise InputError(f"there is no file {place}")
        return place
    run = RunFolder(place)
    if storage.exists(run.run):
        return _onnx_of_run(run)
    files = [entry.uri for entry in storage.entries(place) if entry.uri.endswith("/model.onnx")]
    raw = [uri for uri in files if uri.split("/")[-3].endswith(RAW_SUFFIX)]
    if len(raw or files) == 1:
        return (raw or files)[0]
    if not files:
        raise InputError(
            f"there is no model at {place}; give the folder of a run (it has run.json), or a"
            f" model.onnx of a model NAME{RAW_SUFFIX}"
        )
    raise InputError(
        f"{place} holds {len(raw or files)} models; give one: {', '.join(raw or files)}"
    )


def _onnx_of_run(run: RunFolder) -> str:
    record = ExportRecord.find(run.export)
    if record is None:
        raise InputError(
            f"{run.uri} has no exported model yet; go on with the run: python pipeline.py --resume"
            f" {storage.name(run.uri)}"
        )
    if record.raw is None:
        raise InputError(
            f"{run.uri} has no model that takes the files' columns:"
            f" {record.raw_reason or 'it was exported without one (--raw-model none)'}"
        )
    return run.onnx(record.raw.model)


def _description(uri: str, content: bytes, session: onnxruntime.InferenceSession) -> Description:
    """What a model's file says. Raises InputError for one that does not take columns."""
    inputs = {}
    for entry in session.get_inputs():
        if entry.type not in TYPES:
            raise InputError(f"{uri}: the input {entry.name} is of the type {entry.type}")
        if len(entry.shape) != 2:
            raise InputError(
                f"{uri}: the input {entry.name} has the shape {entry.shape}, not (jets, numbers of"
                f" a jet); give the model.onnx of a model NAME{RAW_SUFFIX}"
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
    """What is known of a model.

    where: it is, for errors. facts: what its file says of itself (exporting/export.py), or its
    configuration on a server. inputs: with their counters. Raises InputError for a model that does
    not take columns, and for one of an earlier version.
    """
    if not {CALIBRATED, CORRECTION} <= set(outputs):
        raise InputError(
            f"{where} answers with {', '.join(outputs)}, so it does not take the files' columns;"
            f" give the model NAME{RAW_SUFFIX} beside it"
        )
    if VALID not in outputs:
        raise InputError(
            f"{where} comes from an earlier version, whose models do not say which jets are valid;"
            " export it again: python -m exporting.export --run RUN --trial TRIAL --name NAME"
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
    """The jets that a model is meant for, where it says so. Raises InputError for other text."""
    if KEY not in facts:
        return None
    try:
        limits = model_range(facts[KEY])
        limits.check_inputs(inputs)
        return limits
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _texts(where: str, metadata: Mapping[str, str], key: str) -> dict[str, str]:
    """Names with texts, which a model holds as JSON. Raises InputError for text that is none."""
    try:
        content = json.loads(metadata.get(key) or "{}")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{where}: its '{key}' holds {metadata[key][:100]!r}, not names with texts"
        )
    return {name: str(value) for name, value in content.items()}


def _reference(where: str, labels: Mapping[str, str]) -> str:
    """The pT that the label divides by: jetPt of {"target": "np.log(genJetPt / jetPt)"}."""
    for text in labels.values():
        reference = denominator(Expression(text, f"the label of {where}"))
        if reference is not None:
            return reference.text
    return ""
