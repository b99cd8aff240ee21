"""The best checkpoint of a run as a Triton model repository, gated by parity with PyTorch.

    python -m exporting.export --run RUN --trial TRIAL --name MODEL

writes into the run's folder

    model/<name>/config.pbtxt, model/<name>/1/model.onnx     takes the network's inputs, prepared as
        weaver does it
    model/<name>-raw/...                                     takes the columns of the files as they
        are (weaver/onnx/raw_model.py)
    model/<either>/configs/local.pbtxt                       the variant for one machine without a
        GPU
    model/export.json                                        what was exported, and how well it
        agrees with PyTorch
    golden/<either>/request.json, response.json              one validation jet and PyTorch's answer
        (Open Inference Protocol v2)
    golden/<either>/request-100.json, response-100.json      a hundred of them

Not every data config can be a graph: where an expression has no form in one, or the label is no
log(true / reconstructed), there is no raw model, and a line says why (--raw-model required makes
that an error; the prepare step has then refused it before any training).

Everything is built and checked aside and only then put in place. A model that fails the gate leaves
nothing under model/, not even an older one: what lies there has passed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.cli import Parser, run_main
from common.config import NONE, quantity
from common.errors import GateError, InputError, JecError, unknown
from common.layout import RAW_SUFFIX, RunFolder
from common.progress import Progress
from common.records import ExportRecord, MemoryRecord, ModelRecord, ParityRecord
from serving import golden
from serving.inference_service import CPU
from weaver.onnx.triton_config import LOCAL, LOCAL_INSTANCES, check_config, triton_config

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
RAW_CHOICES = ("auto", "required", NONE)
AUTO_SIZE = 0  # --max-batch-size that means: measure
# memory of one model: two of them and the server fit in the 4 GiB that the service asks for
BUDGET = "1Gi"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and how."""

    run: str
    """URI of the run's folder."""
    trial: str
    """Name of the trial whose best checkpoint is exported."""
    name: str
    """Of the model: the folder in the repository and the service on a cluster, which must agree."""
    opset: int
    max_batch_size: int = AUTO_SIZE
    memory_budget: str = BUDGET
    raw_model: str = RAW_CHOICES[0]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise InputError(
                f"'{self.name}' cannot name a service: use lower-case letters, digits and '-', a"
                " letter first, at most 63"
            )
        if self.max_batch_size < AUTO_SIZE:
            raise InputError(
                f"--max-batch-size must be at least 1, or {AUTO_SIZE} to measure it, found"
                f" {self.max_batch_size}"
            )
        if self.raw_model not in RAW_CHOICES:
            raise InputError(f"--raw-model: {unknown('choice', self.raw_model, RAW_CHOICES)}")
        quantity("memory-budget", self.memory_budget)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.run)

    @property
    def raw_name(self) -> str:
        """Of the model that takes raw jets."""
        return f"{self.name}{RAW_SUFFIX}"


def export(request: Export) -> ExportRecord:
    """Export a model, check it and put it in place; returns the content of export.json.

    Raises InputError, and GateError if the model does not pass.
    """
    from weaver.feed.dataset import Dataset
    from weaver.predict import load_model

    run = request.folder
    trial = run.trial(request.trial)
    if not storage.exists(trial):
        entries = storage.entries(run.trials)
        names = {entry.uri[len(run.trials) + 1 :].split("/")[0] for entry in entries}
        raise InputError(f"{request.run}: {unknown('trial', request.trial, names)}")
    model, info, data_config = load_model(trial, run.config)
    dataset = Dataset.open(run.data("val"), data_config)
    if not len(dataset):
        raise InputError(
            f"{run.data('val')} holds no jets, and the model cannot be checked without"
        )
    with _staging(request.run) as folder:
        try:
            record = _build(request, folder, model, info, dataset)
        except GateError:
            # What lies under model/ has passed; so an older model goes too.
            for place in (run.models, run.golden(request.name), run.golden(request.raw_name)):
                storage.delete(place)
            raise
        _publish(request, folder)
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A model that must pass the gate."""

    name: str
    model: Any
    info: dict[str, Any]
    data_config: Any
    """For the shapes of the inputs; None where `info` says them all."""
    jets: Any
    """weaver.onnx.parity.Golden."""
    real: dict[str, np.ndarray]
    """Inputs of real jets, for the golden requests."""
    expected: np.ndarray | None = None
    """The right answers to `jets`, where they are not the model's own."""
    explain: Any = None
    """Called when the gate fails: more words on it."""


