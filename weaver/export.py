"""--export-onnx: a trained network as ONNX, with Weaver's preprocess.json beside it, and on request
Triton's config.pbtxt.

    python -m weaver.train --export-onnx model.onnx --data-config RUN/config/data.yaml \\
        --network-config RUN/config/network.py \\
        --model-prefix RUN/trials/TRIAL/ --triton-config config.pbtxt

This is the command for a single file. The pipeline's export (exporting/export.py) builds a whole
model repository with golden requests, and lets nothing through that does not answer as PyTorch
does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import storage
from common.errors import GateError, InputError
from weaver.config.data_config import DataConfig
from weaver.fit.options import TrainOptions
from weaver.onnx.onnx_export import export_onnx, input_shapes
from weaver.onnx.parity import LIMIT, session, torch_answers
from weaver.predict import build_asked

CHECKED_JETS = 17  # not the number that the graph was traced with


def export(options: TrainOptions) -> None:
    """Write what the options ask for.

    Raises InputError where there is no such network, GateError where ONNX Runtime answers
    otherwise.
    """
    data_config = described(options)
    model, info = build_asked(options, data_config, for_inference=True)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(
            model, info, data_config, Path(folder) / "model.onnx", opset=options.onnx_opset
        )
        difference = check(model, info, data_config, path)
        storage.upload(path, options.export_onnx)
        storage.write_json(
            storage.join(_folder(options.export_onnx), "preprocess.json"),
            preprocessing(data_config),
        )
        if options.triton_config:
            storage.write_text(options.triton_config, _triton(path, options.triton_config))
        if options.s3_model:
            storage.upload(path, storage.join(options.s3_model, "1", "model.onnx"))
            storage.write_text(
                storage.join(options.s3_model, "config.pbtxt"),
                _triton(path, storage.join(options.s3_model, "config.pbtxt")),
            )
    print(
        f"{options.export_onnx}: largest difference from PyTorch {difference:.1e} on random jets",
        file=sys.stderr,
        flush=True,
    )


def described(options: TrainOptions) -> DataConfig:
    """The data config with its standardisation, which `preprocess: auto` derives from the training
    data.
    """
    data_config = DataConfig.load(options.data_config)
    if not data_config.missing_preprocess_params:
        return data_config
    if not options.data_train:
        names = ", ".join(data_config.missing_preprocess_params[:3])
        raise InputError(
            f"{options.data_config} leaves the standardisation ({names}, ...) to the training data;"
            " name them with --data-train"
        )
    from weaver.feed.dataset import Dataset

    return Dataset.open(" ".join(options.data_train), data_config).data_config


def check(
    model: torch.nn.Module, info: dict[str, Any], data_config: DataConfig, path: Path
) -> float:
    """The largest difference between ONNX Runtime's and PyTorch's answers to random jets.

    Raises GateError where it is too large.
    """
    generator = torch.Generator().manual_seed(1)
    shapes = input_shapes(info, data_config)
    inputs = {
        name: torch.rand(CHECKED_JETS, *shape, generator=generator).numpy()
        for name, shape in shapes.items()
    }
    expected = torch_answers(model, list(shapes), inputs)
    runtime = session(path)
    # an input that the network ignores is not in the graph
    used = {entry.name for entry in runtime.get_inputs()}
    found = runtime.run(None, {name: value for name, value in inputs.items() if name in used})[0]
    difference = float(abs(found - expected).max())
    if not difference <= LIMIT:
        raise GateError(
            f"the ONNX file answers otherwise than PyTorch: largest difference {difference:.1e},"
            f" allowed {LIMIT:.0e}"
        )
    return difference


def preprocessing(data_config: DataConfig) -> dict[str, Any]:
    """The content of weaver-core's preprocess.json, from which CMSSW and others make a network's
    inputs.
    """
    found: dict[str, Any] = {
        "output_names": data_config.label_value,
        "input_names": list(data_config.input_names),
    }
    for group, names in data_config.input_dicts.items():
        params = [data_config.preprocess_params[name] for name in names]
        infos = {name: _variable(given) for name, given in zip(names, params, strict=True)}
        found[group] = {
            "var_names": list(names),
            "var_infos": infos,
            "var_length": params[-1]["length"],
        }
    return found


def _variable(params: dict[str, Any]) -> dict[str, float]:
    as_it_is = params["center"] is None
    return {
        "median": 0 if as_it_is else params["center"],
        "norm_factor": params["scale"],
        "replace_inf_value": 0,
        "lower_bound": -1e32 if as_it_is else params["min"],
        "upper_bound": 1e32 if as_it_is else params["max"],
        "pad": params["pad_value"],
    }


def _triton(onnx_path: Path, where: str) -> str:
    """config.pbtxt for a file that will lie at `where`;

    Triton wants the model called as its folder.
    """
    from weaver.onnx.triton_config import triton_config

    return triton_config(onnx_path, storage.name(_folder(storage.absolute(where))))


def _folder(uri: str) -> str:
    """The folder of a file, as a URI."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")
