"""Find the layer in which an ONNX file departs from its network.

The outputs of the layers are compared between PyTorch and ONNX Runtime. Used when the export gate
has failed, never before: outputs are added to a copy of the graph, which costs time and keeps ONNX
Runtime from fusing what lies around them. torch's exporter writes the path of the module into the
name of each node it makes, as in "/blocks.0/first/Add" or, in a Sequential, "/head/head.0/Gemm"; by
these names layers and nodes are matched.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from weaver.onnx.runtime import feed_of, session

CLOSE = 1e-5


def layers_apart(
    model,
    onnx_path: str | os.PathLike,
    input_names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    level: int,
) -> str:
    """Name the first layer whose outputs differ for these jets, and the one that differs most.

    Never raises.
    """
    try:
        differences = layer_differences(model, onnx_path, input_names, inputs, level)
    except Exception as error:  # the gate's own finding must not be lost over a look into it
        return f"its layers could not be compared ({type(error).__name__}: {error})"
    # "not <=", since a difference may be NaN
    apart = [name for name, difference in differences.items() if not difference <= CLOSE]
    if not differences:
        return "no layer of the network was found in the file"
    if not apart:
        return (
            f"each of the {len(differences)} layers agrees when its output is looked at, so it is a"
            " fusion of ONNX Runtime at this level, or what comes after the last layer"
        )
    first = apart[0]
    worst = max(apart, key=lambda name: differences[name])
    text = f"the first layer that differs is '{first}', off by {differences[first]:.2g}"
    if worst != first:
        text += f", the worst layer is '{worst}', off by {differences[worst]:.2g}"
    return text


def layer_differences(
    model,
    onnx_path: str | os.PathLike,
    input_names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    level: int,
) -> dict[str, float]:
    """Layer -> largest difference of its output, relative where it is above 1.

    The layers are in the order in which they are run.
    """
    ours = torch_layers(model, input_names, inputs)
    theirs = onnx_layers(onnx_path, inputs, level)
    differences = {}
    for name, output in ours.items():
        # The last node of the layer with that shape, or in a form of it, is what gives its output.
        for other in reversed(theirs.get(name, [])):
            if forms := _forms(other, output.shape):
                differences[name] = min(_difference(form, output) for form in forms)
                break
    return differences


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The array in those forms in which it may lie in the file that have the shape."""
    forms = [array]
    if array.ndim > 2:
        forms.append(array.swapaxes(-1, -2))  # as a convolution has it
        forms.append(array[..., :-1])  # the last feature may carry biases (networks/fast.py)
    return [form for form in forms if form.shape == shape]


def _difference(answers: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of a layer's outputs."""
    difference = _largest(answers, expected)
    # on edges (N, P, k, C), where neighbours have no order
    if answers.ndim == 4 and difference > CLOSE:
        return _largest(np.sort(answers, axis=2), np.sort(expected, axis=2))
    return difference


def _largest(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative where it is above 1; infinite where one is no number."""
    scaled = np.abs(got.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    return float(np.where(np.isfinite(scaled), scaled, np.inf).max(initial=0.0))


def torch_layers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Module path -> the module's output when it was last called.

    Modules that return no tensor are left out.
    """
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, _module, _inputs, output) -> None:
        if isinstance(output, torch.Tensor):
            outputs.pop(name, None)  # so that the order is that of the last calls
            outputs[name] = output.detach().float().numpy()

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(functools.partial(keep, name)))
    # copies, because networks change their inputs in place (x *= mask)
    tensors = [torch.from_numpy(np.array(inputs[name], order="C")) for name in input_names]
    try:
        with torch.no_grad():
            model(*tensors)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def onnx_layers(
    onnx_path: str | os.PathLike, inputs: Mapping[str, np.ndarray], level: int
) -> dict[str, list[np.ndarray]]:
    """Module path -> the floating-point outputs of its nodes, in the order of the graph.

    Those of the modules within count too.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(os.fspath(onnx_path)))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    outputs = {value.name for value in model.graph.output}
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)

    # Every floating-point tensor that a module made becomes an output of the graph.
    paths: dict[str, str] = {}
    for node in model.graph.node:
        path = module_path(node.name) if "/" in node.name else ""
        name = node.output[0]
        if path and (types.get(name) in floating or name in outputs):
            paths[name] = path
            if name not in outputs:
                model.graph.output.append(
                    onnx.helper.make_tensor_value_info(name, types[name], None)
                )
    runtime = session(model.SerializeToString(), level)
    arrays = runtime.run(list(paths), feed_of(runtime, inputs))

    by_path: dict[str, list[np.ndarray]] = {}
    for path, array in zip(paths.values(), arrays, strict=True):
        # "blocks.0.first" belongs to "blocks" and "blocks.0" as well
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            by_path.setdefault(".".join(parts[:depth]), []).append(array)
    return by_path


def module_path(node_name: str) -> str:
    """The path of the module that made a node.

    "/head/head.0/Gemm" -> "head.0", "/Concat" (the network's own) -> "".
    """
    path = ""
    for token in node_name.strip("/").split("/")[:-1]:
        container, _, rest = token.partition(".")
        called = rest and (path == container or path.endswith("." + container))
        path = f"{path}.{rest}" if called else f"{path}.{token}".lstrip(".")
    return path
