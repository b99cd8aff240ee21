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
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.cli import Parser, run_main
from common.config import NONE, quantity
from common.errors import GateError, InputError, JecError, unknown
from common.progress import Progress
from serving import golden
from serving.inference_service import CPU
from weaver.onnx.triton_config import LOCAL, LOCAL_INSTANCES, check_config, triton_config

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
RAW = "-raw"  # behind the name of the model that takes raw jets
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

    def path(self, *parts: str) -> str:
        return storage.join(self.run, *parts)


def export(wanted: Export) -> dict[str, Any]:
    """Export, check and put in place; returns the content of export.json.

    Raises InputError, and GateError if the model does not pass.
    """
    from weaver.feed.dataset import Dataset
    from weaver.predict import load_model

    _check_trial(wanted)
    model, info, data_config = load_model(
        wanted.path("trials", wanted.trial), wanted.path("config")
    )
    dataset = Dataset.open(wanted.path("data", "val.json"), data_config)
    if not len(dataset):
        raise InputError(
            f"{wanted.path('data', 'val.json')} holds no jets, and the model cannot be checked"
            " without"
        )
    with _staging(wanted.run) as folder:
        try:
            record = _build(wanted, folder, model, info, dataset)
        except GateError:
            for place in ("model", f"golden/{wanted.name}", f"golden/{wanted.name}{RAW}"):
                storage.delete(wanted.path(place))
            raise
        _publish(wanted, folder)
    return record


