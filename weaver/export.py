r"""--export-onnx: a trained network as ONNX, with Weaver's preprocess.json beside it.

On request Triton's config.pbtxt is written too.

    python -m weaver.train --export-onnx model.onnx --data-config RUN/config/data.yaml \
        --network-config RUN/config/network.py \
        --model-prefix RUN/trials/TRIAL/ --triton-config config.pbtxt

This is the command for a single file. The pipeline's export (exporting/export.py) builds a whole
model repository with golden requests, and refuses what does not answer as PyTorch does.
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
from weaver.predict import beside, build_model, described

# weaver-core's own spelling of "no bound"
NO_LOWER_BOUND, NO_UPPER_BOUND = -1e32, 1e32


class InputGroup(TypedDict):
    """One input of the network in preprocess.json."""

    var_names: list[str]
    var_infos: dict[str, dict[str, float | None]]
    var_length: int | None


def export(options: TrainOptions) -> None:
    """Write the files that the options name.

    Raises InputError where there is no such network, GateError where ONNX Runtime does not answer
    as PyTorch does, at the data config's length or at another one that the network takes.
    """
    data_config = described(options, DataConfig.load(options.data_config))
    target = beside(options.export_onnx, options.model_prefix)
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
            # Triton wants a model to have the name of its folder
            name = storage.name(_folder(storage.absolute(config)))
            storage.write_text(config, triton_config(path, name))
    print(
        f"{target}: largest difference from PyTorch {difference:.1e} on random jets",
        file=sys.stderr,
        flush=True,
    )


def preprocessing(data_config: DataConfig) -> dict[str, object]:
    """The content of weaver-core's preprocess.json.

    CMSSW and others make a network's inputs from it.
    """
    content: dict[str, object] = {
        "output_names": data_config.label_value,
        "input_names": list(data_config.input_names),
    }
    for group, names in data_config.input_dicts.items():
        described = InputGroup(var_names=list(names), var_infos={}, var_length=None)
        for name in names:
            params = data_config.preprocess_params[name]
            described["var_length"] = params["length"]  # the same for all of a group
            unchanged = params["center"] is None
            infos: dict[str, float | None] = {
                "median": 0 if unchanged else params["center"],
                "norm_factor": params["scale"],
                "replace_inf_value": 0,
                "lower_bound": NO_LOWER_BOUND if unchanged else params["min"],
                "upper_bound": NO_UPPER_BOUND if unchanged else params["max"],
                "pad": params["pad_value"],
            }
            described["var_infos"][name] = infos
        content[group] = described
    return content


def _folder(uri: str) -> str:
    """The folder of a file, as a URI."""
    return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else ".")
