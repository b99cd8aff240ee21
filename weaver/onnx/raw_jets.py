"""Raw jets for a model that takes them, and the network's inputs for the same jets.

    columns = raw_columns(entry, data_config)              # types, from the head of one file
    jets = read_raw(entries, data_config, program, 1000)   # {name: (N, 1) or (N, P)}
    inputs = reference_inputs(jets, data_config, program)  # by prepare and the loader

`reference_inputs` uses weaver's own preparation (numpy, awkward), so that the gate compares the
graph with the inputs of the training.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import awkward as ak
import numpy as np

from common import scratch
from common.errors import InputError
from common.storage import Entry
from weaver.config.data_config import DataConfig, Plan
from weaver.config.expressions import Expression
from weaver.config.reference import ETA
from weaver.onnx.parity import CLOSE, Golden, golden_jets
from weaver.onnx.raw_program import Column, RawProgram, input_columns, raw_branches
from weaver.onnx.residual_features import FEATURE_NAMES, FEATURES
from weaver.prepared import transform
from weaver.prepared.columns import DatasetWriter
from weaver.read import files
from weaver.read.jagged import evaluate

EXTRA_PARTICLES = 20  # particles of golden jets beyond the length of the longest input
# files from which jets are taken: several, because files may differ in pT, and few, because each
# needs round trips on S3
FILES = 4


def raw_plan(config: DataConfig) -> Plan:
    """Plan what to read and compute for the network's inputs, without selection and label."""
    without_selection = dataclasses.replace(config, selections={"train": None, "test": None})
    plan = without_selection.plan_for(input_columns(config))
    return dataclasses.replace(plan, branches=raw_branches(config))


def raw_columns(entry: Entry, config: DataConfig) -> dict[str, Column]:
    """Return the branches of one file that the data config uses: name -> column.

    Raises InputError as weaver.read.files.inspect does, and for a branch that is not numeric.
    """
    plan = raw_plan(config)
    file = files.inspect(entry, config, plan)
    columns = {}
    with files.open_file(entry.uri) as root_file:
        tree = root_file[file.tree]
        for name, branch in plan.branches.items():
            if name in file.columns:
                columns[branch] = _column(tree[branch])
    return columns


def _column(branch) -> Column:
    """Return the type of a branch, and for lists the name of its counter."""
    array = branch.array(entry_stop=0, library="ak")
    dtype = None
    with contextlib.suppress(TypeError, ValueError):  # words, records and the like
        dtype = ak.to_numpy(ak.flatten(array, axis=None)).dtype
    if array.ndim > 2 or dtype is None or dtype.kind not in "biuf":
        raise InputError(
            f"branch '{branch.name}' is {array.type.content}; expected numbers, or lists of numbers"
        )
    counter = ""
    if array.ndim == 2:
        # the counter that ROOT names, else (for a vector or an RNTuple) n<branch>
        counting = getattr(branch, "count_branch", None)
        counter = f"n{branch.name}" if counting is None else counting.name
    return Column(dtype=dtype, particles=array.ndim == 2, counter=counter)


