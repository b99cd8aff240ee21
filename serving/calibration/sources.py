"""The files to calibrate: jets (JetNtuple), or events with jets and candidates (PFNano).

    source = open_source(entry, description)     # InputError if the model cannot calibrate it
    for load in source.loads():
        for columns, count in load():
            step = source.step(columns, count)

Files are read by weaver/read, and the jets of PFNano are built by data/from_nanoaod.py, as in the
training, but without a selection and without generator information.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from common.errors import InputError
from common.storage import Entry
from data import from_nanoaod, jetntuple
from serving.calibration import kinds
from serving.calibration.kinds import JetKind
from serving.calibration.model import Description
from weaver.config.data_config import DataConfig
from weaver.config.plan import Plan
from weaver.read import files
from weaver.read.files import DataFile, Load
from weaver.read.jagged import Columns, JaggedColumn, Lists, plain, to_awkward
from weaver.read.opening import open_file
from weaver.read.remote import Readers

NTUPLE, PFNANO = "JetNtuple", "PFNano"
EVENTS = from_nanoaod.TREE
# bytes of columns in a step: enough jets to sort, few enough that all cores finish together
STEP_BYTES = 8 * 2**20
OF_NTUPLE = ("run", "lumi", "event", "jetPtOrder")
OF_EVENTS = ("run", "luminosityBlock", "event")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Consecutive entries of a file."""

    entries: int
    jets: int
    per_entry: np.ndarray | None
    """Number of jets of each entry, (entries,); None if an entry is a jet."""
    columns: Columns
    """Input columns of the model for all jets, in the order of the file."""
    identity: dict[str, np.ndarray]
    """Columns that identify the entries, (entries,) each."""


class Source(Protocol):
    """A checked file."""

    form: str
    """NTUPLE or PFNANO."""
    file: DataFile
    kind: JetKind
    identity: dict[str, np.dtype]
    """Types of the columns that identify entries."""

    def loads(self, readers: Readers | None = None) -> Iterator[Load]:
        """Return the steps of the file, as weaver.read.files.loads does."""
        ...

    def step(self, columns: Columns, count: int) -> Step:
        """Return the jets of a load: columns of `count` entries by name."""
        ...


def open_source(entry: Entry, description: Description) -> Source:
    """Check one file without decoding it, and find its form.

    Raises:
        DamagedFile: If it cannot be read.
        InputError: If it lacks an input of the model.
    """
    refusal: InputError
    try:
        ntuple = _read_plan(entry, description.treename, description.inputs, OF_NTUPLE)
        if set(description.inputs) <= ntuple.file.columns:
            return Ntuple(ntuple, description)
        missing = [name for name in description.inputs if name not in ntuple.file.columns]
        refusal = files.missing_branches(missing, ntuple.file, ntuple.config, ntuple.plan)
    except InputError as error:
        refusal = error
    events = None
    with contextlib.suppress(InputError):  # the first error is more useful
        events = _events_tree(entry)
    if events is None:
        raise refusal
    return Nano(entry, description, *events)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A file with the plan of what to read from it."""

    file: DataFile
    config: DataConfig
    plan: Plan

    def loads(self, readers: Readers | None) -> Iterator[Load]:
        if not self.file.num_entries:
            return iter(())
        return files.loads(
            self.file,
            self.config,
            self.plan,
            training_set=False,
            step_bytes=STEP_BYTES,
            readers=readers,
        )

    def head(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return these columns for the first entry, if the file has them; none if it is empty."""
        branches = {name: name for name in names if name in self.file.columns}
        if not branches or not self.file.num_entries:
            return {}
        plan = dataclasses.replace(self.plan, branches=branches)
        for load in files.loads(self.file, self.config, plan, training_set=False, stop=1):
            for columns, _ in load():
                identity = {name: _identity_column(columns[name]) for name in branches}
                return {name: values for name, values in identity.items() if values is not None}
        return {}


def _identity_column(values: Any) -> np.ndarray | None:
    """Return a column that identifies entries, (entries,).

    None if it is not one number per entry, of a type that both output formats have.
    """
    if not isinstance(values, np.ndarray | JaggedColumn):
        values = plain(values)
    is_number = isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf"
    return values if is_number and values.dtype != np.float16 else None


def _identity(
    columns: Mapping[str, Any], types: Mapping[str, np.dtype], uri: str
) -> dict[str, np.ndarray]:
    """Return the columns that identify these entries.

    Raises:
        InputError: If one of them has another form than at the beginning of the file.
    """
    identity = {}
    for name in types:
        values = _identity_column(columns[name])
        if values is None:
            raise InputError(f"{uri}: '{name}' must have one number for each entry")
        identity[name] = values
    return identity


def _kind_of_run(head: Mapping[str, np.ndarray]) -> JetKind:
    is_whole = "run" in head and head["run"].dtype.kind in "iu"
    return kinds.of_run(int(head["run"][0])) if is_whole else JetKind()