def _check_trial(wanted: Export) -> None:
    trials = wanted.path("trials")
    if not storage.exists(storage.join(trials, wanted.trial)):
        names = {entry.uri[len(trials) + 1 :].split("/")[0] for entry in storage.entries(trials)}
        raise InputError(f"{wanted.run}: {unknown('trial', wanted.trial, names)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A model that is to pass the gate."""

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


def _build(wanted: Export, folder: Path, model, info: dict[str, Any], dataset) -> dict[str, Any]:
    """Make everything under `folder` as it is to lie in the run's folder; returns the content of
    export.json.
    """
    metadata = _metadata(wanted, dataset.data_config, info)
    record = {
        "model": wanted.name,
        "trial": wanted.trial,
        "opset": wanted.opset,
        "output_columns": info.get("output_columns"),
        **_write_model(wanted, folder, _feature_model(wanted, model, info, dataset), metadata),
        "raw": None,
        "versions": metadata["versions"],
    }
    try:
        raw = _raw_model(wanted, model, info, dataset) if wanted.raw_model != NONE else None
    except GateError:
        raise
    except JecError as error:
        if wanted.raw_model == "required":
            raise
        raw, record["raw_reason"] = None, str(error)
    if raw:
        record["raw"] = {
            "model": raw.name,
            **_write_model(wanted, folder, raw, {**metadata, "model": raw.name}),
        }
    storage.write_json(str(folder / "model" / "export.json"), record)
    return record


def _write_model(
    wanted: Export, folder: Path, candidate: _Candidate, metadata: dict[str, Any]
) -> dict[str, Any]:
    """One model of the repository with its golden files, if it passes the gate; returns
    its record.
    """
    from weaver.onnx.onnx_export import export_onnx

    place = folder / "model" / candidate.name
    onnx_path = place / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    export_onnx(
        candidate.model,
        candidate.info,
        candidate.data_config,
        onnx_path,
        opset=wanted.opset,
        metadata=metadata,
    )
    parity = _gate(candidate, onnx_path)
    memory, size = _batch_size(wanted, candidate, onnx_path)
    for path, text in _configs(wanted, candidate.name, onnx_path, size).items():
        check_config(text, onnx_path, path)
        storage.write_text(str(place / path), text)
    _write_golden(folder / "golden" / candidate.name, candidate)
    return {
        "max_batch_size": size,
        "memory": memory,
        "size_bytes": onnx_path.stat().st_size,
        "sha256": storage.digest(onnx_path.read_bytes()),
        "inputs": {name: list(shape[1:]) for name, shape in candidate.info["input_shapes"].items()},
        "outputs": list(candidate.info["output_names"]),
        "parity": parity,
    }


def _feature_model(wanted: Export, model, info: dict[str, Any], dataset) -> _Candidate:
    from weaver.onnx import parity

    index = _spread(len(dataset), parity.NUM_JETS)
    inputs = _inputs(dataset, index)
    inputs = {name: inputs[name] for name in info["input_names"]}
    jets = parity.golden_jets(
        inputs, dataset.multiplicity()[index], padding=_padding(dataset.data_config)
    )
    return _Candidate(
        name=wanted.name,
        model=model,
        info=info,
        data_config=dataset.data_config,
        jets=jets,
        real=inputs,
    )


def _raw_model(wanted: Export, model, info: dict[str, Any], dataset) -> _Candidate:
    """The model with the preprocessing in front, its jets, and the answers of weaver's own
    preparation and the network to them.

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
        name=f"{wanted.name}{RAW}",
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


def _gate(candidate: _Candidate, onnx_path: Path) -> dict[str, Any]:
    from weaver.onnx import parity

    names = candidate.info["input_names"]
    with Progress(
        f"parity of {candidate.name}", total=parity.num_answers(candidate.jets), unit="jets"
    ) as progress:
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
            raise GateError(
                f"model {candidate.name}: {error}{candidate.explain() if candidate.explain else ''}"
            ) from None
    return result.asdict()


def _batch_size(
    wanted: Export, candidate: _Candidate, onnx_path: Path
) -> tuple[dict[str, Any] | None, int]:
    """What was measured, and the most jets that one execution may have."""
    from weaver.onnx.memory import measure_memory

    if wanted.max_batch_size != AUTO_SIZE:
        return None, wanted.max_batch_size
    memory = measure_memory(
        onnx_path, {name: (str(x.dtype), x.shape[1:]) for name, x in candidate.real.items()}
    )
    budget = round(quantity("memory-budget", wanted.memory_budget))
    return {**memory.asdict(), "budget": budget}, memory.batch_size(budget)


def _configs(wanted: Export, name: str, onnx_path: Path, size: int) -> dict[str, str]:
    """config.pbtxt for the cluster, with a GPU if the run has one for it, and the variant for this
    machine; {path: text}.
    """
    gpus = storage.find_json(wanted.path("run.json"), {}).get("config", {}).get("num_gpus", 0)
    # On a node with many cores ONNX Runtime would start a thread for each, and a container's limit
    # would hold them all back.
    of_device = (
        {"device": "gpu"}
        if gpus
        else {"device": "cpu", "parameters": {"intra_op_thread_count": CPU}}
    )
    warmup = golden.SIZES  # not the largest size: ready sooner
    local = triton_config(
        onnx_path, name, max_batch_size=size, warmup=warmup, device="cpu", instances=LOCAL_INSTANCES
    )
    return {
        "config.pbtxt": triton_config(onnx_path, name, max_batch_size=size, **of_device),
        f"configs/{LOCAL}.pbtxt": local,
    }


def _write_golden(folder: Path, candidate: _Candidate) -> None:
    """Requests of real jets, and PyTorch's answers to them."""
    from weaver.onnx.parity import torch_answers

    names, outputs = candidate.info["input_names"], candidate.info["output_names"]
    for size in golden.SIZES:
        chosen = np.resize(_spread(len(candidate.real[names[0]]), max(golden.SIZES)), size)
        inputs = dataclasses.replace(
            candidate.jets, inputs={name: candidate.real[name] for name in names}
        ).batch(chosen)
        answers = torch_answers(candidate.model, names, inputs)
        golden.write(folder, inputs, candidate.name, _by_name(answers, outputs))


def _by_name(answers: np.ndarray, outputs: list[str]) -> dict[str, np.ndarray]:
    """(N, C) as the one output of the network, or column by column as those of the raw model."""
    return (
        {outputs[0]: answers}
        if len(outputs) == 1
        else {name: answers[:, i : i + 1] for i, name in enumerate(outputs)}
    )


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


def _metadata(wanted: Export, data_config, info: dict[str, Any]) -> dict[str, Any]:
    """What an ONNX file found somewhere in a year must say about itself."""
    run, options = (
        storage.find_json(wanted.path(*parts), {})
        for parts in (("run.json",), ("trials", wanted.trial, "options.json"))
    )
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
        "metrics": json.dumps(_validation_metrics(wanted, options.get("best_epoch"))),
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


def _validation_metrics(wanted: Export, best_epoch: Any) -> dict[str, Any]:
    """The trial's record of the epoch whose weights are exported; only the validation set has been
    looked at by then.
    """
    place = wanted.path("trials", wanted.trial, "history.json")
    history = storage.find_json(place, [])
    return next((epoch for epoch in history if epoch.get("epoch") == best_epoch), {})


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


def _publish(wanted: Export, folder: Path) -> None:
    """Put what was built in place: the golden files first, the models last and, on a disk, in one
    rename.
    """
    for name in (wanted.name, f"{wanted.name}{RAW}"):
        storage.delete(wanted.path("golden", name))
    storage.upload(folder / "golden", wanted.path("golden"))
    if storage.is_s3(wanted.run):
        storage.delete(wanted.path("model"))
        for model in sorted(path for path in (folder / "model").iterdir() if path.is_dir()):
            storage.upload(model, wanted.path("model", model.name))
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
        wanted = Export(**vars(options) | {"run": storage.absolute(options.run)})
        record = export(wanted)
        print(f"exported trial {wanted.trial} as {wanted.path('model', wanted.name)}")
        for one in filter(None, (record, record["raw"])):
            print("\n".join(_words(one)))
        if "raw_reason" in record:
            print(f"warning: no model that takes raw jets: {record['raw_reason']}")

    return run_main(body)


def _words(record: dict[str, Any]) -> Iterator[str]:
    """One model's record in a line or two."""
    parity = record["parity"]
    yield (
        f"{record['model']}: PyTorch = ONNX Runtime: {parity['share_close']:.2%} of"
        f" {parity['num_jets']:,} jets within 1e-5, largest difference"
        f" {parity['max_difference']:.2g}, over {len(parity['batch_sizes'])} batch sizes and"
        f" {len(parity['levels'])} graph levels"
    )
    if memory := record["memory"]:
        yield (
            f"{record['model']}: {memory['bytes_per_jet'] / 1e6:.2f} MB a jet, so at most"
            f" {record['max_batch_size']:,} jets at once"
        )


if __name__ == "__main__":
    sys.exit(main())
