"""Prepared data as tensors: columns mapped into memory, batches gathered from them for any choice
of jets.

A batch is made in two halves. `gather` copies from the mapped columns, on the CPU, one run of
particles a jet: as many as the config's length, from the jet's first one on. `finish` moves that to
the device and replaces there what lies beyond a jet's last particle by the pad value. The columns
are mapped, not read: all processes of a node share one copy in the page cache, and data larger than
memory works as well, at the speed of the disk (weaver/feed/order.py makes these reads long ones).
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import storage
from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.prepared.columns import DESCRIPTION, FORMAT, HEADER, is_prepared, local_copy, node_cache
from weaver.prepared.prepare import prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """N jets as a network and a loss take them."""

    inputs: dict[str, torch.Tensor]
    """Group, in the order of the data config -> (N, C, P) float32 for sequences, (N, C) for one
    value a jet ((N,) for one variable).
    """
    labels: dict[str, torch.Tensor]
    """Label -> (N,), in the type that its expression gave (float32 for a regression target, int64
    for the number of a class).
    """
    observers: dict[str, np.ndarray]
    """Observer or monitor variable -> (N,)."""
    weights: torch.Tensor
    """(N,) float32: 1 without weights in the data config; 0 for jets that only fill up a batch."""

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, part: slice) -> Batch:
        """Neighbouring jets of it; their numbers are shared, not copied."""
        return Batch(
            inputs={name: tensor[part] for name, tensor in self.inputs.items()},
            labels={name: tensor[part] for name, tensor in self.labels.items()},
            observers={name: values[part] for name, values in self.observers.items()},
            weights=self.weights[part],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """N jets copied from the columns, before padding; everything still on the CPU."""

    sequences: dict[str, tuple[torch.Tensor | None, torch.Tensor]]
    """Group -> the runs of particles (N, P, C), or None where all values are alike; and how many of
    them are the jet's own (N,).
    """
    flats: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    observers: dict[str, np.ndarray]
    weights: torch.Tensor

    def pin_memory(self) -> Gathered:
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return self.mapped(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Gathered:
        """The same on a device (without waiting, where the memory is pinned)."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Gathered:
        return dataclasses.replace(
            self,
            sequences={
                name: (rows if rows is None else function(rows), function(own))
                for name, (rows, own) in self.sequences.items()
            },
            flats={name: function(tensor) for name, tensor in self.flats.items()},
            labels={name: function(tensor) for name, tensor in self.labels.items()},
            weights=function(self.weights),
        )


