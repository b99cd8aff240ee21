"""Run an exported model on test jets with ONNX Runtime."""

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
from common.machine import memory_room, processor
from common.measurements import Inference
from common.progress import Progress
from common.records import ExportRecord, MetricsRecord
from evaluating import inputs
from physics.metrics import REQUIRED_COLUMNS
from physics.residual import from_json
from weaver.onnx.residual_features import FEATURES, residual_features

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# A ParticleNet of 100 candidates takes about 1 GB for it; larger batches are no faster on a CPU.
BATCH_SIZE = 1000
SHARE_OF_ROOM = 0.3
"""Largest fraction of the available memory for one batch. The rest is for the measurements."""
INPUT_COPIES = 3
"""Copies of a batch's inputs: its jets unpadded and padded, and jets with shuffled inputs."""
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""Execution providers in order of preference: a GPU where this build has one, else the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """The outputs of an exported model for the jets of a test set, and its speed."""

    output: NDArray[np.float32]
    """Outputs of the model, (N, C): the median or only output first, then further quantiles."""
    columns: list[str]
    """Names of the C columns ('median', 'q16', 'q84') from the metadata of the model; empty if they
    are not there.
    """
    inference: Inference
    valid_range: Mapping[str, Any] | None = None
    """Valid range of the model from its metadata; None if it is not there."""
    abs_eta: NDArray[np.float32] | None = None
    """|jetEta|, (N,); None for a model without a residual correction, which needs no jetEta."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Expression of each label from the metadata of the model; empty if they are not there."""
    without_residual: NDArray[np.float64] | None = None
    """First output before the residual correction, (N, 1); None for a model without it."""

    @property
    def correction(self) -> NDArray[np.float32]:
        """Return log(pT_gen / pT) as the model predicts it, (N,)."""
        return self.output[:, 0]


