"""Raw jets for a model that takes them: what columns the files have, some of them as padded arrays,
and what weaver makes of these.

    columns = raw_columns(entry, data_config)                   # types, from the head of one file
    jets = read_raw(entries, data_config, program, 1000)        # the model's inputs, {name: (N, 1)
        or (N, P)}
    inputs = reference_inputs(jets, data_config, program)       # what prepare and the loader make
        of the same jets

`reference_inputs` goes through weaver's own preparation (numpy, awkward), so that the gate compares
the graph with what was trained on.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import awkward as ak
import numpy as np

from common.errors import InputError
from common.storage import Entry
from weaver.config.data_config import DataConfig, Plan
from weaver.config.expressions import Expression
from weaver.onnx.parity import CLOSE, Golden, golden_jets, torch_answers
from weaver.onnx.raw_program import Column, RawProgram, raw_branches
from weaver.prepared import transform
from weaver.prepared.columns import DatasetWriter
from weaver.read import files
from weaver.read.jagged import evaluate

BEYOND = 20  # particles more than the longest input takes, in the jets that the gate makes
# that jets are taken from: several, since files may differ in pT, and few, since each takes round
# trips on S3
FILES = 4


def raw_plan(config: DataConfig) -> Plan:
    """What to read and compute for the network's inputs of any jet: no selection, no label."""
    wanted = [name for names in config.input_dicts.values() for name in names]
    wanted += [key.name for keys in config.order_by.values() for key in keys]
    plan = dataclasses.replace(config, selections={"train": None, "test": None}).plan_for(wanted)
    return dataclasses.replace(plan, branches=raw_branches(config))


def raw_columns(entry: Entry, config: DataConfig) -> dict[str, Column]:
    """The branches of one file that the data config uses, with their types.

    Raises InputError as weaver.read.files.inspect.
    """
    plan = raw_plan(config)
    found = files.inspect(entry, config, plan)
    with files.open_file(entry.uri) as opened:
        tree = opened[found.tree]
        return {
            branch: _column(tree[branch])
            for name, branch in plan.branches.items()
            if name in found.columns
        }


def _column(branch) -> Column:
    """A branch's type; several values a jet count by the branch that ROOT names for it, or else by
    `n<branch>`.
    """
    array = branch.array(entry_stop=0, library="ak")
    if array.ndim > 2 or not _is_numeric(array):
        raise InputError(
            f"branch '{branch.name}' is {array.type.content}; expected numbers, or lists of numbers"
        )
    counter = branch.count_branch
    return Column(
        dtype=ak.to_numpy(ak.flatten(array, axis=None)).dtype,
        particles=array.ndim == 2,
        counter=(
            "" if array.ndim == 1 else counter.name if counter is not None else f"n{branch.name}"
        ),
    )


def _is_numeric(array: ak.Array) -> bool:
    try:
        return ak.to_numpy(ak.flatten(array, axis=None)).dtype.kind in "biuf"
    except (TypeError, ValueError):
        return False