class Dataset:
    """Prepared jets. Make one with `Dataset.open`."""

    def __init__(self, folder: Path, description: dict[str, Any], data_config: DataConfig) -> None:
        self.folder, self.description = folder, description
        self.data_config = data_config.with_derived(description)
        """The data config with the standardisation that was used; what is exported with a network
        must apply the same.
        """
        self._columns = {
            name: _map(folder, entry) for name, entry in description["columns"].items()
        }
        self._sequences = {
            group: _Sequence(folder, entry, self.data_config, group)
            for group, entry in description["sequences"].items()
        }

    @classmethod
    def open(
        cls,
        source: str,
        data_config: DataConfig,
        *,
        cache_dir: str | None = None,
        for_training: bool = True,
        validation: bool = False,
        copy: bool = False,
    ) -> Dataset:
        """Open prepared data.

        source: a prepared folder, a reference file (`{"dataset": <prepared folder>}`), or patterns
        of ROOT files, which are first prepared into `cache_dir`, in the role that `for_training`
        and `validation` say (weaver/prepared/prepare.py). Data on S3, and with `copy` also data on
        a shared disk, is copied once to this node's cache (`cache_dir`, or JEC_CACHE, or a folder
        for temporary files).

        Raises InputError where there is no such data, or it was prepared with another data config.
        """
        cache = Path(cache_dir) if cache_dir else node_cache()
        if source.endswith(".json"):
            source = _referred(source)
        elif not is_prepared(source):
            source = prepare(
                source, data_config, str(cache), for_training=for_training, validation=validation
            ).uri
        folder = local_copy(source, cache, always=copy)
        description = storage.read_json(str(folder / DESCRIPTION))
        _check(source, description, data_config)
        return cls(folder, description, data_config)

    def __len__(self) -> int:
        return self.description["num_jets"]

    @property
    def nbytes(self) -> int:
        """Bytes of the columns that batches are made from."""
        sequences = sum(sequence.nbytes for sequence in self._sequences.values())
        return sequences + sum(column.nbytes for column in self._columns.values())

    def batch(self, index: np.ndarray, device: str | torch.device = "cpu") -> Batch:
        """The jets at these positions (int64, any order, repeats allowed) as tensors on
        `device`.
        """
        return self.finish(self.gather(index), device)

    def gather(self, index: np.ndarray) -> Gathered:
        """The first half of `batch`, on the CPU; numpy does it without holding Python's lock, so it
        may run in a thread.
        """
        index = np.ascontiguousarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"jets are numbered 0 to {len(self) - 1}, asked for {index.min()} to {index.max()}"
            )
        groups = self.data_config.input_names
        return Gathered(
            sequences={
                group: self._sequences[group].gather(index)
                for group in groups
                if group in self._sequences
            },
            flats={
                group: torch.from_numpy(self._columns[group][index])
                for group in groups
                if group not in self._sequences
            },
            labels={
                name: _tensor(self._columns[f"label.{name}"][index])
                for name in self.data_config.label_names
            },
            observers={name: values[index] for name, values in self._observed().items()},
            weights=(
                torch.from_numpy(self._columns["weight"][index])
                if "weight" in self._columns
                else torch.ones(len(index))
            ),
        )

    def finish(self, gathered: Gathered, device: str | torch.device = "cpu") -> Batch:
        """The second half of `batch`: on the device, pad."""
        device = torch.device(device)
        there = gathered if device.type == "cpu" else gathered.to(device)
        padded = {
            group: self._sequences[group].pad(*rows) for group, rows in there.sequences.items()
        }
        inputs = {
            group: padded[group] if group in padded else there.flats[group]
            for group in self.data_config.input_names
        }
        return Batch(
            inputs=inputs, labels=there.labels, observers=there.observers, weights=there.weights
        )

    def read_ahead(self, start: int, stop: int) -> None:
        """Tell the system that the jets from `start` up to `stop` will be wanted soon, so that it
        reads them in one go.
        """
        for sequence in self._sequences.values():
            sequence.read_ahead(start, stop)

    def observers(self) -> dict[str, np.ndarray]:
        """All observers and monitor variables of all jets, (N,) each, mapped into memory."""
        return dict(self._observed())

    def label(self, name: str) -> np.ndarray:
        """One label of all jets, (N,)."""
        if name not in self.data_config.label_names:
            raise InputError(
                f"there is no label '{name}'; there are: {', '.join(self.data_config.label_names)}"
            )
        return self._columns[f"label.{name}"]

    def weights(self) -> np.ndarray:
        """The weights of all jets, (N,) float32, mapped into memory; ones where the data config has
        none.
        """
        return (
            self._columns["weight"] if "weight" in self._columns else np.ones(len(self), np.float32)
        )

    def multiplicity(self, group: str | None = None) -> np.ndarray:
        """Particles of each jet, cut to the length, (N,) int64: of the given sequence group, or of
        the config's first one.
        """
        if not self._sequences:
            return np.zeros(len(self), np.int64)
        return np.diff(self._sequences[group or next(iter(self._sequences))].offsets)

    def _observed(self) -> dict[str, np.ndarray]:
        return {
            name.removeprefix("observer."): values
            for name, values in self._columns.items()
            if name.startswith("observer.")
        }


