"""The files that the calibration writes: friend trees, or parquet, with their origin.

    <output>/<name>.root      the tree `calibration` with one entry for each entry of the input, in
                              its order; and the text `calibration_info` (JSON, class FileInfo)
    <output>/<name>.parquet   the same columns; the text is in the metadata of the file
    <output>/calibration.json the model that all outputs of the folder come from (FolderRecord)

A file is written elsewhere and moved to its place when it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common import storage
from common.errors import InputError, JecError
from common.records import Record
from common.storage.local import explain
from serving.calibration.model import CALIBRATED_PT, CORRECTION, VALID, Description
from serving.calibration.sources import PFNANO, Source, Step
from weaver.read.opening import open_file, open_parquet

ROOT, PARQUET = "root", "parquet"
FORMATS = (ROOT, PARQUET)
TREE = "calibration"
INFO = "calibration_info"
RECORD = "calibration.json"
JETS = "Jet"  # NanoAOD's collection

NOTE = (
    "The correction is derived from simulation. In collision data Jet_pt contains the residual"
    " correction L2L3Residual, which the training never saw: the factor multiplies that pT all the"
    " same, and the scale of calibrated jets in data is yet to be measured."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderRecord(Record):
    """calibration.json: the model whose answers are in a folder of outputs."""

    model: str
    sha256: str
    """Digest of model.onnx, or of the description of a model on a server."""
    run_id: str
    label: str
    trained_on: dict[str, str]
    valid_range: dict[str, Any] | None
    """Range of pT (GeV) and |jetEta| of the training; None if the model has none."""
    note: str = NOTE


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileInfo(Record):
    """Origin and content of one output."""

    source: str
    source_size: int
    source_tag: str
    """Changes with the content of the source."""
    tree: str
    form: str
    """JetNtuple or PFNano."""
    entries: int
    jets: int
    valid: int
    invalid: dict[str, int]
    """Number of jets with the standard correction instead of the model's, by reason."""
    formula: str
    """The correction as a formula of columns."""
    model: str
    sha256: str
    run_id: str
    forced: list[str]
    """Why this model does not fit these jets, overruled with --force."""
    note: str = NOTE

    def is_of(self, source: Source | storage.Entry) -> bool:
        """Return whether the output was made from exactly this file."""
        entry = source if isinstance(source, storage.Entry) else source.file.entry
        same_file = (self.source, self.source_size, self.source_tag)
        return same_file == (entry.uri, entry.size, entry.tag)


def folder_record(description: Description) -> FolderRecord:
    """Return the record of the model for the output folder."""
    return FolderRecord(
        model=description.name,
        sha256=description.digest,
        run_id=description.run_id,
        label=description.label,
        trained_on=dict(description.facts),
        valid_range=None if description.limits is None else dataclasses.asdict(description.limits),
    )


# ---------------------------------------------------------------------------------------- columns


def column_names(description: Description, form: str) -> dict[str, str]:
    """Return the column of each output: Jet_pt_calibrated in PFNano, else jetPt_calibrated."""
    reference = description.reference if description.reference.isidentifier() else "jetPt"
    pt, valid = (f"{JETS}_pt", f"{JETS}_valid") if form == PFNANO else (reference, "jet_valid")
    names = {CALIBRATED_PT: f"{pt}_calibrated", CORRECTION: f"{pt}_correction", VALID: valid}
    for quantile in description.quantiles:
        names[f"{CALIBRATED_PT}_{quantile}"] = f"{pt}_calibrated_{quantile}"
    return {output: names[output] for output in description.outputs if output in names}


def formula(description: Description, form: str) -> str:
    """Return the correction as a formula of columns."""
    names = column_names(description, form)
    reference = description.reference or "the pT that the label divides by"
    if form == PFNANO:
        in_nano = {"jetPt": "Jet_pt", "jetRawPt": "Jet_pt * (1 - Jet_rawFactor)"}
        reference = in_nano.get(reference, reference)
    return f"{names[CALIBRATED_PT]} = {reference} * {names[CORRECTION]} (GeV)"


def types_of(description: Description, form: str) -> dict[str, np.dtype]:
    """Return the type of each column."""
    names = column_names(description, form)
    return {
        column: np.dtype(bool if output == VALID else np.float32)
        for output, column in names.items()
    }


# ---------------------------------------------------------------------------------------- writing


class Friend(Protocol):
    """A file that is being written."""

    def append(self, step: Step, columns: Mapping[str, np.ndarray]) -> None:
        """Add the entries of a step, with the outputs of its jets by column, (jets,)."""
        ...

    def finish(self, info: FileInfo) -> None:
        """Write the origin of the file, and close it."""
        ...


