"""Where an ONNX file leaves its network: the outputs of the layers, side by side in PyTorch and
ONNX Runtime.

Used when the export gate has failed, never before: outputs are added to a copy of the graph, which
costs time and keeps ONNX Runtime from fusing what lies around them. torch's exporter writes the
path of the module into the name of each node it makes, as in "/blocks.0/first/Add" or, in a
Sequential, "/head/head.0/Gemm"; by these names layers and nodes are matched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

CLOSE = 1e-5


def layers_apart(
    model,
    onnx_path: str | os.PathLike,
    input_names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    level: int,
) -> str:
    """In words: the first layer whose outputs differ for these jets, and the one that differs most.

    Never raises.
    """
    try:
        differences = layer_differences(model, onnx_path, input_names, inputs, level)
    except Exception as error:  # the gate's own finding must not be lost over a look into it
        return f"its layers could not be compared ({type(error).__name__}: {error})"
    apart = {
        name: difference for name, difference in differences.items() if not difference <= CLOSE
    }
    if not differences:
        return "no layer of the network was found in the file"
    if not apart:
        return (
            f"each of the {len(differences)} layers agrees when its output is looked at, so it is a"
            " fusion of ONNX Runtime at this level, or what comes after the last layer"
        )
    first, worst = next(iter(apart)), max(apart, key=lambda name: apart[name])
    more = f", the worst layer is '{worst}', off by {apart[worst]:.2g}" if worst != first else ""
    return f"the first layer that differs is '{first}', off by {apart[first]:.2g}{more}"


def layer_differences(
    model,
    onnx_path: str | os.PathLike,
    input_names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    level: int,
) -> dict[str, float]:
    """Layer -> largest difference of its output, relative where it is above 1, in the order in
    which the layers are run.
    """
    ours = torch_layers(model, input_names, inputs)
    theirs = onnx_layers(onnx_path, inputs, level)
    found = {}
    for name, output in ours.items():
        # The last node of the layer with that shape, or in a form of it, is what gives its output.
        if same := [
            forms for other in theirs.get(name, []) if (forms := _forms(other, output.shape))
        ]:
            found[name] = min(_difference(form, output) for form in same[-1])
    return found


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The array in the forms in which it may lie in the file, as far as they have the shape.

    As it is; with its last two axes exchanged, as a convolution has it; less its last feature,
    which may carry biases (networks/fast.py).
    """
    forms = [array, array.swapaxes(-1, -2), array[..., :-1]] if array.ndim > 2 else [array]
    return [form for form in forms if form.shape == shape]


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    found = _largest(got, expected)
    if got.ndim == 4 and found > CLOSE:  # on edges (N, P, k, C), where neighbours have no order
        return _largest(np.sort(got, axis=2), np.sort(expected, axis=2))
    return found


def _largest(got: np.ndarray, expected: np.ndarray) -> float:
    scaled = np.abs(got.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    return float(np.where(np.isfinite(scaled), scaled, np.inf).max(initial=0.0))


def torch_layers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Module path -> what the module returned when it was last called; modules that return no
    tensor are left out.
    """
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(module, given, output) -> None:
            if isinstance(output, torch.Tensor):
                outputs.pop(name, None)
                outputs[name] = output.detach().float().numpy()

        return hook

    handles = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.no_grad():
            model(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in input_names))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def onnx_layers(
    onnx_path: str | os.PathLike, inputs: Mapping[str, np.ndarray], level: int
) -> dict[str, list[np.ndarray]]:
    """Module path -> the floating-point outputs of its nodes (and those of the modules within), in
    the order of the graph.
    """
    import onnx
    import onnxruntime

    from weaver.onnx.triton_config import GRAPH_LEVELS

    model = onnx.shape_inference.infer_shapes(onnx.load(os.fspath(onnx_path)))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    outputs = {value.name for value in model.graph.output}
    nodes = [
        (module_path(node.name), node.output[0]) for node in model.graph.node if "/" in node.name
    ]
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    wanted = {
        name: path
        for path, name in nodes
        if path and (types.get(name) in floating or name in outputs)
    }
    for name in wanted:
        if name not in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level]
    )
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: dict[str, list[np.ndarray]] = {}
    for (_, path), array in zip(
        wanted.items(), runtime.run(list(wanted), dict(inputs)), strict=True
    ):
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:depth]), []).append(array)
    return found


def module_path(node_name: str) -> str:
    """The path of the module that made a node:

    "/head/head.0/Gemm" -> "head.0", "/Concat" (the network's own) -> "".
    """
    path = ""
    for token in node_name.strip("/").split("/")[:-1]:
        container, _, rest = token.partition(".")
        called = rest and (path == container or path.endswith("." + container))
        path = f"{path}.{rest}" if called else f"{path}.{token}".lstrip(".")
    return path
