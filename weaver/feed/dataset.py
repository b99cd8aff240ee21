"""Prepared data as tensors: columns that are mapped into memory, and batches of any of their jets.

A batch is made in two steps. `gather` copies from the mapped columns, on the CPU, a run of
consecutive particles for each jet: it starts at the jet's first particle and has the config's
length. `finish` copies this to the device, and replaces values after the jet's last particle by the
pad value. Because the columns are mapped, all processes of a node share one copy in the page cache,
and data may be larger than the memory; they are then read at the speed of the disk
(weaver/feed/order.py makes these reads long).
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import storage
from common.errors import InputError
from common.storage.patterns import has_wildcard
from common.storage.patterns import parse as parse_patterns
from weaver.config.data_config import DataConfig
from weaver.prepared.columns import (
    DESCRIPTION,
    FORMAT,
    HEADER,
    WEIGHT,
    ColumnEntry,
    SequenceEntry,
    is_prepared,
    local_copy,
    resolve_reference,
)
from weaver.prepared.node_cache import node_cache
from weaver.prepared.prepare import prepare
from weaver.read.files import SUFFIXES, WHOLE, Part, find
from weaver.read.jagged import cast_exactly

ObserverValues = Any
"""Values of an observer for N jets: a numpy array, or an awkward array of lists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """N jets, as the network and the loss take them."""

    inputs: dict[str, torch.Tensor]
    """Group, in the order of the data config -> (N, C, P) float32 for sequences, (N, C) for one
    value a jet ((N,) for one variable).
    """
    labels: dict[str, torch.Tensor]
    """Label -> (N,) or (N, k), in the type that its expression gave (float32 for a regression
    target, int64 for the number of a class).
    """
    observers: dict[str, ObserverValues]
    """Observer or monitor variable -> (N,) or (N, k), or an awkward array of N lists."""
    weights: torch.Tensor
    """(N,) float32: 1 without weights in the data config; 0 for padding of the batch."""

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.weights)

    def __getitem__(self, part: slice) -> Batch:
        """Return a slice of the jets, without copying."""
        return Batch(
            inputs={name: tensor[part] for name, tensor in self.inputs.items()},
            labels={name: tensor[part] for name, tensor in self.labels.items()},
            observers={name: values[part] for name, values in self.observers.items()},
            weights=self.weights[part],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpaddedBatch:
    """N jets copied from the columns, before padding; from `gather`."""

    sequences: dict[str, tuple[torch.Tensor | None, torch.Tensor]]
    """Group -> (runs of particles (N, P, C), number of them that belong to the jet (N,)). The runs
    are None if all particles of the data set have the same values.
    """
    flats: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    observers: dict[str, ObserverValues]
    weights: torch.Tensor

    def pin_memory(self) -> UnpaddedBatch:
        """Copy to page-locked memory, from which a GPU can copy while it computes."""
        return self.apply(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> UnpaddedBatch:
        """Copy to a device; from pinned memory without waiting."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> UnpaddedBatch:
        """Apply a function to each tensor."""
        sequences = {}
        for name, (rows, own) in self.sequences.items():
            sequences[name] = (None if rows is None else function(rows), function(own))
        return dataclasses.replace(
            self,
            sequences=sequences,
            flats={name: function(tensor) for name, tensor in self.flats.items()},
            labels={name: function(tensor) for name, tensor in self.labels.items()},
            weights=function(self.weights),
        )


class Dataset:
    """Prepared jets. Make one with `Dataset.open`."""

    def __init__(
        self, folder: Path, description: Mapping[str, Any], data_config: DataConfig
    ) -> None:
        """Use `Dataset.open`, which prepares the data if necessary."""
        self.folder = folder
        self.description = description
        """dataset.json: weaver.prepared.columns.Description."""
        self.data_config = data_config.with_derived_parameters(description)
        """The data config with the standardisation of the data; an exported network must apply the
        same one.
        """
        self._columns: dict[str, np.ndarray] = {}
        self._read_ahead: list[_ReadAhead] | None = None
        self._observers: dict[str, ObserverValues] = {}
        for name, entry in description["columns"].items():
            self._columns[name] = _map(folder, entry)
            if name.startswith("observer."):
                self._observers[name.removeprefix("observer.")] = self._columns[name]
        for name, lists in description.get("list_observers", {}).items():
            self._observers[name] = _lists(folder, lists)
        self._sequences: dict[str, _Sequence] = {}
        for group, sequence in description["sequences"].items():
            self._sequences[group] = _Sequence(folder, sequence, self.data_config, group)

    @classmethod
    def open(
        cls,
        source: str | list[str] | list[storage.Entry],
        data_config: DataConfig,
        *,
        cache_dir: str | None = None,
        for_training: bool = True,
        validation: bool = False,
        copy: bool = False,
        part: Part = WHOLE,
        most_files: int | None = None,
    ) -> Dataset:
        """Open prepared data.

        source: a prepared folder, a reference file (`{"dataset": <prepared folder>}`), or data
        files (patterns or entries), which are first prepared into `cache_dir`. for_training,
        validation: their role (weaver/prepared/prepare.py). Data in a remote storage, and with
        `copy` also data on a shared disk, is copied once to this node's cache (`cache_dir`, or
        JEC_CACHE, or a folder for temporary files). part: range of each data file's jets to
        prepare. most_files: use only the first matching data files, sorted.

        Raises InputError if there is no such data, or it was prepared with another data config.
        """
        cache = Path(cache_dir) if cache_dir else None
        if isinstance(source, list) and len(source) == 1 and isinstance(source[0], str):
            source = source[0]
        if isinstance(source, str) and source.endswith(".json"):
            content = storage.read_json(source)
            if not isinstance(content, dict) or not isinstance(content.get("dataset"), str):
                raise InputError(
                    f'{source} refers to no data: expected {{"dataset": "<prepared folder>"}}'
                )
            if part != WHOLE:
                raise _cannot_be_split(source)
            uri = resolve_reference(source, content["dataset"])
            if not is_prepared(uri):
                raise InputError(
                    f"{source} refers to {uri}, where there is no prepared data; prepare it again"
                )
        elif uri := prepared_folder(source):
            if part != WHOLE:
                raise _cannot_be_split(uri)
        else:
            files = source if most_files is None else _first_files(_texts(source), most_files)
            uri = prepare(
                files,
                data_config,
                str(cache or node_cache()),
                for_training=for_training,
                validation=validation,
                part=part,
            ).uri
        folder = local_copy(uri, cache, always=copy)
        description = storage.read_json(str(folder / DESCRIPTION))
        _check(uri, description, data_config)
        return cls(folder, description, data_config)

    def __len__(self) -> int:
        """Return the number of jets."""
        return self.description["num_jets"]

    @property
    def nbytes(self) -> int:
        """Number of bytes of the columns from which batches are made."""
        sequences = sum(sequence.nbytes for sequence in self._sequences.values())
        return sequences + sum(column.nbytes for column in self._columns.values())

    def batch(self, index: np.ndarray, device: str | torch.device = "cpu") -> Batch:
        """Return the jets at these positions as tensors.

        Args:
            index: (n,) int64, in any order, with repeats.
            device: of the tensors.

        Raises:
            IndexError: a position is below 0 or not below len(self).
        """
        return self.finish(self.gather(index), device)

    def gather(self, index: np.ndarray) -> UnpaddedBatch:
        """Return the first step of `batch`: copy from the columns, on the CPU.

        index: positions of jets (N,), int64. numpy releases Python's lock meanwhile, so that this
        may run in a thread. Raises IndexError for a position that does not exist.
        """
        index = np.ascontiguousarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"jets are numbered 0 to {len(self) - 1}, asked for {index.min()} to {index.max()}"
            )
        sequences = {}
        flats = {}
        for group in self.data_config.input_names:
            if group in self._sequences:
                sequences[group] = self._sequences[group].gather(index)
            else:
                flats[group] = torch.from_numpy(self._columns[group][index])

        labels = {}
        for name in self.data_config.label_names:
            numbers = self._columns[f"label.{name}"][index]
            if numbers.dtype.kind == "u":  # torch has few operations for unsigned numbers
                numbers = cast_exactly(numbers, np.dtype(np.int64), name, str(self.folder))
            labels[name] = torch.from_numpy(numbers)

        weights = self._columns.get(WEIGHT)
        return UnpaddedBatch(
            sequences=sequences,
            flats=flats,
            labels=labels,
            observers={name: values[index] for name, values in self._observers.items()},
            weights=torch.ones(len(index)) if weights is None else torch.from_numpy(weights[index]),
        )

    def finish(self, unpadded: UnpaddedBatch, device: str | torch.device = "cpu") -> Batch:
        """Return the second step of `batch`: copy to the device and pad."""
        device = torch.device(device)
        on_device = unpadded if device.type == "cpu" else unpadded.to(device)
        inputs = {}
        for group in self.data_config.input_names:
            if group in on_device.sequences:
                inputs[group] = self._sequences[group].pad(*on_device.sequences[group])
            else:
                inputs[group] = on_device.flats[group]
        return Batch(
            inputs=inputs,
            labels=on_device.labels,
            observers=on_device.observers,
            weights=on_device.weights,
        )

    def read_ahead(self, start: int, stop: int) -> None:
        """Tell the operating system that the jets `start` to `stop` will be used soon.

        It then reads them at once, and reads no neighbouring data.
        """
        if self._read_ahead is None:
            self._read_ahead = [_ReadAhead(column) for column in self._columns.values()]
        for column in self._read_ahead:
            column.will_need(start, stop)
        for sequence in self._sequences.values():
            sequence.read_ahead(start, stop)

    def observers(self) -> dict[str, ObserverValues]:
        """Return observers and monitor variables of all jets: name -> values, mapped into memory.

        The values are (N,) or (N, k), or an awkward array of N lists.
        """
        return dict(self._observers)

    def label(self, name: str) -> np.ndarray:
        """Return a label of all jets, (N,) or (N, k). Raises InputError for an unknown label."""
        if name not in self.data_config.label_names:
            raise InputError(
                f"there is no label '{name}'; there are: {', '.join(self.data_config.label_names)}"
            )
        return self._columns[f"label.{name}"]

    def weights(self) -> np.ndarray:
        """Return the weights of all jets, (N,) float32; 1 without weights in the data config."""
        weights = self._columns.get(WEIGHT)
        return np.ones(len(self), np.float32) if weights is None else weights

    def multiplicity(self, group: str | None = None) -> np.ndarray:
        """Return the number of particles of each jet, at most the group's length, (N,) int64.

        group: default: the data config's first group of particles; 0 without any.
        """
        if not self._sequences:
            return np.zeros(len(self), np.int64)
        return np.diff(self._sequences[group or next(iter(self._sequences))].offsets)


class _Sequence:
    """One group of variables with several particles a jet."""

    def __init__(self, folder: Path, entry: SequenceEntry, config: DataConfig, group: str) -> None:
        params = [config.preprocess_params[name] for name in config.input_dicts[group]]
        length = params[0]["length"]
        if length is None:
            raise InputError(f"{folder}: '{group}' is stored as particles; prepare it again")
        self.length: int = length
        self.wraps = params[0]["pad_mode"] == "wrap"
        # A wrapped jet without particles is all zero, as in weaver-core.
        self._pads = _PerDevice([0.0 if self.wraps else p["pad_value"] for p in params])
        self.offsets = _map(folder, entry["offsets"])
        self.values: np.ndarray | None = None
        self._read_ahead: tuple[_ReadAhead, _ReadAhead] | None = None
        if "values" in entry:
            self.values = _map(folder, entry["values"])
            self._runs = _Runs(self.values, length)
        else:
            self._constant = _PerDevice(entry["constant"])

    @property
    def nbytes(self) -> int:
        return self.offsets.nbytes + (0 if self.values is None else self.values.nbytes)

    def gather(self, index: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return runs of particles (N, P, C) of the jets `index`, and the number to keep of each.

        The runs are None if all particles have the same values.
        """
        start = self.offsets[index]
        count = self.offsets[index + 1] - start
        num_kept = np.where(count > 0, self.length, 0) if self.wraps else count
        if self.values is None:
            return None, torch.from_numpy(num_kept)
        if not self.wraps or not len(self.values):
            return torch.from_numpy(self._runs.take(start)), torch.from_numpy(num_kept)
        # (N, P): the jet's particles, repeated
        places = start[:, None] + np.arange(self.length) % np.maximum(count, 1)[:, None]
        # for a jet without particles the place has no meaning, and may be beyond the end
        rows = self.values.take(places.ravel(), axis=0, mode="clip")  # (N * P, C)
        rows = rows.reshape(len(index), self.length, self.values.shape[1])
        return torch.from_numpy(rows), torch.from_numpy(num_kept)

    def pad(self, rows: torch.Tensor | None, num_kept: torch.Tensor) -> torch.Tensor:
        """Turn (N, P, C) and (N,) into (N, C, P), with the pad value after the kept particles."""
        pad = self._pads.on(num_kept.device)
        if rows is None:
            rows = self._constant.on(num_kept.device).expand(len(num_kept), self.length, -1)
        # (N, P): true in the places of particles
        real = torch.arange(self.length, device=num_kept.device) < num_kept[:, None]
        result = torch.empty((len(num_kept), len(pad), self.length), device=num_kept.device)
        return torch.where(real[:, None, :], rows.transpose(1, 2), pad[:, None], out=result)

    def read_ahead(self, start: int, stop: int) -> None:
        """See Dataset.read_ahead."""
        if self._read_ahead is None:
            self._read_ahead = _ReadAhead(self.offsets), _ReadAhead(self.values)
        of_offsets, of_values = self._read_ahead
        of_offsets.will_need(start, stop + 1)
        of_values.will_need(int(self.offsets[start]), int(self.offsets[stop]))


class _Runs:
    """Take runs of `length` consecutive rows from (rows, C) values.

    Copying a run at once is faster than gathering its rows.
    """

    def __init__(self, values: np.ndarray, length: int) -> None:
        channels = values.shape[1]
        self.shape = (length, channels)
        self.last = max(len(values) - length, 0)
        """The last row at which a complete run starts."""
        # for runs that extend beyond the end
        self.tail = np.zeros((2 * length, channels), values.dtype)
        self.tail[: len(values) - self.last] = values[self.last :]
        if len(values) < length:
            values = self.tail
        # (rows, length * C): row i is the run that starts at i; rows overlap in memory
        size = values.dtype.itemsize
        self.inner = np.lib.stride_tricks.as_strided(
            values,
            shape=(self.last + 1, length * channels),
            strides=(channels * size, size),
            writeable=False,
        )

    def take(self, start: np.ndarray) -> np.ndarray:
        """Turn (N,) into (N, length, C), with 0 beyond the end of the values."""
        runs = self.inner[np.minimum(start, self.last)].reshape(len(start), *self.shape)
        # at most the last `length` jets of the data set
        for index in np.flatnonzero(start > self.last):
            first = start[index] - self.last
            runs[index] = self.tail[first : first + self.shape[0]]
        return runs


class _PerDevice:
    """A few float32 numbers, copied to each device once.

    Copying them again with each batch would make the GPU wait.
    """

    def __init__(self, values: list[float]) -> None:
        self._on = {torch.device("cpu"): torch.tensor(values, dtype=torch.float32)}

    def on(self, device: torch.device) -> torch.Tensor:
        """Return the numbers as a tensor on this device."""
        if device not in self._on:
            self._on[device] = self._on[torch.device("cpu")].to(device)
        return self._on[device]


class _ReadAhead:
    """Tell the operating system which rows of a mapped column will be read.

    Otherwise each access also reads neighbouring data, by the disk's read-ahead: on some disks
    8 MiB for a jet of 2 kB. This has no effect on systems without madvise (macOS), and for columns
    in memory.
    """

    def __init__(self, column: np.ndarray | None) -> None:
        self._map: mmap.mmap | None = None
        if column is None or not len(column) or not hasattr(mmap, "MADV_RANDOM"):
            return
        self._map = _mapping(column)
        self._row = column.nbytes // len(column)
        if self._map is not None:
            self._map.madvise(mmap.MADV_RANDOM)

    def will_need(self, start: int, stop: int) -> None:
        """Request the rows `start` to `stop`, without waiting for them."""
        if self._map is None:
            return
        # The rows follow the header, and madvise needs the address of a page.
        first = (HEADER + start * self._row) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(HEADER + stop * self._row, len(self._map))
        if last > first:
            self._map.madvise(mmap.MADV_WILLNEED, first, last - first)


def _mapping(column: np.ndarray) -> mmap.mmap | None:
    """Return the mmap of which an array is a view; None for an array in memory."""
    owner: Any = column
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    return owner


def prepared_folder(source: str | list[str] | list[storage.Entry]) -> str:
    """Return the address of prepared data if the source is one; empty for data files."""
    patterns = parse_patterns(_texts(source))
    if len(patterns) != 1 or has_wildcard(patterns[0].text):
        return ""
    text = patterns[0].text
    return text if not text.endswith(SUFFIXES) and is_prepared(text) else ""


def _texts(source: str | list[str] | list[storage.Entry]) -> list[str]:
    """Return the patterns of a source of data; empty for entries of files."""
    if isinstance(source, str):
        return [source]
    return [text for text in source if isinstance(text, str)]


def _first_files(patterns: list[str], most: int) -> list[storage.Entry]:
    """Return the first `most` matching files, in the order of weaver-core's --demo.

    Files of one sample (`name:pattern`) are sorted; samples are in the order of their first
    appearance.
    """
    samples: dict[str, list[str]] = {}
    for pattern in parse_patterns(patterns):
        samples.setdefault(pattern.sample, []).append(pattern.without_sample)
    entries: dict[tuple[str, str], storage.Entry] = {}
    for parts in samples.values():
        for entry in sorted(find(parts), key=lambda entry: entry.uri):
            entries.setdefault((entry.uri, entry.tree), entry)
    return list(entries.values())[:most]


def _cannot_be_split(source: str) -> InputError:
    return InputError(
        f"{source} is prepared data, which --train-val-split cannot divide; give other data for the"
        " validation with --data-val"
    )


def _check(source: str, description: Mapping[str, Any], config: DataConfig) -> None:
    if description.get("format") != FORMAT:
        raise InputError(
            f"{source} has format {description.get('format')}, but this program reads format"
            f" {FORMAT}; prepare it again"
        )
    if description["config"] != config.digest() and "derived" in config.selections:
        raise InputError(
            f"{source} is prepared data, to which no selection can be added; give the data files,"
            " or leave --extra-selection-* and --cross-validation out"
        )
    if description["config"] != config.digest():
        raise InputError(
            f"{source} was prepared with another data config than {config.source}; prepare it with"
            " this one"
        )


def _lists(folder: Path, entry: SequenceEntry) -> ObserverValues:
    """Open an observer with a list for each jet, as an awkward array over mapped columns."""
    import awkward as ak

    offsets = ak.index.Index64(np.asarray(_map(folder, entry["offsets"])))
    content = ak.contents.NumpyArray(_map(folder, entry["values"]))
    return ak.Array(ak.contents.ListOffsetArray(offsets, content))


def _map(folder: Path, entry: ColumnEntry) -> np.ndarray:
    """Map a column into memory, read-only. Raises InputError if it is missing or damaged."""
    shape = tuple(entry["shape"])
    path = folder / entry["file"]
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
