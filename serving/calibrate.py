"""Calibrate files of jets: for each file a friend tree with the calibrated pT of every jet.

    python -m serving.calibrate 'data/*.root' --model runs/latest --output calibrated
    python -m serving.calibrate 'root://SERVER//store/*.root' --model NAME-raw/1/model.onnx \
        --output calibrated --format parquet
    python -m serving.calibrate 'data/*.root' --url http://127.0.0.1:8000 --output calibrated

FILES are JetNtuple files (one jet an entry) or PFNano (events with Jet_ and PFCands_ branches), of
simulation or of collisions: nothing that a generator knows is needed. Every entry of a file has one
in its output, in the same order. Jets that the model was not trained for keep the standard
correction, and their column `valid` is false. docs/calibrate.md explains the columns, and what the
correction means in collision data.

Killed at any moment, the same command goes on: outputs that are there from the same model and the
same files are kept.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from common import storage
from common.cli import Parser, require, run_main
from common.errors import ClusterError, InputError, JecError
from common.machine import cores

if TYPE_CHECKING:
    from common.storage import Entry
    from serving.calibration.model import Description, Model
    from serving.calibration.outputs import FileInfo
    from serving.calibration.sources import Source
    from serving.calibration.work import Task
    from weaver.read.opening import DamagedFile

FORMATS = ("root", "parquet")
CHECKERS = 8  # files that are opened at a time
LISTED = 5  # files that an error or a note names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, once all inputs are checked."""

    outputs: dict[str, str]
    """Input -> address of its output."""
    tasks: list[Task]
    kept: list[FileInfo]
    """Outputs of an earlier command that are still right."""
    damaged: list[DamagedFile]
    """Files that cannot be read."""
    warnings: list[str]
    not_compared: list[str]
    """Properties of the jets that the model or the files do not say."""


def outputs_of(uris: list[str], folder: str, ending: str) -> dict[str, str]:
    """Input -> address of its output. Raises InputError where an output would be an input."""
    from data.from_nanoaod import output_names

    names = output_names(uris)
    outputs = {uri: storage.join(folder, f"{name}.{ending}") for uri, name in names.items()}
    for uri, output in outputs.items():
        if output in outputs:
            raise InputError(
                f"the output of {uri} would replace the input file {output}; give another --output"
            )
    return outputs


def finished(entries: list[Entry], outputs: dict[str, str], digest: str) -> dict[str, FileInfo]:
    """Input -> what its output says, for outputs that need not be made again.

    Raises InputError where an output would replace a file that something else wrote.
    """
    from serving.calibration.outputs import read_info

    def look(entry: Entry) -> tuple[Entry, bool, FileInfo | None]:
        output = outputs[entry.uri]
        exists = storage.exists(output)
        return entry, exists, read_info(output) if exists else None

    kept = {}
    with ThreadPoolExecutor(CHECKERS) as pool:
        for entry, exists, info in pool.map(look, entries):
            output = outputs[entry.uri]
            if not exists:
                continue
            if info is None:
                raise InputError(
                    f"{output} would be replaced, and this command did not write it; give another"
                    " --output"
                )
            if info.sha256 != digest:
                raise InputError(_another_model(output, info.model, info.sha256))
            if info.source != entry.uri:
                raise InputError(
                    f"{output} holds the jets of {info.source}; give another --output for those of"
                    f" {entry.uri}"
                )
            if info.is_of(entry):
                kept[entry.uri] = info
    return kept


def check_not_doubled(folder: str, outputs: dict[str, str]) -> None:
    """Raise InputError where the folder has the jets of an input under another name already.

    An output has the name of its input, and with a second input of that name the folder's as well:
    x.root, and A_x.root beside B_x.root.
    """
    from serving.calibration.outputs import read_info

    stems = {storage.name(uri).rpartition(".")[0] for uri in outputs}
    planned = set(outputs.values())
    for entry in storage.entries(folder):
        stem, _, ending = storage.name(entry.uri).rpartition(".")
        alike = [one for one in stems if stem == one or stem.endswith(f"_{one}")]
        if entry.uri in planned or ending not in FORMATS or not alike:
            continue
        info = read_info(entry.uri)
        if info is not None and info.source in outputs:
            raise InputError(
                f"the jets of {info.source} are already in {entry.uri}, and would be in"
                f" {outputs[info.source]} as well; give another --output, or delete the former"
            )


