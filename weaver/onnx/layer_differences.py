"""Find the first layer whose outputs differ between an ONNX file and its network.

This is done only after the export gate has failed: the outputs of layers are added to a copy of the
graph, which costs time and prevents some of ONNX Runtime's fusions. Layers and nodes are matched by
the names of nodes, in which torch's exporter writes the path of the module: "/blocks.0/first/Add"
or, in a Sequential, "/head/head.0/Gemm".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from weaver.onnx.runtime import feed_of, session

CLOSE = 1e-5


def describe_layer_differences(
    model,
    onnx_path: str | os.PathLike,
    input_names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    level: int,
) -> str:
    """Name the first layer whose outputs differ for these jets, and the one that differs most.

    Args:
        model (torch.nn.Module): the network.
        onnx_path: its exported file.
        input_names: in the order of the network's arguments.
        inputs: name -> (N, C, P) or (N, C), the jets.
        level: of Triton's graph optimisation.

    Returns:
        A part of a sentence. Nothing is raised.
    """
    try:
        differences = layer_differences(model, onnx_path, input_names, inputs, level)
    except Exception as error:  # an error here must not hide the gate's result
        return f"its layers could not be compared ({str(error) or type(error).__name__})"
    # "not <=", since a difference may be NaN
    diverging = [name for name, difference in differences.items() if not difference <= CLOSE]
    if not differences:
        return "the file contains no layer of the network"
    if not diverging:
        return (
            f"each of the {len(differences)} layers agrees by itself, so the cause is a fusion of"
            " ONNX Runtime at this level, or an operation after the last layer"
        )
    first = diverging[0]
    worst = max(diverging, key=lambda name: differences[name])
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
    """Compare the outputs of each layer; arguments as for `describe_layer_differences`.

    Returns:
        Layer, in the order of execution -> largest difference of its output, relative where the
        output is above 1.
    """
    ours = torch_layers(model, input_names, inputs)
    theirs = onnx_layers(onnx_path, inputs, level)
    differences = {}
    for name, output in ours.items():
        # The output of the layer is that of its last node with this shape, or a form of it.
        for other in reversed(theirs.get(name, [])):
            if forms := _forms(other, output.shape):
                differences[name] = min(_difference(form, output) for form in forms)
                break
    return differences


def _forms(array: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return forms of the array of this shape: the file may hold it transposed or extended."""
    forms = [array]
    if array.ndim > 2:
        forms.append(array.swapaxes(-1, -2))  # the layout of a convolution
        forms.append(array[..., :-1])  # the last feature may carry biases (networks/fast.py)
    return [form for form in forms if form.shape == shape]


def _difference(answers: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a layer's outputs."""
    difference = _largest(answers, expected)
    # outputs of edges (N, P, k, C), where the order of neighbours may differ
    if answers.ndim == 4 and difference > CLOSE:
        return _largest(np.sort(answers, axis=2), np.sort(expected, axis=2))
    return difference


def _largest(output: np.ndarray, expected: np.ndarray) -> float:
    """Return largest difference, relative where |expected| is above 1.

    Infinite for NaN or infinity.
    """
    differences = np.abs(output.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    return float(np.where(np.isfinite(differences), differences, np.inf).max(initial=0.0))


def torch_layers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Collect the outputs of PyTorch's modules; arguments as for `describe_layer_differences`.

    Returns:
        Module path -> output of the module's last call, without modules that return no tensor.
    """
    import torch

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, _module, _inputs, output) -> None:
        if isinstance(output, torch.Tensor):
            outputs.pop(name, None)  # keeps the order of the last calls
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
    """Collect the outputs of the graph's nodes; arguments as for `describe_layer_differences`.

    Returns:
        Module path -> floating-point outputs of its nodes and submodules, in the graph's order.
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
    """Return the path of the module from which a node was exported.

    "/head/head.0/Gemm" -> "head.0", "/Concat" (the network's own) -> "".
    """
    path = ""
    for token in node_name.strip("/").split("/")[:-1]:
        container, _, rest = token.partition(".")
        is_repeated = rest and (path == container or path.endswith("." + container))
        path = f"{path}.{rest}" if is_repeated else f"{path}.{token}".lstrip(".")
    return path
