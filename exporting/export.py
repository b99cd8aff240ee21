"""The best checkpoint of a run as a Triton model repository, gated by parity with PyTorch.

    python -m exporting.export --run RUN --trial TRIAL --name MODEL

writes into the run's folder

    model/<name>/config.pbtxt, model/<name>/1/model.onnx     takes the network's inputs, prepared as
        weaver does it
    model/<name>-raw/...                                     takes the columns of the files as they
        are (weaver/onnx/raw_model.py)
    model/<either>/configs/local.pbtxt                       the variant for one machine without a
        GPU
    model_card.json, model_card.md                           the description of the models,
    completed
        by evaluate
    residual.json                                            the correction that makes the
        calibration close, which both models end with (physics/residual.py), for correctionlib
    model/export.json                                        the exported models, and how well they
        agree with PyTorch
    golden/<either>/request.json, response.json              one validation jet and PyTorch's answer
        (Open Inference Protocol v2)
    golden/<either>/request-100.json, response-100.json      a hundred of them

The raw model is left out, with a warning, if an expression of the data config cannot be converted
to ONNX, or if the label is not log(true / reconstructed). With --raw-model required this is an
error, which the prepare step reports before any training. The residual correction is left out
without such a label, or if the network does not take jetEta.

All files are built and checked in a separate folder and then moved to their places. If a model
fails the parity gate, model/ is deleted, older models included, so that every model there has
passed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from common import card, project, scratch, storage
from common.choices import OPSETS, RAW_MODELS
from common.cli import Parser, require, run_job
from common.config import NONE
from common.errors import GateError, InputError, JecError, unknown
from common.layout import RunFolder
from common.records import ExportRecord, ModelRecord, ValidRangeRecord, find_history
from common.storage import durable, space
from exporting.candidates import ModelInfo, feature_model, raw_model
from exporting.card import card_of, write_card
from exporting.repository import write_model
from exporting.request import AUTO_SIZE, BUDGET, Export
from exporting.residual import correctionlib_text, fit_residual, residual_record
from exporting.training_range import signature, training_range

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


def export(request: Export) -> ExportRecord:
    """Export a model, check it and move it to its place.

    Returns:
        The record export.json.

    Raises:
        InputError: If the run, its trial or its validation jets are missing.
        GateError: If the model does not pass the parity gate.
    """
    from weaver.feed.dataset import Dataset
    from weaver.onnx.onnx_export import without_trimming
    from weaver.predict import load_model

    run = request.folder
    trial = run.trial(request.trial)
    if not storage.exists(trial):
        entries = storage.entries(run.trials)
        names = {entry.uri[len(run.trials) + 1 :].split("/")[0] for entry in entries}
        raise InputError(f"{request.run}: {unknown('trial', request.trial, names)}")
    network, info, data_config = load_model(trial, run.config)
    model = without_trimming(network)  # the function that a graph can have
    dataset = Dataset.open(run.data("val"), data_config)
    if not len(dataset):
        raise InputError(f"{run.data('val')} has no jets, but the model must be checked with some")
    with staging(request.run) as folder:
        try:
            record = build(request, folder, model, info, dataset)
        except GateError:
            # Models under model/ have passed, so that an older one is deleted as well.
            golden_files = (run.golden(request.name), run.golden(request.raw_name))
            for place in (run.models, run.residual, run.card, run.card_page, *golden_files):
                storage.delete(place)
            raise
        publish(request, folder)
    return record


def build(
    request: Export, folder: Path, model: torch.nn.Module, info: ModelInfo, dataset: Dataset
) -> ExportRecord:
    """Write all files of the export below `folder`, with the layout of the run's folder.

    Raises:
        GateError: If a model fails the parity gate.
        InputError: If a raw model is required but impossible with the data config.
    """
    staging_folder = RunFolder(str(folder))
    residual, no_residual = fit_residual(model, info, dataset)
    metadata = dict(provenance(request, dataset.data_config, info))
    if residual is not None:
        # With it the evaluation measures the model without the correction.
        metadata["residual"] = json.dumps(residual.as_json())
        storage.write_text(staging_folder.residual, correctionlib_text(residual, request.name))
    limits = training_range(request.folder, dataset)
    if limits is not None:
        metadata["valid_range"] = json.dumps(limits.as_json())
    features = feature_model(request.name, model, info, residual, dataset)
    metadata |= signature(features.info, limits)
    feature_record = write_model(request, staging_folder, features, metadata)

    raw_record, raw_reason = None, None
    if request.raw_model != NONE:
        try:
            raw = raw_model(request.raw_name, model, info, residual, dataset, limits)
            raw_metadata = {**metadata, "model": raw.name, **signature(raw.info, limits)}
            if limits is not None:
                raw_metadata["valid_range"] = json.dumps({**limits.as_json(), **raw.range_columns})
            raw_record = write_model(request, staging_folder, raw, raw_metadata)
        except GateError:
            raise
        except JecError as error:
            # By default only the raw model is left out if the data config has no form in a graph.
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
        residual=None if residual is None else residual_record(residual),
        residual_reason=no_residual or None,
        versions=str(metadata["versions"]),
        valid_range=None if limits is None else ValidRangeRecord(**limits.as_json()),
    )
    record.save(staging_folder.export)
    write_card(staging_folder, card_of(request, record, metadata, dataset))
    return record


def provenance(request: Export, data_config: DataConfig, info: ModelInfo) -> Mapping[str, object]:
    """Return the metadata of an ONNX file: origin, versions, training, label and inputs."""
    run = storage.find_object(request.folder.run)
    options = storage.find_object(request.folder.options(request.trial))
    best_epoch = options.get("best_epoch", "unknown")

    # At the time of the export only validation metrics exist.
    metrics: Mapping[str, object] = {}
    history = request.folder.history(request.trial)
    find_history(history)  # refuses a file of another form
    for epoch in storage.find_json(history, []):
        if epoch.get("epoch") == best_epoch:
            metrics = epoch
            break

    facts, _ = card.read_copy(request.folder.config)
    labels = {}
    for name in data_config.label_names:
        if name in data_config.functions:
            labels[name] = data_config.functions[name].text

    versions = []
    for package in PACKAGES:
        version = importlib.metadata.version(package)
        if package == "torch":
            import torch

            version = torch.__version__  # names the build as well: 2.13.0+cu130
        versions.append(f"{package} {version}")

    return {
        "run_id": storage.name(request.run),
        "trial": request.trial,
        "model": request.name,
        "data_config_digest": data_config.digest(),
        "data_fingerprint": run.get("data_fingerprint", "unknown"),
        "version": project.version(),
        "git_commit": run.get("git_commit", "unknown"),
        "network_options": json.dumps(options.get("network_options", {})),
        "best_epoch": best_epoch,
        "best_metric": options.get("best_metric", "unknown"),
        "metrics": json.dumps(metrics),
        # the evaluation reads the quantiles from it
        "output_columns": json.dumps(info.get("output_columns", [])),
        "label": json.dumps(labels),
        # serving.calibrate checks files and jets with these
        "treename": data_config.treename or "",
        "trained_on": json.dumps(facts),
        "standardisation": json.dumps(data_config.preprocess_params),
        "versions": " ".join(versions),
    }


@contextmanager
def staging(run: str) -> Iterator[Path]:
    """Create a folder for building the export, and remove it at the end of the `with` block.

    For a run on a local disk it lies in the run's folder, on the same file system as the
    destination, so that the models can be moved by one rename.
    """
    if not storage.is_local(run):
        with scratch.folder("jec-export-") as folder:
            yield folder
        return
    for leftover in Path(run).glob(".export-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of an export that was killed
    with space.catch_full_disk(run):
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=run))
    try:
        with space.catch_full_disk(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(request: Export, folder: Path) -> None:
    """Move the files to their places: golden files and residual.json first, models last.

    On a disk the models are moved by one rename.
    """
    run, staging_folder = request.folder, RunFolder(str(folder))
    for name in (request.name, request.raw_name):
        storage.delete(run.golden(name))
    storage.delete(run.residual)
    for place, page in ((staging_folder.card, run.card), (staging_folder.card_page, run.card_page)):
        storage.write_bytes(page, storage.read_bytes(place))
    storage.upload(Path(staging_folder.goldens), run.goldens)
    if Path(staging_folder.residual).exists():
        storage.upload(Path(staging_folder.residual), run.residual)
    if not storage.is_local(request.run):
        storage.delete(run.models)
        for model in sorted(Path(staging_folder.models).iterdir()):
            if model.is_dir():
                storage.upload(model, run.model(model.name))
        # The record comes last, so that it exists only with all models.
        storage.upload(Path(staging_folder.export), run.export)
        return
    if os.path.lexists(run.models):
        os.rename(run.models, folder / "replaced")
    durable.rename(staging_folder.models, run.models)


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says and return the exit code."""
    parser = Parser(prog="python -m exporting.export", description=__doc__)
    parser.add_argument(
        "--run", required=True, metavar="URI", help="the run's folder: a path, s3:// or root://"
    )
    parser.add_argument(
        "--trial", required=True, metavar="NAME", help="trial whose best checkpoint is exported"
    )
    parser.add_argument(
        "--name", required=True, metavar="NAME", help="name of the model and of its service"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=17,
        metavar="N",
        help="ONNX opset; 17 loads in Triton 23.05 and later (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=AUTO_SIZE,
        metavar="N",
        help="largest number of jets in one execution; 0 takes what the measured memory allows"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-budget",
        default=BUDGET,
        metavar="SIZE",
        help="memory of a model for one execution, such as 1Gi (default: %(default)s)",
    )
    parser.add_argument(
        "--raw-model",
        default=RAW_MODELS[0],
        choices=RAW_MODELS,
        help="whether to export a model for raw jets as well (default: %(default)s)",
    )
    parser.add_argument(
        "--card",
        default=NONE,
        metavar="FILE",
        help="facts and notes for the model card: YAML, JSON or Markdown (default: those of the"
        " run)",
    )
    options = parser.parse_args(argv)

    def body() -> None:
        lowest, highest = OPSETS
        require(
            lowest <= options.opset <= highest,
            f"--opset {options.opset}: give a number from {lowest} to {highest}",
        )
        arguments = vars(options).copy()
        own_card = arguments.pop("card")
        request = Export(**arguments | {"run": storage.absolute(options.run)})
        card.copy_to(own_card, request.folder.config)
        record = export(request)
        print(f"exported trial {request.trial} as {request.folder.model(request.name)}")
        _print_model(record)
        if record.raw:
            _print_model(record.raw)
        if record.raw_reason:
            print(f"warning: no model that takes raw jets: {record.raw_reason}")
        if record.residual:
            largest = max(abs(point.applied - 1) for point in record.residual.points)
            print(
                f"residual correction of up to {largest:.2%}, fitted on"
                f" {record.residual.num_jets:,} validation jets: {request.folder.residual}"
            )
        else:
            print(f"note: no residual correction: {record.residual_reason}")
        print(f"model card: {request.folder.card_page}")

    return run_job(body)


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