class _Sequence:
    """One group of variables with several particles a jet."""

    def __init__(self, folder: Path, entry: dict[str, Any], config: DataConfig, group: str) -> None:
        params = [config.preprocess_params[name] for name in config.input_dicts[group]]
        self.offsets = _map(folder, entry["offsets"])
        self.length: int = params[0]["length"]
        self.wraps = params[0]["pad_mode"] == "wrap"
        # A wrapped jet without particles is all zero, as in weaver-core.
        self._pads = _OnDevices([0.0 if self.wraps else p["pad_value"] for p in params])
        self.file, self.values, self.constant = None, None, None
        if "values" in entry:
            self.file = folder / entry["values"]["file"]
            self.values = _map(folder, entry["values"])
            self.runs = _Runs(self.values, self.length)
        else:
            self.constant = _OnDevices(entry["constant"])
        self._advice = None

    @property
    def nbytes(self) -> int:
        return self.offsets.nbytes + (0 if self.values is None else self.values.nbytes)

    def gather(self, index: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The runs of particles (N, P, C) of the jets at `index`, None for constant ones, and how
        many are to be kept of each (N,).
        """
        start = self.offsets[index]
        count = self.offsets[index + 1] - start
        kept = np.where(count > 0, self.length, 0) if self.wraps else count
        if self.values is None:
            return None, torch.from_numpy(kept)
        if not self.wraps or not len(self.values):
            return torch.from_numpy(self.runs.take(start)), torch.from_numpy(kept)
        places = start[:, None] + np.arange(self.length) % np.maximum(count, 1)[:, None]
        # the place of a jet without particles means nothing
        rows = self.values.take(places.ravel(), axis=0, mode="clip")
        return torch.from_numpy(
            rows.reshape(len(index), self.length, self.values.shape[1])
        ), torch.from_numpy(kept)

    def pad(self, rows: torch.Tensor | None, kept: torch.Tensor) -> torch.Tensor:
        """(N, P, C) and (N,) -> (N, C, P), the pad value in place of what is not kept."""
        pad = self._pads.on(kept.device)
        if rows is None:
            rows = self.constant.on(kept.device).expand(len(kept), self.length, -1)
        real = torch.arange(self.length, device=kept.device) < kept[:, None]
        made = torch.empty((len(kept), len(pad), self.length), device=kept.device)
        return torch.where(real[:, None, :], rows.transpose(1, 2), pad[:, None], out=made)

    def read_ahead(self, start: int, stop: int) -> None:
        if self.values is None or not len(self.values):
            return
        self._advice = self._advice or _Advice(self.file)
        row = self.values.nbytes // len(self.values)
        self._advice.will_need(int(self.offsets[start]) * row, int(self.offsets[stop]) * row)


class _Runs:
    """Runs of `length` rows of (rows, C) values from any row on: one memory copy each, which
    gathering single rows is not.
    """

    def __init__(self, values: np.ndarray, length: int) -> None:
        self.shape, self.last = (length, values.shape[1]), max(len(values) - length, 0)
        # for runs that reach beyond the end
        tail = np.zeros((2 * length, values.shape[1]), values.dtype)
        tail[: len(values) - self.last] = values[self.last :]
        if len(values) < length:
            values = tail
        size = values.dtype.itemsize
        shape, strides = (self.last + 1, length * values.shape[1]), (values.shape[1] * size, size)
        self.tail = tail
        self.inner = np.lib.stride_tricks.as_strided(values, shape, strides, writeable=False)

    def take(self, start: np.ndarray) -> np.ndarray:
        """(N,) -> (N, length, C); what lies beyond the values is 0."""
        runs = self.inner[np.minimum(start, self.last)].reshape(len(start), *self.shape)
        # at most the last `length` jets of the data set
        for index in np.flatnonzero(start > self.last):
            first = start[index] - self.last
            runs[index] = self.tail[first : first + self.shape[0]]
        return runs


class _OnDevices:
    """A few float32 numbers, kept on each device where they were wanted: sending them with each
    batch would make a GPU wait.
    """

    def __init__(self, values: list[float]) -> None:
        self._on = {torch.device("cpu"): torch.tensor(values, dtype=torch.float32)}

    def on(self, device: torch.device) -> torch.Tensor:
        if device not in self._on:
            self._on[device] = self._on[torch.device("cpu")].to(device)
        return self._on[device]


class _Advice:
    """What the system is told about a file that is mapped into memory; nothing where it takes no
    such advice (macOS).
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def will_need(self, start: int, stop: int) -> None:
        """Bytes of the columns, which lie behind the header."""
        start, stop = start // mmap.PAGESIZE * mmap.PAGESIZE, min(stop + HEADER, len(self._map))
        if hasattr(mmap, "MADV_WILLNEED") and stop > start:
            self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)


def _referred(uri: str) -> str:
    content = storage.read_json(uri)
    if not isinstance(content, dict) or not isinstance(content.get("dataset"), str):
        raise InputError(f'{uri} refers to no data: expected {{"dataset": "<prepared folder>"}}')
    if not is_prepared(content["dataset"]):
        raise InputError(
            f"{uri} refers to {content['dataset']}, where there is no prepared data; prepare it"
            " again"
        )
    return content["dataset"]


def _check(source: str, description: dict[str, Any], config: DataConfig) -> None:
    if description.get("format") != FORMAT:
        raise InputError(
            f"{source} has form {description.get('format')}, this program reads form {FORMAT};"
            " prepare it again"
        )
    if description["config"] != config.digest():
        raise InputError(
            f"{source} was prepared with another data config than {config.source}; prepare it with"
            " this one"
        )


def _map(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """A column mapped into memory: read from disk where touched, and never written back."""
    shape, path = tuple(entry["shape"]), folder / entry["file"]
    if 0 in shape:
        return np.empty(shape, entry["dtype"])
    try:
        column = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}); delete {folder} and prepare it again"
        ) from None
    if column.shape != shape or column.dtype.str != entry["dtype"]:
        raise InputError(
            f"{path} is not what {DESCRIPTION} says ({column.dtype.str}{column.shape}); delete"
            f" {folder} and prepare it again"
        )
    return column.view(np.ndarray)  # without np.memmap's own indexing, which is slower


def _tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor of these numbers; unsigned ones, for which torch has few operations,
    become int64.
    """
    return torch.from_numpy(values.astype(np.int64) if values.dtype.kind == "u" else values)
