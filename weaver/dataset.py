"""Prepared data as tensors: columns mapped into memory, batches gathered from them for any choice of jets.

A batch is made of whole-array operations: the jets' offsets give the positions of their particles, one gather fetches these, and
what lies beyond a jet's last particle is replaced by the pad value. The columns are mapped, not read: all processes of a node
share one copy in the page cache, and data larger than memory works as well, at the speed of the disk.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import storage
from common.errors import InputError
from weaver.columns import DESCRIPTION, FORMAT, is_prepared, local_copy, node_cache
from weaver.data_config import DataConfig
from weaver.prepare import prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """N jets as a network and a loss take them."""

    inputs: dict[str, torch.Tensor]
    """Group, in the order of the data config -> (N, C, P) float32 for sequences, (N, C) for one value a jet ((N,) for one variable)."""
    labels: dict[str, torch.Tensor]
    """Label -> (N,), in the type that its expression gave (float32 for a regression target, int64 for the number of a class)."""
    observers: dict[str, np.ndarray]
    """Observer or monitor variable -> (N,)."""
    weights: torch.Tensor
    """(N,) float32: 1 without weights in the data config; 0 for jets that only fill up a batch."""

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with its tensors on another device (without waiting, where the memory is pinned)."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, function) -> Batch:
        return dataclasses.replace(
            self,
            inputs={name: function(tensor) for name, tensor in self.inputs.items()},
            labels={name: function(tensor) for name, tensor in self.labels.items()},
            weights=function(self.weights),
        )


class Dataset:
    """Prepared jets. Make one with `Dataset.open`."""

    def __init__(self, folder: Path, description: dict[str, Any], data_config: DataConfig) -> None:
        self.folder, self.description = folder, description
        self.data_config = data_config.with_derived(description)
        """The data config with the standardisation that was used; what is exported with a network must apply the same."""
        self._columns = {name: _map(folder, entry) for name, entry in description["columns"].items()}
        self._sequences = {group: _Sequence(folder, entry, self.data_config, group) for group, entry in description["sequences"].items()}

    @classmethod
    def open(
        cls, source: str, data_config: DataConfig, *, cache_dir: str | None = None, for_training: bool = True, validation: bool = False
    ) -> Dataset:
        """Open prepared data.

        source: a prepared folder, a reference file (`{"dataset": <prepared folder>}`), or patterns of ROOT files, which are first
        prepared into `cache_dir`, in the role that `for_training` and `validation` say (weaver/prepare.py). Data on S3 is copied
        once to this node's cache (`cache_dir`, or JEC_CACHE, or a folder for temporary files).

        Raises InputError where there is no such data, or it was prepared with another data config.
        """
        cache = Path(cache_dir) if cache_dir else node_cache()
        if source.endswith(".json"):
            source = _referred(source)
        elif not is_prepared(source):
            source = prepare(source, data_config, str(cache), for_training=for_training, validation=validation).uri
        folder = local_copy(source, cache)
        description = storage.read_json(str(folder / DESCRIPTION))
        _check(source, description, data_config)
        return cls(folder, description, data_config)

    def __len__(self) -> int:
        return self.description["num_jets"]

    def batch(self, index: np.ndarray, device: str | torch.device | None = None) -> Batch:
        """The jets at these positions (int64, any order, repeats allowed) as tensors, on `device` if one is given."""
        index = np.ascontiguousarray(index, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"jets are numbered 0 to {len(self) - 1}, asked for {index.min()} to {index.max()}")
        places: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}  # groups of equal offsets and length share their positions
        made = {
            group: self._sequences[group].gather(index, places) if group in self._sequences else self._columns[group][index]
            for group in self.data_config.input_names
        }
        batch = Batch(
            inputs={group: torch.from_numpy(values) for group, values in made.items()},
            labels={name: _tensor(self._columns[f"label.{name}"][index]) for name in self.data_config.label_names},
            observers={name: values[index] for name, values in self._observed().items()},
            weights=torch.from_numpy(self._columns["weight"][index]) if "weight" in self._columns else torch.ones(len(index)),
        )
        return batch if device is None else batch.to(device)

    def observers(self) -> dict[str, np.ndarray]:
        """All observers and monitor variables of all jets, (N,) each, mapped into memory."""
        return dict(self._observed())

    def label(self, name: str) -> np.ndarray:
        """One label of all jets, (N,)."""
        if name not in self.data_config.label_names:
            raise InputError(f"there is no label '{name}'; there are: {', '.join(self.data_config.label_names)}")
        return self._columns[f"label.{name}"]

    def multiplicity(self, group: str | None = None) -> np.ndarray:
        """Particles of each jet, cut to the length, (N,) int64: of the given sequence group, or of the config's first one."""
        if not self._sequences:
            return np.zeros(len(self), np.int64)
        return np.diff(self._sequences[group or next(iter(self._sequences))].offsets)

    def _observed(self) -> dict[str, np.ndarray]:
        return {name.removeprefix("observer."): values for name, values in self._columns.items() if name.startswith("observer.")}


