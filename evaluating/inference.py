"""Ask an exported model for its answers to test jets, with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common import storage
from common.errors import InputError, unknown
from common.exported_model import check_model
from common.layout import RunFolder
from common.machine import processor
from common.measurements import Inference
from common.progress import Progress
from common.records import MetricsRecord
from evaluating import inputs
from physics.metrics import NEEDED
from physics.residual import from_json
from weaver.onnx.residual_features import FEATURES, residual_features

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# A ParticleNet of 100 candidates then takes about 1 GB; larger batches are no faster on a CPU.
BATCH_SIZE = 1000
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""A GPU where this build of ONNX Runtime can use one, else the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What an exported model answered to the jets of a test set, and how fast."""

    output: NDArray[np.float32]
    """(N, C): the median or only answer first, then the further quantiles."""
    columns: list[str]
    """What the C columns are ('median', 'q16', 'q84'), as the model's own metadata say; empty where
    they do not.
    """
    inference: Inference
    valid_range: Mapping[str, Any] | None = None
    """The range that the model is meant for, as its own metadata say; None where they do not."""
    abs_eta: NDArray[np.float32] | None = None
    """|jetEta| (N,), where it is among the inputs and the model has a residual correction."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label -> its expression, as the model's own metadata say; empty where they do not."""
    without_residual: NDArray[np.float64] | None = None
    """(N, C): the answers before the model's residual correction; None where it has none."""

    @property
    def correction(self) -> NDArray[np.float32]:
        """log(pT_gen / pT) as the model sees it: (N,)."""
        return self.output[:, 0]


def load_session(uri: str, name: str) -> InferenceSession:
    """ONNX Runtime's session of model `name` in the run's folder `uri`.

    Raises InputError where there is none, naming those there are, and for another model than was
    exported.
    """
    import onnxruntime

    folder = RunFolder(uri)
    place = folder.onnx(name)
    if not storage.exists(place):
        ending = "/1/model.onnx"
        models = set()
        for entry in storage.entries(folder.models):
            if entry.uri.endswith(ending):
                models.add(storage.name(entry.uri.removesuffix(ending)))
        raise InputError(
            f"{unknown('model', name, sorted(models))} (looked for {place}); the export step"
            " writes it"
        )
    options = onnxruntime.SessionOptions()
    # As many threads as this process may use: by itself onnxruntime counts the machine's cores.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # ONNX Runtime warns about each provider that its build does not have.
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in PROVIDERS if provider in available]
    # The model may lie on S3, and ONNX Runtime opens files.
    with tempfile.TemporaryDirectory() as temporary:
        path = storage.download(place, Path(temporary) / "model.onnx")
        check_model(place, path.read_bytes())
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


class Answerer:
    """Asks a model for its answers to jets of a test set."""

    def __init__(self, session: InferenceSession, test: inputs.TestSet) -> None:
        """Read the names of the inputs and the residual correction from the model's metadata."""
        self.session, self.test = session, test
        self.names = [entry.name for entry in session.get_inputs()]
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.residual = None
        """The model's residual correction; None where it has none."""
        if "residual" in self.metadata:
            self.residual = from_json(json.loads(self.metadata["residual"]))

    def tensors(
        self, index: NDArray[np.int64], others: Mapping[str, NDArray[np.int64]] | None = None
    ) -> dict[str, Any]:
        """What the model may ask for of the jets of these numbers, (n,).

        others: name of an input -> numbers of the jets whose input it is instead, (n,).
        """
        batch = self.test.batch(index)
        tensors = dict(batch.inputs)
        if self.residual is not None:
            tensors[FEATURES] = residual_features(self.test.data_config, batch)
        batches: dict[bytes, inputs.Batch] = {}
        for name, numbers in (others or {}).items():
            key = numbers.tobytes()
            if key not in batches:
                batches[key] = self.test.batch(numbers)
            tensors[name] = batches[key].inputs[name]
        return tensors

    def run(self, tensors: Mapping[str, Any]) -> NDArray[np.float32]:
        """The answers to these inputs: (n, C)."""
        arrays = arrays_of(tensors, self.names)
        answer: NDArray[np.float32] = np.asarray(self.session.run(None, arrays)[0])
        return answer.reshape(len(answer), -1)


