r"""--export-onnx: write a network as ONNX, with Weaver's preprocess.json beside it.

--triton-config writes Triton's config.pbtxt too.

    python -m weaver.train --export-onnx model.onnx --data-config RUN/config/data.yaml \
        --network-config RUN/config/network.py \
        --model-prefix RUN/trials/TRIAL/ --triton-config config.pbtxt

This command writes a single model file. The pipeline's export (exporting/export.py) builds a whole
model repository with golden requests.
"""

from __future__ import annotations

import sys
from typing import TypedDict

from common import scratch, storage
from weaver.config.data_config import DataConfig
from weaver.fit.options import TrainOptions
from weaver.onnx.free_axes import check_lengths
from weaver.onnx.onnx_export import export_onnx
from weaver.onnx.triton_config import triton_config
from weaver.predict import build_model, output_path, with_standardisation

# weaver-core's own spelling of "no bound"
NO_LOWER_BOUND, NO_UPPER_BOUND = -1e32, 1e32


class InputGroup(TypedDict):
    """One input of the network in preprocess.json."""

    var_names: list[str]
    var_infos: dict[str, dict[str, float | None]]
    var_length: int | None


def export(options: TrainOptions) -> None:
    """Write the files that the options name.

    Raises InputError where the network or its weights do not exist, and GateError where ONNX
    Runtime's outputs differ from PyTorch's, at the data config's length or at another length that
    the network takes.
    """
    data_config = with_standardisation(options, DataConfig.load(options.data_config))
    target = output_path(options.export_onnx, options.model_prefix)
    model, info = build_model(options, data_config, for_inference=True)
    with scratch.folder("jec-export-") as folder:
        path = export_onnx(
            model, info, data_config, folder / "model.onnx", opset=options.onnx_opset
        )
        difference = check_lengths(model, info, data_config, path)
        storage.upload(path, target)
        described_inputs = storage.join(_folder(target), "preprocess.json")
        storage.write_json(described_inputs, preprocessing(data_config))
        configs = [options.triton_config] if options.triton_config else []
        if options.s3_model:
            storage.upload(path, storage.join(options.s3_model, "1", "model.onnx"))
            configs.append(storage.join(options.s3_model, "config.pbtxt"))
        for config in configs:
            # Triton requires that a model has the name of its folder
            name = storage.name(_folder(storage.absolute(config)))
            storage.write_text(config, triton_config(path, name))
    print(
        f"{target}: largest difference from PyTorch {difference:.1e} on random jets",
        file=sys.stderr,
        flush=True,
    )


def preprocessing(data_config: DataConfig) -> dict[str, object]:
    """Return weaver-core's preprocess.json, from which CMSSW and others compute the inputs."""
    content: dict[str, object] = {
        "output_names": data_config.label_value,
        "input_names": list(data_config.input_names),
    }
    for group, names in data_config.input_dicts.items():
        with_standardisation = InputGroup(var_names=list(names), var_infos={}, var_length=None)
        for name in names:
            params = data_config.preprocess_params[name]
            with_standardisation["var_length"] = params["length"]  # the same for all of a group
            is_raw = params["center"] is None
            infos: dict[str, float | None] = {
                "median": 0 if is_raw else params["center"],
                "norm_factor": params["scale"],
                "replace_inf_value": 0,
                "lower_bound": NO_LOWER_BOUND if is_raw else params["min"],
                "upper_bound": NO_UPPER_BOUND if is_raw else params["max"],
                "pad": params["pad_value"],
            }
            with_standardisation["var_infos"][name] = infos
        content[group] = with_standardisation
    return content


def _folder(uri: str) -> str:
    """Return the folder of a file, as a URI."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")