def read_raw(
    entries: Sequence[Entry], config: DataConfig, program: RawProgram, count: int
) -> dict[str, np.ndarray]:
    """Read about `count` jets from the start of a few files, as inputs of the raw model.

    The data config's selection is not applied. Returns arrays (N, 1), or (N, P) for particles.
    Raises InputError for files that the data config does not fit.
    """
    plan = raw_plan(config)
    # evenly over the list, because neighbouring files often have the same range of pT
    places = np.linspace(0, len(entries) - 1, min(FILES, len(entries)))
    sample_files = [entries[place] for place in sorted({round(place) for place in places})]
    parts: dict[str, list[ak.Array]] = {branch: [] for branch in program.inputs}
    for entry in sample_files:
        file = files.inspect(entry, config, plan)
        stop = min(-(-count // len(sample_files)), file.num_entries)
        for columns, _ in files.read(file, config, plan, training_set=False, stop=stop):
            # two columns may come from one branch
            arrays = {plan.branches[name]: columns[name] for name in plan.branches}
            for branch, chunks in parts.items():
                chunks.append(arrays[branch])
    return pad_columns(
        {branch: ak.concatenate(arrays) for branch, arrays in parts.items()}, program
    )


def pad_columns(columns: Mapping[str, ak.Array], program: RawProgram) -> dict[str, np.ndarray]:
    """Pad branches, which are awkward arrays, to the model's inputs.

    Returns (N, 1), or (N, P) padded with zeros, and the counters (N, 1), int32. Raises InputError
    if branches of one counter have different numbers of entries.
    """
    inputs: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for branch, column in program.inputs.items():
        if not column.particles:
            inputs[branch] = np.asarray(ak.to_numpy(columns[branch]), column.dtype)[:, None]
            continue
        number = ak.to_numpy(ak.num(columns[branch], axis=1))
        if not np.array_equal(counts.setdefault(column.counter, number), number):
            raise InputError(
                f"'{branch}' does not have as many entries as {column.counter} says;"
                " give files in which they agree"
            )
        most = max(int(number.max(initial=0)), 1)
        full = ak.pad_none(ak.from_regular(columns[branch]), most, axis=1, clip=True)
        array = ak.to_numpy(ak.fill_none(full, 0))  # (N, P)
        inputs[branch] = np.ascontiguousarray(array).astype(column.dtype)
    for counter, number in counts.items():
        inputs[counter] = number.astype(np.int32)[:, None]
    return inputs


def reference_inputs(
    jets: Mapping[str, np.ndarray], config: DataConfig, program: RawProgram
) -> dict[str, np.ndarray]:
    """Return the network's inputs by weaver's own preparation: group -> (N, C, P) or (N, C).

    The entry '' is the quantity that the label divides by (N,), such as jetPt in GeV. With jetEta
    among the inputs, the entry `residual_features` (N, 2) is the residual correction's input.
    """
    from weaver.feed.dataset import Dataset

    plan = raw_plan(config)
    columns = {
        name: _without_padding(jets, branch, program) for name, branch in plan.branches.items()
    }
    selected_columns, count = transform.select(columns, plan)
    with scratch.folder("jec-raw-") as folder:
        writer = DatasetWriter(folder)
        writer.append(transform.make_rows(selected_columns, count, config, plan))
        description = writer.close() | {"preprocess_params": config.preprocess_params}
        dataset = Dataset(folder, description, dataclasses.replace(config, label_names=()))
        batch = dataset.batch(np.arange(count))
        # a copy, because the files are mapped into memory and will be deleted with the folder
        inputs = {name: tensor.numpy().copy() for name, tensor in batch.inputs.items()}
    reference = evaluate(Expression(program.reference_text), columns | selected_columns)
    inputs[""] = np.asarray(reference, np.float32)
    if program.eta is not None:
        eta = evaluate(Expression(ETA), columns | selected_columns)
        inputs[FEATURES] = np.stack([inputs[""], np.asarray(eta, np.float32)], axis=1)
    return inputs


def _without_padding(jets: Mapping[str, np.ndarray], branch: str, program: RawProgram) -> ak.Array:
    """Return a branch of the model's inputs as an awkward array, without padding."""
    column = program.inputs[branch]
    if not column.particles:
        return ak.Array(jets[branch][:, 0])
    counts = jets[column.counter][:, 0]
    real = np.arange(jets[branch].shape[1]) < counts[:, None]
    return ak.unflatten(jets[branch][real], counts)


def golden_raw_jets(
    real: Mapping[str, np.ndarray], program: RawProgram, config: DataConfig
) -> Golden:
    """Make golden jets from raw ones: one of each multiplicity, then the real ones.

    Multiplicities range from 0 to EXTRA_PARTICLES above the longest input. With several lists of
    particles, that of the first list varies.

    Args:
        real: input of the program -> (N, 1) for one value a jet and for counters, (N, P) for
            particles.
        program: the compiled data config.
        config: the data config.
    """
    counter = program.counters[0] if program.counters else None
    particles = set()
    for branch, column in program.inputs.items():
        if counter and column.counter == counter:
            particles.add(branch)

    # golden_jets takes particles as (N, C, P)
    arrays = {}
    for name, x in real.items():
        if name != counter:
            arrays[name] = x[:, None, :] if name in particles else x
    if counter:
        multiplicity = real[counter][:, 0].astype(np.int64)
    else:
        multiplicity = np.zeros(len(next(iter(real.values()))), np.int64)
    lengths = [params["length"] or 0 for params in config.preprocess_params.values()]
    golden = golden_jets(arrays, multiplicity, length=max(lengths, default=0) + EXTRA_PARTICLES)

    inputs = {}
    for name, x in golden.inputs.items():
        inputs[name] = x[:, 0, :] if name in particles else x
    if counter:
        inputs[counter] = golden.multiplicity.astype(np.int32)[:, None]
    counters = {}
    for branch, column in program.inputs.items():
        if column.particles:
            counters[branch] = column.counter
    return dataclasses.replace(golden, inputs=inputs, counters=counters)


def reference_answers(
    output: np.ndarray, reference_pt: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Return the raw model's expected outputs (N, outputs), from those of the network (N, C).

    output: (N, C), logarithms of factors to reference_pt (N,), GeV. valid: (N,), which becomes the
    last output.
    """
    import torch

    from weaver.onnx.raw_model import physical_outputs

    is_valid = torch.from_numpy(valid[:, None])
    physical = physical_outputs(
        torch.from_numpy(output), torch.from_numpy(reference_pt[:, None]), is_valid
    )
    return torch.cat([*physical, is_valid.float()], dim=1).numpy()


def describe_worst_input(
    model,
    input_names: Sequence[str],
    jets: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    config: DataConfig,
) -> str:
    """Name the variable in which the graph's preprocessing differs most from weaver's own.

    Args:
        model (torch.nn.Module): the raw model.
        input_names: in the order of its arguments.
        jets: input of the raw model -> (N, 1) or (N, P).
        reference: input group -> (N, C, P), (N, C) or (N,), as `reference_inputs` computes it.
        config: the data config.

    Returns:
        The end of a sentence; empty if the preprocessing agrees.
    """
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(jets[name])) for name in input_names]
    with torch.no_grad():
        *groups, _ = model.preprocessing(*tensors)
    largest: dict[str, float] = {}
    for group, tensor in zip(model.preprocessing.groups, groups, strict=True):
        expected = reference[group]  # (N, C, P), (N, C), or (N,) for one variable
        values = tensor.numpy()
        if values.ndim == 3:
            values = values[:, : expected.shape[1]]  # without the 1 that may carry the first bias
        differences = np.abs(values - expected) / np.maximum(1, np.abs(expected))
        names = FEATURE_NAMES if group == FEATURES else config.input_dicts[group]
        for index, name in enumerate(names):
            of_variable = differences[:, index] if differences.ndim > 1 else differences
            largest[f"{group}:{name}"] = float(of_variable.max(initial=0.0))
    worst = max(largest, key=lambda name: largest[name])
    if largest[worst] <= CLOSE:
        return ""
    return f"; the input {worst} differs by {largest[worst]:.2g} from the one that prepare computes"