def check_folder(folder: str, description: Description) -> None:
    """Raise InputError for a folder that holds the results of another model."""
    from serving.calibration.outputs import RECORD, FolderRecord

    uri = storage.join(folder, RECORD)
    record = FolderRecord.find(uri)
    if record is None or record.sha256 == description.digest:
        return
    if _is_alone(uri, folder):
        raise InputError(
            f"a command with another model ({record.model}, sha256 {record.sha256[:12]}...) has"
            f" begun to write to {folder}, and has no results yet: if it was killed, delete {uri}"
            " and repeat this command; if it is running, give another --output"
        )
    raise InputError(_another_model(folder, record.model, record.sha256))


def _another_model(place: str, model: str, digest: str) -> str:
    return (
        f"{place} holds results of another model ({model}, sha256 {digest[:12]}...); give another"
        " --output, or delete that folder"
    )


def open_all(
    entries: list[Entry], description: Description
) -> tuple[list[Source], list[DamagedFile]]:
    """Check all files: those that can be calibrated, and those that are damaged.

    Raises one InputError for all that lack what the model needs, and where all are damaged.
    """
    from serving.calibration.sources import open_source
    from weaver.read.files import combine_errors
    from weaver.read.opening import DamagedFile

    def check(entry: Entry) -> Source | InputError:
        try:
            return open_source(entry, description)
        except InputError as error:
            return error

    sources: list[Source] = []
    damaged: list[DamagedFile] = []
    refusals: list[InputError] = []
    with ThreadPoolExecutor(CHECKERS) as pool:
        for result in pool.map(check, entries):
            if isinstance(result, DamagedFile):
                damaged.append(result)
            elif isinstance(result, InputError):
                refusals.append(result)
            else:
                sources.append(result)
    if damaged and not sources:
        refusals += [DamagedFile(_with_own_remedy(error)) for error in damaged]
    if refusals:
        raise combine_errors(refusals, len(entries))
    return sources, damaged


def plan(options: Namespace, model: Model) -> Plan:
    """Check everything that is given. Raises InputError for what cannot be calibrated."""
    from serving.calibration import kinds
    from serving.calibration.work import Task
    from weaver.read import files

    description = model.description
    entries = files.find(options.files)
    uris = [entry.uri for entry in entries]
    twice = [uri for uri, count in collections.Counter(uris).items() if count > 1]
    require(not twice, f"{', '.join(twice)}: give one tree of a file")
    outputs = outputs_of(uris, storage.absolute(options.output), options.format)
    check_folder(storage.absolute(options.output), description)
    check_not_doubled(storage.absolute(options.output), outputs)
    kept = finished(entries, outputs, description.digest)
    sources, damaged = open_all([entry for entry in entries if entry.uri not in kept], description)

    training = kinds.stated(description.facts, description.treename)
    tasks = []
    refusals = []
    not_compared: dict[str, None] = {}
    for source in sources:
        uri = source.file.entry.uri
        against = kinds.differences(training, source.kind)
        refusals += [f"{uri}: {difference}" for difference in against]
        not_compared |= dict.fromkeys(kinds.not_compared(training, source.kind))
        tasks.append(Task(source=source, output=outputs[uri], forced=tuple(against)))
    if refusals and not options.force:
        listed = "; ".join(refusals[:LISTED])
        more = f"; and {len(refusals) - LISTED} more" if len(refusals) > LISTED else ""
        raise InputError(
            f"the model {description.name} is not for these jets: {listed}{more}; --force"
            " calibrates them all the same"
        )
    return Plan(
        outputs=outputs,
        tasks=tasks,
        kept=list(kept.values()),
        damaged=damaged,
        warnings=refusals,
        not_compared=list(not_compared),
    )


