"""Linear layers over particles as one matrix product each, which ONNX Runtime runs with bias and ReLU in one pass over memory.

torch writes a linear layer of (N, P, C) as MatMul, Add and Relu: three passes. ONNX Runtime fuses these for matrices only, so the
particles of all jets are laid out as rows, (N * P, C), from the first such layer to the last of a chain, and back.
"""

from __future__ import annotations

import numpy as np


def use_gemm(model) -> int:
    """Rewrite an onnx.ModelProto in place; returns the number of layers that became a Gemm.

    A layer qualifies if its weights and bias are constants and its sizes beside the batch are fixed.
    """
    import onnx

    graph = model.graph
    rewriting = _Rewriting(graph, onnx.shape_inference.infer_shapes(model).graph)
    nodes = [made for node in graph.node for made in rewriting.node(node)]
    kept = _used(nodes, {value.name for value in graph.output})
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(rewriting.constants.values())
    return rewriting.count


class _Rewriting:
    def __init__(self, graph, inferred) -> None:
        self.constant_rank = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self.dims = {value.name: _dims(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)}
        self.users: dict[str, list] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self.flat: dict[str, str] = {}  # tensor -> the same values as rows
        self.done: set[str] = set()  # names of tensors that a rewritten layer gives already
        self.constants: dict[str, object] = {}
        self.count = 0

    def node(self, node) -> list:
        """What stands in the place of a node."""
        if node.output and node.output[0] in self.done:
            return []
        add = self.next(node, "Add") if node.op_type == "MatMul" else None
        bias = next((name for name in add.input if self.constant_rank.get(name) == 1), None) if add else None
        sizes = self.dims.get(node.input[0], []) if bias else []
        if self.constant_rank.get(node.input[1] if bias else "") != 2 or len(sizes) < 3 or not all(size > 0 for size in sizes[1:]):
            return [node]
        return self.layer(node, add, bias, sizes)

    def next(self, node, op: str):
        """The only user of a node's output, if it is such an operation."""
        users = self.users.get(node.output[0], [])
        return users[0] if len(users) == 1 and users[0].op_type == op and node.output[0] not in self.outputs else None

    def layer(self, matmul, add, bias: str, sizes: list[int]) -> list:
        import onnx

        self.count += 1
        nodes, rows = [], self.flat.get(matmul.input[0])
        if rows is None:
            rows = f"{matmul.input[0]}_rows"
            self.flat[matmul.input[0]] = rows
            nodes.append(self.reshape(f"{matmul.name}_rows", matmul.input[0], rows, [-1, sizes[-1]]))
        relu = self.next(add, "Relu")
        last = relu or add
        gemm, result = f"{add.output[0]}_rows", f"{last.output[0]}_rows"
        nodes.append(onnx.helper.make_node("Gemm", [rows, matmul.input[1], bias], [gemm], name=matmul.name))
        if relu:
            nodes.append(onnx.helper.make_node("Relu", [gemm], [result], name=relu.name))
        width = self.dims[add.output[0]][-1]
        nodes.append(self.reshape(last.name, result, last.output[0], [-1, *sizes[1:-1], width]))
        self.flat[last.output[0]] = result
        self.done |= {add.output[0], last.output[0]}
        return nodes

    def reshape(self, name: str, source: str, target: str, shape: list[int]):
        import onnx

        constant = "rows_shape_" + "_".join(map(str, shape))
        self.constants[constant] = onnx.numpy_helper.from_array(np.array(shape, np.int64), constant)
        return onnx.helper.make_node("Reshape", [source, constant], [target], name=name if name.endswith("_rows") else f"{name}_shape")


def _dims(value) -> list[int]:
    """Sizes of a tensor's axes, 0 where one is not fixed."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _used(nodes: list, outputs: set[str]) -> list:
    """The nodes that something depends on."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