def load_session(uri: str, name: str) -> InferenceSession:
    """Load a model of a run into ONNX Runtime.

    Args:
        uri: Folder of the run.
        name: Name of the model.

    Raises:
        InputError: If the run has no such model, or its file is not the one that was exported.
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
    # By default onnxruntime starts a thread per core of the machine, not per core that this process
    # may use.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    # ONNX Runtime warns about each requested provider that its build lacks.
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in PROVIDERS if provider in available]
    # The model may be on S3, but ONNX Runtime opens local files only.
    with tempfile.TemporaryDirectory() as temporary:
        path = storage.download(place, Path(temporary) / "model.onnx")
        check_model(place, path.read_bytes())
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def batch_size_for(test: inputs.TestSet, export: ExportRecord | None, most: int) -> int:
    """Return `most`, or the largest power of two below it that fits in the available memory.

    A model's answers can differ in the last digit between batch sizes. They were the same for 1000,
    500 and 128 jets, and differed by up to 3e-8 for 333, 17 and 1.

    Args:
        test: The test jets.
        export: Record of the model's export, which measured its memory; None if there is none.
        most: Jets.
    """
    room = memory_room()
    if room is None or not len(test):
        return most
    bytes_per_jet = 0
    for tensor in test.batch(np.arange(1)).inputs.values():
        bytes_per_jet += INPUT_COPIES * tensor.nbytes
    if export is not None and export.memory is not None:
        bytes_per_jet += export.memory.bytes_per_jet
    fits = max(int(SHARE_OF_ROOM * room / bytes_per_jet), 1)
    return most if most <= fits else 1 << (fits.bit_length() - 1)


class Predictor:
    """Runs a model on jets of a test set."""

    def __init__(self, session: InferenceSession, test: inputs.TestSet) -> None:
        """Read the names of the inputs and the residual correction from the model's metadata."""
        self.session, self.test = session, test
        self.names = [entry.name for entry in session.get_inputs()]
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.residual = None
        """Residual correction of the model; None without one."""
        if "residual" in self.metadata:
            self.residual = from_json(self.parsed("residual", "null"))

    def parsed(self, key: str, default: str) -> Any:
        """Return the JSON value of an entry of the metadata. Raises InputError where it is none."""
        try:
            return json.loads(self.metadata.get(key, default))
        except (ValueError, RecursionError):
            raise InputError(
                f"the model's metadata '{key}' are no JSON; export the model again"
            ) from None

    def tensors(
        self, index: NDArray[np.int64], others: Mapping[str, NDArray[np.int64]] | None = None
    ) -> dict[str, Any]:
        """Return all tensors that the model may take as inputs, for the jets `index` (n,).

        Args:
            index: Indices of the jets, (n,).
            others: For some inputs, indices (n,) of the jets from which this input is taken
                instead.
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
        """Return the outputs for these inputs, (n, C)."""
        arrays = arrays_of(tensors, self.names)
        output: NDArray[np.float32] = np.asarray(self.session.run(None, arrays)[0])
        return output.reshape(len(output), -1)


def predict(
    session: InferenceSession, test: inputs.TestSet, batch_size: int = BATCH_SIZE
) -> Predictions:
    """Run the model on all jets of a test set.

    Raises:
        InputError: If the model has inputs that the test set lacks, or if its number of outputs
            differs from its metadata.
    """
    import onnxruntime

    predictor = Predictor(session, test)
    # The export writes the names of the output columns into the metadata of the model.
    columns = predictor.parsed("output_columns", "[]")
    batches = []
    before_residual = []
    abs_eta = []
    seconds = 0.0
    with Progress("evaluating", total=len(test), unit="jets") as progress:
        for start in range(0, len(test), batch_size):
            index = np.arange(start, min(start + batch_size, len(test)))
            tensors = predictor.tensors(index)
            # The time for reading jets does not count as time of the model.
            start_time = time.perf_counter()
            output_of_batch = predictor.run(tensors)
            seconds += time.perf_counter() - start_time
            batches.append(output_of_batch)
            if predictor.residual is not None:
                reference_pt, eta = tensors[FEATURES].T
                first_output = output_of_batch[:, :1]
                before_residual.append(predictor.residual.remove(first_output, reference_pt, eta))
                abs_eta.append(np.abs(eta))
            progress.advance(len(index))

    # Without jets there is no batch from which the number of columns could be taken.
    output = np.empty((0, max(len(columns), 1)), dtype=np.float32)
    if batches:
        output = np.concatenate(batches)
    if columns and len(columns) != output.shape[1]:
        raise InputError(
            f"the metadata of the model list the output columns {', '.join(columns)}, but its"
            f" output has {output.shape[1]}; repeat the export step"
        )
    speed = Inference(
        jets_per_second=len(test) / seconds if seconds else None,
        batch_size=min(batch_size, len(test)),
        threads=session.get_session_options().intra_op_num_threads,
        provider=session.get_providers()[0].removesuffix("ExecutionProvider"),
        processor=processor()[0],
        onnxruntime=onnxruntime.__version__,
    )
    return Predictions(
        output=output,
        columns=columns,
        inference=speed,
        valid_range=predictor.parsed("valid_range", "null"),
        abs_eta=np.concatenate(abs_eta) if abs_eta else None,
        labels=predictor.parsed("label", "{}"),
        without_residual=np.concatenate(before_residual) if before_residual else None,
    )


def arrays_of(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the tensors of these names as arrays.

    Raises:
        InputError: If there is no tensor of a name.
    """
    arrays = {}
    for name in names:
        if name not in tensors:
            raise InputError(
                f"{unknown('input', name, tensors)} (inputs of the model: {', '.join(names)});"
                " export the model with the data config of the run"
            )
        arrays[name] = np.asarray(tensors[name])
    return arrays


def predict_baseline(
    uri: str, columns: inputs.Columns, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Return the correction log(pT_gen / pT) of an earlier run's model for the same jets, (N,).

    The model gets the inputs of its own data config.

    Args:
        uri: Folder of the earlier run.
        columns: Observers of the test jets of this run, (N,) each.
        batch_size: Jets per call of the model, or fewer where memory is short.

    Raises:
        InputError: If the earlier run has no model, or its test set does not hold the same jets in
            the same order.
    """
    metrics = MetricsRecord.find(RunFolder(uri).metrics)
    if metrics is None:
        raise InputError(
            f"--baseline {uri} has no metrics.json; give the folder of a run that was evaluated"
            " (python pipeline.py --list shows the gain of those)"
        )
    # The inputs are those of its own data config, which may differ from that of this run.
    test = inputs.open_prepared_test_set(uri)
    baseline_columns = test.observers()
    for name in REQUIRED_COLUMNS:
        if name not in baseline_columns or not np.array_equal(
            baseline_columns[name], columns[name]
        ):
            raise InputError(
                f"--baseline {uri} was tested on other jets ({len(test):,}, here"
                f" {len(columns[name]):,}; {name} differs): a gain is measured on the same jets."
                " Give both runs the same --data-test, and data configs with the same selection"
            )
    session = load_session(uri, metrics.model)
    export = ExportRecord.find(RunFolder(uri).export)
    batch_size = batch_size_for(test, export, batch_size)
    # a copy, so that the other outputs do not stay in memory
    return predict(session, test, batch_size).correction.copy()