def _build(
    request: Export, folder: Path, model: Any, info: dict[str, Any], dataset: Any
) -> ExportRecord:
    """Make everything below `folder` as it will lie in the run's folder."""
    metadata = _metadata(request, dataset.data_config, info)
    features = _feature_model(request, model, info, dataset)
    feature_record = _write_model(request, folder, features, metadata)
    raw_record, raw_reason = None, None
    try:
        if request.raw_model != NONE:
            raw = _raw_model(request, model, info, dataset)
            raw_metadata = {**metadata, "model": raw.name}
            raw_record = _write_model(request, folder, raw, raw_metadata)
    except GateError:
        raise
    except JecError as error:
        if request.raw_model == "required":
            raise
        raw_reason = str(error)
    record = ExportRecord(
        **{field.name: getattr(feature_record, field.name) for field in fields(ModelRecord)},
        trial=request.trial,
        opset=request.opset,
        output_columns=info.get("output_columns"),
        raw=raw_record,
        raw_reason=raw_reason,
        versions=metadata["versions"],
    )
    record.save(RunFolder(str(folder)).export)
    return record


def _write_model(
    request: Export, folder: Path, candidate: _Candidate, metadata: dict[str, Any]
) -> ModelRecord:
    """Write one model with its golden files, if it passes the gate. Raises GateError."""
    from weaver.onnx.onnx_export import export_onnx

    place = folder / "model" / candidate.name
    onnx_path = place / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    export_onnx(
        candidate.model,
        candidate.info,
        candidate.data_config,
        onnx_path,
        opset=request.opset,
        metadata=metadata,
    )
    parity = _gate(candidate, onnx_path)
    memory, size = _batch_size(request, candidate, onnx_path)
    for path, text in _configs(request, candidate.name, onnx_path, size).items():
        check_config(text, onnx_path, path)
        storage.write_text(str(place / path), text)
    _write_golden(folder / "golden" / candidate.name, candidate)
    shapes = candidate.info["input_shapes"]
    return ModelRecord(
        model=candidate.name,
        max_batch_size=size,
        memory=memory,
        size_bytes=onnx_path.stat().st_size,
        sha256=storage.digest(onnx_path.read_bytes()),
        inputs={name: list(shape[1:]) for name, shape in shapes.items()},
        outputs=list(candidate.info["output_names"]),
        parity=parity,
    )


def _feature_model(request: Export, model, info: dict[str, Any], dataset) -> _Candidate:
    from weaver.onnx import parity

    index = _spread(len(dataset), parity.NUM_JETS)
    inputs = _inputs(dataset, index)
    inputs = {name: inputs[name] for name in info["input_names"]}
    jets = parity.golden_jets(
        inputs, dataset.multiplicity()[index], padding=_padding(dataset.data_config)
    )
    return _Candidate(
        name=request.name,
        model=model,
        info=info,
        data_config=dataset.data_config,
        jets=jets,
        real=inputs,
    )


def _raw_model(request: Export, model, info: dict[str, Any], dataset) -> _Candidate:
    """The model with the preprocessing in front, and the right answers to its jets.

    The answers are those of weaver's own preparation and the network.

    Raises InputError where the data config has no such form, or the files of the validation set
    cannot be read any more.
    """
    from weaver.onnx import parity, raw_jets
    from weaver.onnx.raw_model import raw_model
    from weaver.onnx.raw_program import raw_program

    config = dataset.data_config
    entries = [
        storage.Entry(uri=f["uri"], size=f["size"], tag=f["tag"])
        for f in dataset.description["files"]
    ]
    program = raw_program(config, raw_jets.raw_columns(entries[0], config))
    real = raw_jets.read_raw(entries, config, program, parity.NUM_JETS)
    jets = raw_jets.golden_raw_jets(real, program, config)
    with_preprocessing, raw_info = raw_model(program, model, info, config)
    reference = raw_jets.reference_inputs(jets.inputs, config, program)
    return _Candidate(
        name=request.raw_name,
        model=with_preprocessing,
        info=raw_info,
        data_config=None,
        jets=jets,
        real=real,
        expected=raw_jets.reference_answers(model, info["input_names"], reference),
        explain=lambda: raw_jets.preprocessing_apart(
            with_preprocessing, raw_info["input_names"], jets.inputs, reference, config
        ),
    )