class _Sequence:
    """One group of variables with several particles a jet."""

    def __init__(self, folder: Path, entry: dict[str, Any], config: DataConfig, group: str) -> None:
        params = [config.preprocess_params[name] for name in config.input_dicts[group]]
        self.offsets = _map(folder, entry["offsets"])
        self.offsets_file = entry["offsets"]["file"]
        self.values = _map(folder, entry["values"]) if "values" in entry else None
        self.constant = np.asarray(entry.get("constant", ()), np.float32)
        self.length: int = params[0]["length"]
        self.wraps = params[0]["pad_mode"] == "wrap"
        self.pad = np.asarray([p["pad_value"] for p in params], np.float32)

    def gather(self, index: np.ndarray, places: dict[tuple, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """(N, C, P) float32 of the jets at `index`; `places` keeps positions for the groups that come after."""
        key = (self.offsets_file, self.length, self.wraps)
        if key not in places:
            places[key] = self._places(index)
        positions, missing = places[key]
        pad = np.zeros_like(self.pad) if self.wraps else self.pad  # a wrapped jet without particles is all zero, as in weaver-core
        if self.values is None:
            return np.where(missing[:, None, :], pad[:, None], self.constant[:, None])
        if not len(self.values):
            return np.ascontiguousarray(np.broadcast_to(pad[:, None], (len(index), len(pad), self.length)))
        rows = self.values.take(positions.ravel(), axis=0, mode="clip").reshape(len(index), self.length, len(self.pad))
        rows[missing] = pad
        return np.ascontiguousarray(rows.transpose(0, 2, 1))

    def _places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, P) positions in the flat values, and where there is no particle (the position there means nothing)."""
        start = self.offsets[index][:, None]
        count = self.offsets[index + 1][:, None] - start
        slots = np.arange(self.length)
        if self.wraps:
            return start + slots % np.maximum(count, 1), np.broadcast_to(count == 0, (len(index), self.length))
        return start + slots, slots >= count


def _referred(uri: str) -> str:
    content = storage.read_json(uri)
    if not isinstance(content, dict) or not isinstance(content.get("dataset"), str):
        raise InputError(f'{uri} refers to no data: expected {{"dataset": "<prepared folder>"}}')
    if not is_prepared(content["dataset"]):
        raise InputError(f"{uri} refers to {content['dataset']}, where there is no prepared data; prepare it again")
    return content["dataset"]


def _check(source: str, description: dict[str, Any], config: DataConfig) -> None:
    if description.get("format") != FORMAT:
        raise InputError(f"{source} has form {description.get('format')}, this program reads form {FORMAT}; prepare it again")
    if description["config"] != config.digest():
        raise InputError(f"{source} was prepared with another data config than {config.source}; prepare it with this one")


def _map(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """A column mapped into memory: read from disk where touched, and never written back."""
    shape, path = tuple(entry["shape"]), folder / entry["file"]
    if 0 in shape:
        return np.empty(shape, entry["dtype"])
    try:
        column = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); delete {folder} and prepare it again") from None
    if column.shape != shape or column.dtype.str != entry["dtype"]:
        raise InputError(f"{path} is not what {DESCRIPTION} says ({column.dtype.str}{column.shape}); delete {folder} and prepare it again")
    return column.view(np.ndarray)  # without np.memmap's own indexing, which is slower


def _tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor of these numbers; unsigned ones, for which torch has few operations, become int64."""
    return torch.from_numpy(values.astype(np.int64) if values.dtype.kind == "u" else values)
