"""Write one model of the Triton repository: ONNX file, gate, configurations, golden files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common import storage
from common.config import RunConfig, cpus, quantity
from common.errors import GateError
from common.layout import RunFolder
from common.progress import Progress
from common.records import MemoryRecord, ModelRecord, ParityRecord
from exporting.candidates import Candidate
from exporting.rates import rates
from exporting.request import AUTO_SIZE, Export
from exporting.spread import spread
from serving import golden
from weaver.onnx.triton_config import LOCAL, LOCAL_INSTANCES, check_config, triton_config

FACTS = ("valid_range", "label", "treename", "trained_on", "run_id")
"""Metadata of model.onnx that config.pbtxt repeats for clients of a server."""


def write_model(
    request: Export, folder: RunFolder, candidate: Candidate, metadata: Mapping[str, object]
) -> ModelRecord:
    """Write one model with its golden files into a folder on this machine, if it passes the gate.

    Args:
        request: Options of the export.
        folder: The folder, with the layout of a run.
        candidate: The model.
        metadata: Metadata of the ONNX file.

    Raises:
        GateError: If ONNX Runtime and PyTorch give different outputs.
    """
    from weaver.onnx.onnx_export import export_onnx, free_axes
    from weaver.onnx.runtime import session

    onnx_path = Path(folder.onnx(candidate.name))
    onnx_path.parent.mkdir(parents=True)
    export_onnx(
        candidate.model,
        candidate.info,
        candidate.data_config,
        onnx_path,
        opset=request.opset,
        metadata=metadata,
    )
    parity = check_parity(candidate, onnx_path)
    if candidate.data_config and free_axes(candidate.info):
        check_other_lengths(candidate, onnx_path)
    # The inputs of clients: those that the network ignores are not in the graph.
    input_names = [entry.name for entry in session(onnx_path).get_inputs()]

    memory = None
    max_batch_size = request.max_batch_size
    if max_batch_size == AUTO_SIZE:
        memory, max_batch_size = measure_batch_size(request, candidate, input_names, onnx_path)
    facts = {key: str(metadata[key]) for key in FACTS if metadata.get(key)}
    facts["sha256"] = storage.digest(onnx_path.read_bytes())
    write_configs(request, candidate.name, onnx_path, max_batch_size, facts)
    write_golden(folder.golden(candidate.name), candidate, input_names)

    # The first axis is the jets.
    shapes = candidate.info["input_shapes"]
    return ModelRecord(
        model=candidate.name,
        max_batch_size=max_batch_size,
        memory=memory,
        size_bytes=onnx_path.stat().st_size,
        sha256=facts["sha256"],
        inputs={name: list(shapes[name][1:]) for name in input_names},
        outputs=list(candidate.info["output_names"]),
        parity=parity,
        rates=rates(
            onnx_path, {name: candidate.real[name] for name in input_names}, max_batch_size
        ),
    )


def check_parity(candidate: Candidate, onnx_path: Path) -> ParityRecord:
    """Compare the outputs of ONNX Runtime and PyTorch.

    Raises:
        GateError: If they differ.
    """
    from weaver.onnx import parity

    total = parity.num_answers(candidate.jets)
    with Progress(f"parity of {candidate.name}", total=total, unit="jets") as progress:
        try:
            result = parity.check_parity(
                candidate.model,
                onnx_path,
                candidate.jets,
                candidate.info["input_names"],
                expected=candidate.expected,
                advance=progress.advance,
            )
        except GateError as error:
            raise GateError(f"model {candidate.name}: {error}{candidate.explain()}") from None
    return ParityRecord(
        num_jets=result.num_jets,
        num_answers=result.num_answers,
        share_close=result.share_close,
        max_difference=result.max_difference,
        worst=result.worst,
        levels=list(result.levels),
        batch_sizes=list(result.batch_sizes),
    )


def check_other_lengths(candidate: Candidate, onnx_path: Path) -> None:
    """Check a model with free axes at other lengths than those of the golden jets.

    Raises:
        GateError: If its outputs are wrong.
    """
    from weaver.onnx.free_axes import check_lengths

    try:
        check_lengths(candidate.model, candidate.info, candidate.data_config, onnx_path)
    except GateError as error:
        raise GateError(f"model {candidate.name}: {error}") from None


def measure_batch_size(
    request: Export, candidate: Candidate, input_names: list[str], onnx_path: Path
) -> tuple[MemoryRecord, int]:
    """Measure the memory of executions, and return it with the largest batch in the budget."""
    from weaver.onnx.memory import measure_memory

    shapes = {}
    for name in input_names:
        real = candidate.real[name]
        shapes[name] = (str(real.dtype), real.shape[1:])
    memory = measure_memory(onnx_path, shapes)
    budget = round(quantity("memory-budget", request.memory_budget))
    record = MemoryRecord(
        sizes=list(memory.sizes),
        growth=list(memory.growth),
        bytes_per_jet=memory.bytes_per_jet,
        budget=budget,
    )
    return record, memory.batch_size(budget)


def write_configs(
    request: Export,
    name: str,
    onnx_path: Path,
    max_batch_size: int,
    facts: Mapping[str, str],
) -> None:
    """Write config.pbtxt for the cluster, and the variant for one machine without a GPU.

    `facts` are parameters that no backend reads; clients read them at /v2/models/NAME/config.
    """
    run = storage.find_object(request.folder.run)
    config = RunConfig.from_dict(run.get("config", {}))
    if config.serving_gpus:
        cluster = triton_config(
            onnx_path, name, max_batch_size=max_batch_size, device="gpu", parameters=facts
        )
    else:
        # On a node with many cores ONNX Runtime would start a thread for each, and the limit of the
        # container would slow them all down.
        threads = math.ceil(cpus("serving_cpus", config.serving_cpus))
        parameters = {**facts, "intra_op_thread_count": str(threads)}
        cluster = triton_config(
            onnx_path, name, max_batch_size=max_batch_size, device="cpu", parameters=parameters
        )
    local = triton_config(
        onnx_path,
        name,
        max_batch_size=max_batch_size,
        warmup=golden.SIZES,  # not the largest size, so that the model is ready sooner
        device="cpu",
        instances=LOCAL_INSTANCES,
        parameters=facts,
    )
    place = onnx_path.parents[1]
    for path, text in (("config.pbtxt", cluster), (f"configs/{LOCAL}.pbtxt", local)):
        check_config(text, onnx_path, path)
        storage.write_text(str(place / path), text)


def write_golden(folder: str, candidate: Candidate, input_names: list[str]) -> None:
    """Write requests of real jets, with the inputs of the graph, and the answers of PyTorch."""
    from weaver.onnx.parity import torch_answers

    names = candidate.info["input_names"]
    outputs = candidate.info["output_names"]
    real = dataclasses.replace(
        candidate.jets, inputs={name: candidate.real[name] for name in names}
    )
    jets = spread(len(candidate.real[names[0]]), max(golden.SIZES))
    for size in golden.SIZES:
        # np.resize repeats the jets where the validation set has fewer.
        inputs = real.batch(np.resize(jets, size))
        answers = torch_answers(candidate.model, names, inputs)  # (N, C)
        by_name = {outputs[0]: answers}
        if len(outputs) > 1:  # the raw model has an output for each column, (N, 1)
            types = candidate.info.get("output_types", {})
            columns = np.split(answers, len(outputs), axis=1)
            by_name = {}
            for name, column in zip(outputs, columns, strict=True):
                by_name[name] = column.astype(types.get(name, np.float32))
        graph_inputs = {name: inputs[name] for name in input_names}
        golden.write(folder, graph_inputs, candidate.name, by_name)