def _gate(candidate: _Candidate, onnx_path: Path) -> ParityRecord:
    """Hold ONNX Runtime's answers against PyTorch's. Raises GateError where they differ."""
    from weaver.onnx import parity

    names = candidate.info["input_names"]
    total = parity.num_answers(candidate.jets)
    with Progress(f"parity of {candidate.name}", total=total, unit="jets") as progress:
        try:
            result = parity.check_parity(
                candidate.model,
                onnx_path,
                candidate.jets,
                names,
                expected=candidate.expected,
                advance=progress.advance,
            )
        except GateError as error:
            explanation = candidate.explain() if candidate.explain else ""
            raise GateError(f"model {candidate.name}: {error}{explanation}") from None
    return ParityRecord(
        num_jets=result.num_jets,
        num_answers=result.num_answers,
        share_close=result.share_close,
        max_difference=result.max_difference,
        worst=result.worst,
        levels=list(result.levels),
        batch_sizes=list(result.batch_sizes),
    )


def _batch_size(
    request: Export, candidate: _Candidate, onnx_path: Path
) -> tuple[MemoryRecord | None, int]:
    """The memory measured, if any, and the most jets that one execution may have."""
    from weaver.onnx.memory import measure_memory

    if request.max_batch_size != AUTO_SIZE:
        return None, request.max_batch_size
    shapes = {name: (str(x.dtype), x.shape[1:]) for name, x in candidate.real.items()}
    memory = measure_memory(onnx_path, shapes)
    budget = round(quantity("memory-budget", request.memory_budget))
    record = MemoryRecord(
        sizes=list(memory.sizes),
        growth=list(memory.growth),
        bytes_per_jet=memory.bytes_per_jet,
        budget=budget,
    )
    return record, memory.batch_size(budget)


def _configs(request: Export, name: str, onnx_path: Path, size: int) -> dict[str, str]:
    """config.pbtxt for the cluster and the variant for this machine, as {path: text}."""
    run = storage.find_json(request.folder.run, {})
    if run.get("config", {}).get("num_gpus", 0):
        cluster = triton_config(onnx_path, name, max_batch_size=size, device="gpu")
    else:
        # On a node with many cores ONNX Runtime would start a thread for each, and a container's
        # limit would hold them all back.
        threads = {"intra_op_thread_count": CPU}
        cluster = triton_config(
            onnx_path, name, max_batch_size=size, device="cpu", parameters=threads
        )
    local = triton_config(
        onnx_path,
        name,
        max_batch_size=size,
        warmup=golden.SIZES,  # not the largest size, so that the model is ready sooner
        device="cpu",
        instances=LOCAL_INSTANCES,
    )
    return {"config.pbtxt": cluster, f"configs/{LOCAL}.pbtxt": local}


def _write_golden(folder: Path, candidate: _Candidate) -> None:
    """Requests of real jets, and PyTorch's answers to them."""
    from weaver.onnx.parity import torch_answers

    names, outputs = candidate.info["input_names"], candidate.info["output_names"]
    for size in golden.SIZES:
        chosen = np.resize(_spread(len(candidate.real[names[0]]), max(golden.SIZES)), size)
        real = dataclasses.replace(
            candidate.jets, inputs={name: candidate.real[name] for name in names}
        )
        inputs = real.batch(chosen)
        answers = torch_answers(candidate.model, names, inputs)  # (N, C)
        if len(outputs) == 1:
            by_name = {outputs[0]: answers}
        else:  # the raw model has an output for each column, (N, 1)
            by_name = {name: answers[:, i : i + 1] for i, name in enumerate(outputs)}
        golden.write(folder, inputs, candidate.name, by_name)