def predict(
    session: InferenceSession, test: inputs.TestSet, batch_size: int = BATCH_SIZE
) -> Answers:
    """The model's answers for all jets of a test set, each asked once.

    Raises InputError if the model has inputs that the test set lacks, or gives another number of
    answers than its metadata say.
    """
    import onnxruntime

    answerer = Answerer(session, test)
    # The export writes the names of the answer's columns into the model itself.
    metadata = answerer.metadata
    columns = json.loads(metadata.get("output_columns", "[]"))
    batches = []
    before_residual = []
    abs_eta = []
    seconds = 0.0
    with Progress("evaluating", total=len(test), unit="jets") as progress:
        for start in range(0, len(test), batch_size):
            index = np.arange(start, min(start + batch_size, len(test)))
            tensors = answerer.tensors(index)
            # Reading the jets is no part of the model's speed.
            started = time.perf_counter()
            answer = answerer.run(tensors)
            seconds += time.perf_counter() - started
            batches.append(answer)
            if answerer.residual is not None:
                reference_pt, eta = tensors[FEATURES].T
                before_residual.append(answerer.residual.remove(answer, reference_pt, eta))
                abs_eta.append(np.abs(eta))
            progress.advance(len(index))

    # Without jets there is no batch to tell the number of columns.
    output = np.empty((0, max(len(columns), 1)), dtype=np.float32)
    if batches:
        output = np.concatenate(batches)
    if columns and len(columns) != output.shape[1]:
        raise InputError(
            f"the model's metadata name the output columns {', '.join(columns)}, and it answers"
            f" with {output.shape[1]}"
        )
    speed = Inference(
        jets_per_second=len(test) / seconds if seconds else None,
        batch_size=min(batch_size, len(test)),
        threads=session.get_session_options().intra_op_num_threads,
        provider=session.get_providers()[0].removesuffix("ExecutionProvider"),
        processor=processor()[0],
        onnxruntime=onnxruntime.__version__,
    )
    return Answers(
        output=output,
        columns=columns,
        inference=speed,
        valid_range=json.loads(metadata.get("valid_range", "null")),
        abs_eta=np.concatenate(abs_eta) if abs_eta else None,
        labels=json.loads(metadata.get("label", "{}")),
        without_residual=np.concatenate(before_residual) if before_residual else None,
    )


def arrays_of(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The tensors of these names as arrays. Raises InputError for a name that there is none of."""
    arrays = {}
    for name in names:
        if name not in tensors:
            raise InputError(
                f"{unknown('input', name, tensors)} (the model wants {', '.join(names)}); export it"
                " with the run's own data config"
            )
        arrays[name] = np.asarray(tensors[name])
    return arrays


def predict_baseline(
    uri: str, columns: inputs.Columns, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """An earlier run's answers for the jets whose observers are `columns`: (N,).

    They are those of its own exported model to its own inputs. Raises InputError where that run has
    no model, or its test set does not hold the same jets in the same order.
    """
    metrics = MetricsRecord.find(RunFolder(uri).metrics)
    if metrics is None:
        raise InputError(
            f"--baseline {uri} has no metrics.json; give the folder of a run that was evaluated"
        )
    # Its inputs are those of its own data config, which may differ from this run's.
    test = inputs.open_test_set(uri)
    theirs = test.observers()
    for name in NEEDED:
        if name not in theirs or not np.array_equal(theirs[name], columns[name]):
            raise InputError(
                f"--baseline {uri} was tested on other jets ({len(test):,}, here"
                f" {len(columns[name]):,}; {name} differs): a gain is measured on the same jets."
                " Give both runs the same --data-test, and data configs with the same selection"
            )
    return predict(load_session(uri, metrics.model), test, batch_size).correction