def calibrate(options: Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    from serving.calibration import outputs, work

    require(options.threads >= 1, f"--threads {options.threads}: give at least 1")
    require(bool(options.output), "--output is empty; give a folder, '.' for this one")
    outputs.check_format(options.format)
    model = _model(options)
    planned = plan(options, model)
    for warning in planned.warnings:
        print(f"warning: {warning} (--force)", file=sys.stderr)

    folder = storage.absolute(options.output)
    record = storage.join(folder, outputs.RECORD)
    is_first = not storage.exists(record)
    check_folder(folder, model.description)  # the checks of all files have taken a while
    outputs.folder_record(model.description).save(record)

    def check() -> None:
        """Raise where an output would be of two models, or stand beside those of another."""
        model.check_unchanged()
        check_folder(folder, model.description)

    try:
        done, failures = work.calibrate(planned.tasks, model, options.threads, check)
    except ClusterError as error:
        raise ClusterError(f"{error}; finished files stay, the same command goes on") from None
    finally:
        if is_first:
            _delete_if_alone(record, folder)
    failures = [*planned.damaged, *failures]
    if done or planned.kept:
        _report(options, planned, done, model.description)
    if failures:
        raise _failed(failures, len(planned.tasks) + len(planned.damaged), options.output)
    return 0


def _delete_if_alone(record: str, folder: str) -> None:
    """Delete the record of a folder without results, which would refuse other models.

    What goes wrong here is of no account: the command has an error of its own then.
    """
    with contextlib.suppress(JecError):
        if _is_alone(record, folder):
            storage.delete(record)


def _is_alone(record: str, folder: str) -> bool:
    """Whether a folder holds nothing but its record."""
    return all(entry.uri == record for entry in storage.entries(folder))


def _model(options: Namespace) -> Model:
    """The model that is named: on a server, or in a file."""
    if not options.url:
        from serving.calibration.model import local_model

        require(bool(options.model), "no model is named; give --model RUN, or --url URL")
        return local_model(options.model)
    from serving.calibration.served import served_model

    login = {"token": options.token, "cookies": options.cookies}
    return served_model(options.url, options.model or "", **login)


def _report(
    options: Namespace, planned: Plan, done: list[FileInfo], description: Description
) -> None:
    """Say what was calibrated, what the columns mean, and what to do next."""
    from serving.calibration.outputs import NOTE, TREE

    infos = [*planned.kept, *done]
    jets = sum(info.jets for info in done)
    print(f"{jets:,} jets of {len(done)} files calibrated with {description.name}")
    if planned.kept:
        print(f"{len(planned.kept)} files were calibrated before and are kept")
    invalid: collections.Counter[str] = collections.Counter()
    for info in infos:
        invalid += collections.Counter(info.invalid)
    total = sum(info.jets for info in infos)
    num_invalid = total - sum(info.valid for info in infos)
    if num_invalid:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in invalid.most_common())
        print(
            f"{num_invalid:,} of {total:,} jets are not valid and keep the standard correction"
            + (f": {reasons}" if reasons else "")
        )
    if planned.not_compared:
        print(
            f"not compared with the training ({', '.join(planned.not_compared)}): the model card or"
            " the files do not say it"
        )
    for formula in dict.fromkeys(info.formula for info in infos):
        print(formula)
    print(NOTE)
    example = storage.join(options.output, storage.name(planned.outputs[infos[0].source]))
    if options.format == "root":
        print(f'next: tree->AddFriend("{TREE}", "{example}"); see docs/calibrate.md')
    else:
        print(f'next: pandas.read_parquet("{example}"); see docs/calibrate.md')


def _with_own_remedy(error: JecError) -> str:
    """The text of an error about a file, with a remedy that this command has."""
    from weaver.read.opening import REMEDY, TREE_REMEDY

    text = str(error).replace(TREE_REMEDY, "name its tree as FILE.root:TREE")
    return text.replace(REMEDY, "copy it again")


def _failed(failures: list[JecError], count: int, output: str) -> JecError:
    """The error for files that could not be calibrated to their end."""
    listed = "; ".join(_with_own_remedy(failure) for failure in failures[:LISTED])
    more = f"; and {len(failures) - LISTED} more" if len(failures) > LISTED else ""
    text = f"{len(failures)} of {count} files could not be calibrated: {listed}{more}"
    if len(failures) < count:
        text += f"; the outputs of the others are in {output}"
    return type(failures[0])(text)


def main(argv: list[str] | None = None) -> int:
    """The command `python -m serving.calibrate`; returns the exit code."""
    parser = Parser(prog="python -m serving.calibrate", description=__doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help="paths or addresses (s3://, root://, https://), patterns, FILE.root:TREE",
    )
    parser.add_argument(
        "--model",
        help="a run's folder, or the model.onnx of a model NAME-raw: paths or addresses; with --url"
        " the model's name on the server (default: its only NAME-raw)",
    )
    parser.add_argument("--url", help="a model server, http://host:port, in place of a file")
    parser.add_argument(
        "--token", metavar="FILE", help="with --url: file, or '$NAME' of a variable, with a token"
    )
    parser.add_argument(
        "--cookies", metavar="FILE", help="with --url: file, or variable, of cookies"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the outputs: path or address"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="of the outputs (default: %(default)s)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="calibrate jets of another kind or era than the training's",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=cores(),
        help="that ask the model at a time (default: one a core, %(default)s)",
    )
    options = parser.parse_args(argv)
    return run_main(lambda: calibrate(options))


if __name__ == "__main__":
    sys.exit(main())