@contextlib.contextmanager
def writing(path: Path, source: Source, types: Mapping[str, np.dtype]) -> Iterator[Friend]:
    """Open a file on this machine for the friend of a source; its suffix gives the format.

    Raises:
        InputError: If the path is not writable.
        StorageError: If the disk fails.
    """
    kind = ParquetFriend if path.suffix == f".{PARQUET}" else RootFriend
    try:
        with kind(path, source, types) as friend:
            yield friend
    except OSError as error:
        raise explain(error, str(path), "write") from error


class RootFriend:
    """A friend tree in a ROOT file."""

    def __init__(self, path: Path, source: Source, types: Mapping[str, np.dtype]) -> None:
        """Create the file; `types` are those of the columns to write."""
        import uproot

        self._types = types
        self._identity = source.identity
        self._per_event = source.form == PFNANO
        # Level 1: float32 mantissas hardly compress at any level.
        self._file = uproot.recreate(path, compression=uproot.ZLIB(1))
        empty = {name: np.zeros(0, dtype) for name, dtype in types.items()}
        identity = {name: np.zeros(0, dtype) for name, dtype in self._identity.items()}
        data = self._data(identity, empty, np.zeros(0, np.int64))
        self._tree = self._file.mktree(
            TREE,
            {name: getattr(values, "dtype", None) or values.type for name, values in data.items()},
            title="calibrated pT of each jet",
            counter_name=lambda name: f"n{name}",
            field_name=lambda name, field: f"{name}_{field}",
        )

    def __enter__(self) -> RootFriend:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def _data(
        self,
        identity: Mapping[str, np.ndarray],
        columns: Mapping[str, np.ndarray],
        per_entry: np.ndarray | None,
    ) -> dict[str, Any]:
        """Return columns for uproot: for events, those of the jets as one record `Jet`."""
        if not self._per_event:
            return {**identity, **columns}
        import awkward as ak

        fields = {}
        for name, values in columns.items():
            fields[name.removeprefix(f"{JETS}_")] = ak.unflatten(values, per_entry)
        return {**identity, JETS: ak.zip(fields)}

    def append(self, step: Step, columns: Mapping[str, np.ndarray]) -> None:
        """Write the next entries: `columns` by name, (step.jets,) each, with one number a jet."""
        if step.entries:
            self._tree.extend(self._data(step.identity, columns, step.per_entry))

    def finish(self, info: FileInfo) -> None:
        """Write the origin of the file."""
        self._file[INFO] = json.dumps(info.as_json())


class ParquetFriend:
    """The same columns in a parquet file, lists where the entries are events."""

    def __init__(self, path: Path, source: Source, types: Mapping[str, np.dtype]) -> None:
        """Create the file; `types` are those of the columns to write."""
        import pyarrow
        import pyarrow.parquet

        self._identity = source.identity
        fields = [(name, pyarrow.from_numpy_dtype(dtype)) for name, dtype in self._identity.items()]
        for name, dtype in types.items():
            kind = pyarrow.from_numpy_dtype(dtype)
            fields.append((name, pyarrow.list_(kind) if source.form == PFNANO else kind))
        self._schema = pyarrow.schema(fields)
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._is_empty = True

    def __enter__(self) -> ParquetFriend:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._writer.close()

    def append(self, step: Step, columns: Mapping[str, np.ndarray]) -> None:
        """Write the next entries: `columns` by name, (step.jets,) each, with one number a jet."""
        import pyarrow

        arrays = {name: pyarrow.array(values) for name, values in step.identity.items()}
        for name, values in columns.items():
            arrays[name] = pyarrow.array(values)
            if step.per_entry is not None:
                offsets = np.zeros(step.entries + 1, np.int32)
                np.cumsum(step.per_entry, out=offsets[1:])
                arrays[name] = pyarrow.ListArray.from_arrays(offsets, arrays[name])
        self._writer.write_table(pyarrow.table(arrays, schema=self._schema))
        self._is_empty = False

    def finish(self, info: FileInfo) -> None:
        """Write the origin of the file."""
        if self._is_empty:  # awkward does not read a file without row groups
            self._writer.write_table(self._schema.empty_table())
        self._writer.add_key_value_metadata({INFO: json.dumps(info.as_json())})


def check_format(name: str) -> None:
    """Check that this machine can write the format.

    Raises:
        InputError: If a package is missing.
    """
    if name == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise InputError("--format parquet takes pyarrow; type: pip install pyarrow")


def read_info(uri: str) -> FileInfo | None:
    """Return the record in an output; None for a file that this command did not write."""
    text = None
    try:
        if uri.endswith(f".{PARQUET}"):
            with open_parquet(uri) as file:
                text = (file.metadata.metadata or {}).get(INFO.encode(), b"").decode()
        else:
            with open_file(uri) as file:
                text = str(file[INFO]) if INFO in file else ""
        return FileInfo.from_json(json.loads(text), uri) if text else None
    except (JecError, ValueError):
        return None
