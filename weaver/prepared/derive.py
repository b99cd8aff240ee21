"""Derive the numbers of `preprocess: auto`: each variable's median and width in training data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from common import scratch
from common.errors import InputError
from common.progress import Progress
from weaver.config.data_config import DataConfig
from weaver.config.plan import Plan
from weaver.config.sections import Parameters
from weaver.prepared import transform
from weaver.prepared.quantiles import percentiles
from weaver.read.files import DataFile, Step

QUANTILES = (16, 50, 84)
# values of one variable that are sorted in memory; of more, the quantiles are counted out
IN_MEMORY_BYTES = 2**27
PIECE = 2**20  # values read at a time

Steps = Callable[[DataFile, Plan, int], Iterator[Step]]
"""(file, plan, stop entry) -> the file's columns, step by step."""

Parts = list[tuple[np.dtype, int]]
"""(type, number of values) of consecutive parts of a file."""


def derive_params(files: list[DataFile], config: DataConfig, steps: Steps) -> dict[str, Parameters]:
    """Return the parameters of all input variables, with the missing ones derived from the files.

    As in weaver-core, they are computed from the first `data_fraction` of each file's jets: center
    = median and scale = 1 / max(q84 - median, median - q16) over all particles of the selected
    jets, where 0 replaces NaN, and scale is 1 if that difference is 0. A variable whose name ends
    in _mask is not standardised.

    Raises InputError if no jet passes the selection, or a variable has no value.
    """
    names = [name for name in config.missing_preprocess_params if not name.endswith("_mask")]
    params = {name: values.copy() for name, values in config.preprocess_params.items()}
    with scratch.folder("jec-standardise-") as folder:
        # One file for each variable, because the values of all variables may not fit in memory.
        paths = {name: folder / str(index) for index, name in enumerate(names)}
        types = _collect(files, config, paths, steps)
        for name in config.missing_preprocess_params:
            if name.endswith("_mask"):
                params[name]["center"] = None
                continue
            center, scale = _center_and_scale(paths[name], types[name], name, config)
            params[name]["center"] = center
            params[name]["scale"] = scale
    return params


def _collect(
    files: list[DataFile], config: DataConfig, paths: Mapping[str, Path], steps: Steps
) -> dict[str, Parts]:
    """Write the flat values of each variable to its file; returns the parts of each file."""
    plan = config.plan_to_derive(paths)
    fraction = config.preprocess["data_fraction"]
    stops = [max(math.trunc(fraction * file.num_entries), 1) for file in files]
    types: dict[str, Parts] = {}
    with Progress("deriving the standardisation", total=sum(stops), unit="jets") as progress:
        for file, stop in zip(files, stops, strict=True):
            for columns, count in steps(file, plan, stop):
                selected_columns, num_passed = transform.select(columns, plan)
                for name, path in paths.items() if num_passed else ():
                    values, _ = transform.flatten(selected_columns[name], name, config.source)
                    parts = types.setdefault(name, [])
                    if not parts or parts[-1][0] != values.dtype:
                        parts.append((values.dtype, 0))
                    parts[-1] = (values.dtype, parts[-1][1] + len(values))
                    with open(path, "ab") as values_file:
                        values.tofile(values_file)
                progress.advance(count)
    if not types and paths:
        raise InputError(
            f"{config.source}: no jet in the first {fraction:.0%} of the files passes the"
            " selection; make it wider"
        )
    return types


def _center_and_scale(
    path: Path, parts: Parts, name: str, config: DataConfig
) -> tuple[float, float]:
    count = sum(number for _, number in parts)
    if not count:
        raise InputError(
            f"{config.source}: preprocess: auto: no training jet has a value of '{name}'; remove"
            " the variable, or make the selection wider"
        )
    common = np.result_type(*(dtype for dtype, _ in parts))
    # np.percentile subtracts, which true and false do not
    dtype = np.dtype(np.float32) if common.kind == "b" else common
    if count * dtype.itemsize <= IN_MEMORY_BYTES:
        values = np.concatenate(list(_pieces(path, parts, dtype)))
        if np.isnan(values).any():
            values = np.nan_to_num(values)
        low, center, high = np.percentile(values, QUANTILES)
    else:
        has_nan = any(np.isnan(piece).any() for piece in _pieces(path, parts, dtype))

        def pieces() -> Iterator[np.ndarray]:
            for piece in _pieces(path, parts, dtype):
                yield np.nan_to_num(piece) if has_nan else piece

        low, center, high = percentiles(pieces, dtype, count, QUANTILES)
    width = max(high - center, center - low)
    return float(center), float(1 if width == 0 else 1.0 / width)


def _pieces(path: Path, parts: Parts, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the values in a file, as a type that holds those of all its parts."""
    with open(path, "rb") as file:
        for own, count in parts:
            for start in range(0, count, PIECE):
                values = np.fromfile(file, own, min(PIECE, count - start))
                yield values.astype(dtype, copy=False)