def _read_plan(
    entry: Entry, treename: str | None, required: Iterable[str], optional: tuple[str, ...]
) -> _Reading:
    """Inspect a file for these branches; missing optional ones are left out."""
    names = list(dict.fromkeys([*required, *optional]))
    reading = _inspect(entry, treename, names)
    present = [name for name in names if name in reading.file.columns or name not in optional]
    # again, because files with all requested branches are decoded faster
    return reading if present == names else _inspect(entry, treename, present)


def _inspect(entry: Entry, treename: str | None, names: list[str]) -> _Reading:
    options = {
        "treename": treename,
        "inputs": {"columns": {"length": None, "vars": names}},
        "labels": {"type": "custom", "value": {"none": "1"}},
    }
    config = DataConfig.from_options(options, "the model")
    plan = config.plan_for(names)
    return _Reading(files.inspect(entry, config, plan), config, plan)


class Ntuple:
    """A file with the columns of the model, one jet per entry."""

    form = NTUPLE

    def __init__(self, reading: _Reading, description: Description) -> None:
        """Check the file against the model's inputs. Raises InputError."""
        self.file = reading.file
        self._reading = reading
        self._inputs = description.inputs
        head = reading.head(OF_NTUPLE)
        self.identity = {name: values.dtype for name, values in head.items()}
        self.kind = kinds.combined(
            [
                _kind_of_run(head),
                kinds.of_path(self.file.entry.uri),
                JetKind(radius=kinds.of_title(self.file.tree).radius),
            ]
        )

    def loads(self, readers: Readers | None = None) -> Iterator[Load]:
        """Yield the parts in which the file is read."""
        return self._reading.loads(readers)

    def step(self, columns: Columns, count: int) -> Step:
        """Return the jets of a load: one for each of `count` entries of the columns."""
        identity = _identity(columns, self.identity, self.file.entry.uri)
        own = {name: columns[name] for name in self._inputs}
        return Step(entries=count, jets=count, per_entry=None, columns=own, identity=identity)


def _events_tree(entry: Entry) -> tuple[set[str], str] | None:
    """Return the branches of a file's events, and the title of nJet; None if it is not NanoAOD.

    Raises:
        InputError: If it is not a ROOT file.
    """
    with open_file(entry.uri) as file:
        trees = {key.partition(";")[0] for key in file.keys(recursive=False)}
        if EVENTS not in trees:
            return None
        tree = file[EVENTS]
        branches = set(tree.keys(recursive=False))
        if "Jet_pt" not in branches:
            return None
        title = "" if files.is_ntuple(tree) or "nJet" not in branches else tree["nJet"].title
        return branches, title


class Nano:
    """A file of events with jets and the particle-flow candidates around them."""

    form = PFNANO

    def __init__(
        self, entry: Entry, description: Description, branches: set[str], title: str
    ) -> None:
        """Check the file against the model's inputs. Raises InputError."""
        candidates = (*from_nanoaod.CANDIDATES, *from_nanoaod.LINKS)
        if any(column.counter for column in description.inputs.values()):
            absent = [name for name in candidates if name not in branches]
            if absent:
                raise InputError(
                    f"{entry.uri} is NanoAOD without particle-flow candidates (no"
                    f" {', '.join(absent[:3])}{', ...' if absent[3:] else ''}), of which the model"
                    f" {description.name} needs those around each jet; give PFNano"
                )
        names, missing = from_nanoaod.branches_for(description.inputs, branches)
        if missing:
            reasons = "; ".join(f"{column} ({why})" for column, why in missing.items())
            raise InputError(
                f"{entry.uri} is PFNano, of which some columns of the model {description.name}"
                f" cannot be made: {reasons}"
            )
        self._inputs = description.inputs
        self._reading = _read_plan(entry, EVENTS, names, ())
        self.file = self._reading.file
        head = self._reading.head(OF_EVENTS)
        self.identity = {name: values.dtype for name, values in head.items()}
        self.kind = kinds.combined(
            [_kind_of_run(head), kinds.of_path(entry.uri), kinds.of_title(title)]
        )

    def loads(self, readers: Readers | None = None) -> Iterator[Load]:
        """Yield the parts in which the file is read."""
        return self._reading.loads(readers)

    def step(self, columns: Columns, count: int) -> Step:
        """Return the jets of a load of `count` events, with the candidates around each jet."""
        arrays = {}
        for name in self._reading.plan.branches:
            values = columns[name]
            arrays[name] = values if isinstance(values, np.ndarray) else to_awkward(values)
        jet_columns, per_entry = from_nanoaod.columns_of_all(arrays)
        lists: dict[str, Lists] = {}  # counter -> where the particles of each jet lie
        own: Columns = {}
        for name in self._inputs:
            counter = jetntuple.BY_NAME[name].counter
            own[name] = jet_columns[name]
            if counter is not None:
                if counter not in lists:
                    counts = jet_columns[counter].astype(np.int64)
                    lists[counter] = Lists(np.cumsum(counts) - counts, counts)
                own[name] = JaggedColumn(jet_columns[name], lists[counter])
        identity = _identity(columns, self.identity, self.file.entry.uri)
        return Step(
            entries=count,
            jets=int(per_entry.sum()),
            per_entry=per_entry,
            columns=own,
            identity=identity,
        )