def read_raw(
    entries: Sequence[Entry], config: DataConfig, program: RawProgram, count: int
) -> dict[str, np.ndarray]:
    """About `count` jets, whatever the selection says of them, from the beginnings of a few files,
    as the model takes them.
    """
    plan = raw_plan(config)
    chosen = [
        entries[i]
        for i in sorted(
            {round(x) for x in np.linspace(0, len(entries) - 1, min(FILES, len(entries)))}
        )
    ]
    parts = []
    for entry in chosen:
        file = files.inspect(entry, config, plan)
        steps = files.read(
            file,
            config,
            plan,
            training_set=False,
            stop=min(-(-count // len(chosen)), file.num_entries),
        )
        parts += [
            {
                plan.branches[name]: values
                for name, values in columns.items()
                if name in plan.branches
            }
            for columns, _ in steps
        ]
    return padded(
        {branch: ak.concatenate([part[branch] for part in parts]) for branch in program.inputs},
        program,
    )


def padded(columns: Mapping[str, ak.Array], program: RawProgram) -> dict[str, np.ndarray]:
    """Branches as awkward arrays -> the model's inputs:

    (N, 1), or (N, P) padded with zeros, and the counters (N, 1) int32.
    """
    found, counts = {}, {}
    for branch, column in program.inputs.items():
        if not column.particles:
            found[branch] = np.asarray(ak.to_numpy(columns[branch]), column.dtype)[:, None]
            continue
        number = ak.to_numpy(ak.num(columns[branch], axis=1))
        if not np.array_equal(counts.setdefault(column.counter, number), number):
            raise InputError(f"'{branch}' does not have as many entries as {column.counter} says")
        most = max(int(number.max(initial=0)), 1)
        full = ak.fill_none(
            ak.pad_none(ak.from_regular(columns[branch]), most, axis=1, clip=True), 0
        )
        found[branch] = np.ascontiguousarray(ak.to_numpy(full)).astype(column.dtype)
    return found | {counter: number.astype(np.int32)[:, None] for counter, number in counts.items()}


def reference_inputs(
    jets: Mapping[str, np.ndarray], config: DataConfig, program: RawProgram
) -> dict[str, np.ndarray]:
    """The network's inputs {group: (N, C, P) or (N, C)} that weaver's own preparation makes of the
    jets, and as '' what the label divides by (N,)."""
    from weaver.feed.dataset import Dataset

    plan = raw_plan(config)
    columns = {name: _unpadded(jets, branch, program) for name, branch in plan.branches.items()}
    selected, count = transform.select(columns, plan)
    with tempfile.TemporaryDirectory(prefix="jec-raw-") as folder:
        writer = DatasetWriter(Path(folder))
        writer.append(transform.make_ready(selected, count, config, plan))
        description = writer.close() | {"preprocess_params": config.preprocess_params}
        dataset = Dataset(Path(folder), description, dataclasses.replace(config, label_names=()))
        inputs = {
            name: tensor.numpy().copy()
            for name, tensor in dataset.batch(np.arange(count)).inputs.items()
        }
    return inputs | {
        "": np.asarray(evaluate(Expression(program.reference_text), columns | selected), np.float32)
    }


def _unpadded(jets: Mapping[str, np.ndarray], branch: str, program: RawProgram) -> ak.Array:
    column = program.inputs[branch]
    if not column.particles:
        return ak.Array(jets[branch][:, 0])
    counts = jets[column.counter][:, 0]
    real = np.arange(jets[branch].shape[1]) < counts[:, None]
    return ak.unflatten(jets[branch][real], counts)


def golden_raw_jets(
    real: Mapping[str, np.ndarray], program: RawProgram, config: DataConfig
) -> Golden:
    """Jets for the gate: one of each multiplicity from none to well above the longest input, then
    the real ones.

    Where there are several lists of particles, the first one's multiplicity is varied.
    """
    counter = program.counters[0] if program.counters else None
    listed = [
        branch for branch, column in program.inputs.items() if counter and column.counter == counter
    ]
    longest = max(
        (params["length"] or 0 for params in config.preprocess_params.values()), default=0
    )
    arrays = {
        name: x[:, None, :] if name in listed else x for name, x in real.items() if name != counter
    }
    multiplicity = (
        real[counter][:, 0].astype(np.int64)
        if counter
        else np.zeros(len(next(iter(real.values()))), np.int64)
    )
    made = golden_jets(arrays, multiplicity, length=longest + BEYOND)
    inputs = {name: x[:, 0, :] if name in listed else x for name, x in made.inputs.items()}
    if counter:
        inputs[counter] = made.multiplicity.astype(np.int32)[:, None]
    widths = {
        branch: column.counter for branch, column in program.inputs.items() if column.particles
    }
    return dataclasses.replace(made, inputs=inputs, counters=widths)


def reference_answers(
    network, input_names: Sequence[str], reference: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(N, outputs of the raw model) that the network gives on weaver's own inputs."""
    import torch

    from weaver.onnx.raw_model import answers

    output = torch.from_numpy(torch_answers(network, input_names, reference))
    return torch.cat(answers(output, torch.from_numpy(reference[""])), dim=1).numpy()


def preprocessing_apart(
    model,
    input_names: Sequence[str],
    jets: Mapping[str, np.ndarray],
    reference: Mapping,
    config: DataConfig,
) -> str:
    """In words: the input variable in which the graph's preprocessing is furthest from weaver's
    own; empty where it is close.
    """
    import torch

    with torch.no_grad():
        *groups, _ = model.preprocessing(
            *(torch.from_numpy(np.ascontiguousarray(jets[name])) for name in input_names)
        )
    off = {}
    for group, found in zip(model.preprocessing.groups, groups, strict=True):
        difference = np.abs(found.numpy() - reference[group]) / np.maximum(
            1, np.abs(reference[group])
        )
        for index, name in enumerate(config.input_dicts[group]):
            off[f"{group}:{name}"] = float(
                (difference[:, index] if difference.ndim > 1 else difference).max(initial=0.0)
            )
    worst = max(off, key=lambda name: off[name])
    return (
        f"; the input {worst} is off by {off[worst]:.2g} from what prepare makes of it"
        if off[worst] > CLOSE
        else ""
    )
