"""The best checkpoint of a run as a Triton model repository, gated by parity with PyTorch.

    python -m exporting.export --run RUN --trial TRIAL --name MODEL

writes into the run's folder

    model/<name>/config.pbtxt, model/<name>/1/model.onnx     the repository that Triton loads
    model/export.json                                        what was exported, and how well it agrees with PyTorch
    golden/<name>/request.json, response.json                one validation jet and PyTorch's answer (Open Inference Protocol v2)
    golden/<name>/request-100.json, response-100.json        a hundred of them

Everything is built and checked aside and only then put in place. A model that fails the gate leaves nothing under model/, not even an
older one: what lies there has passed.
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
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.cli import Parser, run_main
from common.errors import GateError, InputError, unknown
from common.progress import Progress
from serving import golden
from weaver.triton_config import MAX_BATCH_SIZE, check_config, triton_config

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


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
    max_batch_size: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise InputError(f"'{self.name}' cannot name a service: use lower-case letters, digits and '-', a letter first, at most 63")
        if self.max_batch_size < 1:
            raise InputError(f"--max-batch-size must be at least 1, found {self.max_batch_size}")

    def path(self, *parts: str) -> str:
        return storage.join(self.run, *parts)


def export(wanted: Export) -> dict[str, Any]:
    """Export, check and put in place; returns the content of export.json. Raises InputError, and GateError if the model does not pass."""
    from weaver.dataset import Dataset
    from weaver.predict import load_model

    _check_trial(wanted)
    model, info, data_config = load_model(wanted.path("trials", wanted.trial), wanted.path("config"))
    dataset = Dataset.open(wanted.path("data", "val.json"), data_config)
    if not len(dataset):
        raise InputError(f"{wanted.path('data', 'val.json')} holds no jets, and the model cannot be checked without")
    with _staging(wanted.run) as folder:
        try:
            record = _build(wanted, folder, model, info, dataset)
        except GateError:
            storage.delete(wanted.path("model"))
            storage.delete(wanted.path("golden", wanted.name))
            raise
        _publish(wanted, folder)
    return record


def _check_trial(wanted: Export) -> None:
    trials = wanted.path("trials")
    if not storage.exists(storage.join(trials, wanted.trial)):
        names = {entry.uri[len(trials) + 1 :].split("/")[0] for entry in storage.entries(trials)}
        raise InputError(f"{wanted.run}: {unknown('trial', wanted.trial, names)}")


def _build(wanted: Export, folder: Path, model, info: dict[str, Any], dataset) -> dict[str, Any]:
    """Make everything under `folder` as it is to lie in the run's folder; returns the content of export.json."""
    from weaver.onnx_export import export_onnx

    onnx_path = folder / "model" / wanted.name / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    metadata = _metadata(wanted, dataset.data_config)
    export_onnx(model, info, dataset.data_config, onnx_path, opset=wanted.opset, metadata=metadata)
    parity = _gate(model, info, onnx_path, dataset)
    config = triton_config(onnx_path, wanted.name, max_batch_size=wanted.max_batch_size)
    check_config(config, onnx_path)
    storage.write_text(str(folder / "model" / wanted.name / "config.pbtxt"), config)
    _write_golden(wanted, folder / "golden" / wanted.name, model, info, dataset)
    record = {
        "model": wanted.name,
        "trial": wanted.trial,
        "opset": wanted.opset,
        "max_batch_size": wanted.max_batch_size,
        "size_bytes": onnx_path.stat().st_size,
        "sha256": storage.digest(onnx_path.read_bytes()),
        "inputs": {name: list(shape[1:]) for name, shape in info["input_shapes"].items()},
        "outputs": list(info["output_names"]),
        "parity": parity,
        "versions": metadata["versions"],
    }
    storage.write_json(str(folder / "model" / "export.json"), record)
    return record


def _gate(model, info: dict[str, Any], onnx_path: Path, dataset) -> dict[str, Any]:
    from weaver import parity

    index = _spread(len(dataset), parity.NUM_JETS)
    inputs = _inputs(dataset, index)
    jets = parity.golden_jets(inputs, dataset.multiplicity()[index], padding=_padding(dataset.data_config))
    with Progress("parity", total=parity.num_answers(jets), unit="jets") as progress:
        result = parity.check_parity(model, onnx_path, jets, info["input_names"], advance=progress.advance)
    return result.asdict()