def _spread(length: int, count: int) -> np.ndarray:
    """Indices of at most `count` jets, evenly spread over a dataset (whose files may
    differ in pT).
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))


def _inputs(dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in dataset.batch(index).inputs.items()}


def _padding(data_config) -> dict[str, np.ndarray]:
    """Value of each variable in a place without particle, {group: (C,)}."""
    params = data_config.preprocess_params
    return {
        group: np.array([params[name]["pad_value"] for name in names], np.float32)
        for group, names in data_config.input_dicts.items()
    }


def _metadata(request: Export, data_config, info: dict[str, Any]) -> dict[str, Any]:
    """What an ONNX file must say about itself when somebody meets it in a year."""
    run = storage.find_json(request.folder.run, {})
    options = storage.find_json(request.folder.options(request.trial), {})
    best_epoch = options.get("best_epoch", "unknown")
    # Only the validation set has been looked at by the time of export.
    history = storage.find_json(request.folder.history(request.trial), [])
    best = next((epoch for epoch in history if epoch.get("epoch") == best_epoch), {})
    return {
        "run_id": storage.name(request.run),
        "trial": request.trial,
        "model": request.name,
        "data_config_digest": data_config.digest(),
        "data_fingerprint": run.get("data_fingerprint", "unknown"),
        "git_commit": run.get("git_commit", "unknown"),
        "network_options": json.dumps(options.get("network_options", {})),
        "best_epoch": best_epoch,
        "best_metric": options.get("best_metric", "unknown"),
        "metrics": json.dumps(best),
        # by which the evaluation knows the quantiles
        "output_columns": json.dumps(info.get("output_columns", [])),
        "label": json.dumps(
            {
                name: data_config.functions[name].text
                for name in data_config.label_names
                if name in data_config.functions
            }
        ),
        "standardisation": json.dumps(data_config.preprocess_params),
        "versions": " ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def _version(package: str) -> str:
    """The version of an installed package; torch's own word for it also names the build
    (`2.13.0+cu130`).
    """
    if package == "torch":
        import torch

        return torch.__version__
    return importlib.metadata.version(package)


@contextmanager
def _staging(run: str) -> Iterator[Path]:
    """A folder to build in, beside its destination on a disk, so that a rename can put
    it in place.
    """
    for left in [] if storage.is_s3(run) else Path(run).glob(".export-*"):
        shutil.rmtree(left, ignore_errors=True)  # of an export that was killed
    folder = tempfile.mkdtemp(prefix=".export-", dir=None if storage.is_s3(run) else run)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(request: Export, folder: Path) -> None:
    """Put what was built in place: golden files first, models last.

    On a disk the models come in one rename.
    """
    run, built = request.folder, RunFolder(str(folder))
    for name in (request.name, request.raw_name):
        storage.delete(run.golden(name))
    storage.upload(folder / "golden", run.path("golden"))
    if storage.is_s3(request.run):
        storage.delete(run.models)
        for model in sorted(path for path in (folder / "model").iterdir() if path.is_dir()):
            storage.upload(model, run.model(model.name))
        storage.upload(Path(built.export), run.export)
        return
    if os.path.lexists(run.models):
        os.rename(run.models, folder / "replaced")
    os.rename(built.models, run.models)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m exporting.export", description=__doc__)
    parser.add_argument("--run", required=True, help="the run's folder, a path or s3:// URI")
    parser.add_argument("--trial", required=True, help="trial whose best checkpoint is exported")
    parser.add_argument(
        "--name", required=True, help="name of the model, which is that of the service"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=17,
        help="ONNX opset; 17 loads in Triton 23.05 and later (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=AUTO_SIZE,
        help="most jets in one execution; 0 measures memory (default)",
    )
    parser.add_argument(
        "--memory-budget",
        default=BUDGET,
        help="what a model may take for one execution, as 1Gi (default: %(default)s)",
    )
    parser.add_argument(
        "--raw-model",
        default=RAW_CHOICES[0],
        choices=RAW_CHOICES,
        help="a model for raw jets too (default: %(default)s)",
    )
    options = parser.parse_args(argv)

    def body() -> None:
        request = Export(**vars(options) | {"run": storage.absolute(options.run)})
        record = export(request)
        print(f"exported trial {request.trial} as {request.folder.model(request.name)}")
        _print_model(record)
        if record.raw:
            _print_model(record.raw)
        if record.raw_reason:
            print(f"warning: no model that takes raw jets: {record.raw_reason}")

    return run_main(body)


def _print_model(model: ModelRecord) -> None:
    parity = model.parity
    print(
        f"{model.model}: PyTorch = ONNX Runtime: {parity.share_close:.2%} of"
        f" {parity.num_jets:,} jets within 1e-5, largest difference {parity.max_difference:.2g},"
        f" over {len(parity.batch_sizes)} batch sizes and {len(parity.levels)} graph levels"
    )
    if model.memory:
        print(
            f"{model.model}: {model.memory.bytes_per_jet / 1e6:.2f} MB a jet, so at most"
            f" {model.max_batch_size:,} jets at once"
        )


if __name__ == "__main__":
    sys.exit(main())