def _write_golden(wanted: Export, folder: Path, model, info: dict[str, Any], dataset) -> None:
    """Requests of real jets, and PyTorch's answers to them."""
    from weaver.parity import torch_answers

    for size in golden.SIZES:
        inputs = _inputs(dataset, np.resize(_spread(len(dataset), max(golden.SIZES)), size))
        inputs = {name: inputs[name] for name in info["input_names"]}
        answers = torch_answers(model, info["input_names"], inputs)
        golden.write(folder, inputs, wanted.name, {info["output_names"][0]: answers})


def _spread(length: int, count: int) -> np.ndarray:
    """Indices of at most `count` jets, evenly spread over a dataset (whose files may differ in pT)."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))


def _inputs(dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in dataset.batch(index).inputs.items()}


def _padding(data_config) -> dict[str, np.ndarray]:
    """Value of each variable in a place without particle, {group: (C,)}."""
    params = data_config.preprocess_params
    return {group: np.array([params[name]["pad_value"] for name in names], np.float32) for group, names in data_config.input_dicts.items()}


def _metadata(wanted: Export, data_config) -> dict[str, Any]:
    """What an ONNX file found somewhere in a year must say about itself."""
    run, options = (_optional(wanted.path(*parts)) for parts in (("run.json",), ("trials", wanted.trial, "options.json")))
    return {
        "run_id": storage.name(wanted.run),
        "trial": wanted.trial,
        "model": wanted.name,
        "data_config_digest": data_config.digest(),
        "data_fingerprint": run.get("data_fingerprint", "unknown"),
        "git_commit": run.get("git_commit", "unknown"),
        "network_options": json.dumps(options.get("network_options", {})),
        "best_epoch": options.get("best_epoch", "unknown"),
        "best_metric": options.get("best_metric", "unknown"),
        "standardisation": json.dumps(data_config.preprocess_params),
        "versions": " ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    }


def _optional(uri: str) -> dict[str, Any]:
    return storage.read_json(uri) if storage.exists(uri) else {}


@contextmanager
def _staging(run: str) -> Iterator[Path]:
    """A folder to build in, beside its destination on a disk, so that a rename can put it in place."""
    for left in [] if storage.is_s3(run) else Path(run).glob(".export-*"):
        shutil.rmtree(left, ignore_errors=True)  # of an export that was killed
    folder = tempfile.mkdtemp(prefix=".export-", dir=None if storage.is_s3(run) else run)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(wanted: Export, folder: Path) -> None:
    """Put what was built in place: the golden files first, the model last and, on a disk, in one rename."""
    storage.delete(wanted.path("golden", wanted.name))
    storage.upload(folder / "golden" / wanted.name, wanted.path("golden", wanted.name))
    if storage.is_s3(wanted.run):
        storage.delete(wanted.path("model"))
        storage.upload(folder / "model" / wanted.name, wanted.path("model", wanted.name))
        storage.upload(folder / "model" / "export.json", wanted.path("model", "export.json"))
        return
    target = wanted.path("model")
    if os.path.lexists(target):
        os.rename(target, folder / "replaced")
    os.rename(folder / "model", target)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m exporting.export", description=__doc__)
    parser.add_argument("--run", required=True, help="the run's folder, a path or s3:// URI")
    parser.add_argument("--trial", required=True, help="trial whose best checkpoint is exported")
    parser.add_argument("--name", required=True, help="name of the model, which is that of the service")
    parser.add_argument("--opset", type=int, default=17, help="ONNX opset; 17 loads in Triton 23.05 and later (default: %(default)s)")
    parser.add_argument("--max-batch-size", type=int, default=MAX_BATCH_SIZE, help="most jets in one execution (default: %(default)s)")
    options = parser.parse_args(argv)

    def body() -> None:
        wanted = Export(**vars(options) | {"run": storage.absolute(options.run)})
        parity = export(wanted)["parity"]
        print(f"exported trial {wanted.trial} as {wanted.path('model', wanted.name)}")
        print(
            f"PyTorch = ONNX Runtime: {parity['share_close']:.2%} of {parity['num_jets']:,} jets within 1e-5, largest difference "
            f"{parity['max_difference']:.2g}, over {len(parity['batch_sizes'])} batch sizes and {len(parity['levels'])} graph levels"
        )

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
