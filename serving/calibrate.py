r"""Calibrate files of jets: for each file a friend tree with the calibrated pT of every jet.

    python -m serving.calibrate 'data/*.root' --model runs/latest --output calibrated
    python -m serving.calibrate 'root://SERVER//store/*.root' --model NAME-raw/1/model.onnx \
        --output calibrated --format parquet
    python -m serving.calibrate 'data/*.root' --url http://127.0.0.1:8000 --output calibrated

A FILE is in the JetNtuple schema (one jet per entry) or PFNano (events with Jet_ and PFCands_
branches). It may be simulation or collision data, because no generator information is needed. The
output has one entry for each entry of the file, in the same order. Jets outside of the training's
range keep the standard correction, and their column `valid` is false. docs/calibrate.md explains
the columns, and what the correction means in collision data.

After an interruption, the same command continues: existing outputs of the same model and the same
files are reused.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common import storage
from common.cli import Parser, require, run_main
from common.errors import AccessError, ClusterError, InputError, JecError
from common.machine import cores

if TYPE_CHECKING:
    from common.storage import Entry
    from serving.calibration.model import Description, Model
    from serving.calibration.outputs import FileInfo
    from serving.calibration.sources import Source
    from serving.calibration.work import Task
    from weaver.read.opening import DamagedFile

FORMATS = ("root", "parquet")
NUM_CHECKERS = 8  # files that are opened in parallel
MAX_LISTED = 5  # files that an error or a note lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a command, after all inputs were checked."""

    outputs: dict[str, str]
    """Address of the output of each input."""
    tasks: list[Task]
    reused: list[FileInfo]
    """Outputs of an earlier command that are still valid."""
    damaged_files: list[DamagedFile]
    """Files that cannot be read."""
    warnings: list[str]
    unknown_properties: list[str]
    """Properties of the jets that the model card or the files do not contain."""


def outputs_of(uris: list[str], folder: str, ending: str) -> dict[str, str]:
    """Return the address of the output of each input.

    Raises:
        InputError: If an output would replace an input.
    """
    from data.from_nanoaod import output_names

    names = output_names(uris)
    outputs = {uri: storage.join(folder, f"{name}.{ending}") for uri, name in names.items()}
    for uri, output in outputs.items():
        if output in outputs:
            raise InputError(
                f"the output of {uri} would replace the input file {output}; give another --output"
            )
    return outputs


def finished_outputs(
    entries: list[Entry], outputs: dict[str, str], digest: str
) -> dict[str, FileInfo]:
    """Return the content of valid existing outputs, by input.

    Raises:
        InputError: If an output would replace a file of another program, model or input.
    """
    from serving.calibration.outputs import read_info

    def look(entry: Entry) -> tuple[Entry, bool, FileInfo | None]:
        output = outputs[entry.uri]
        exists = storage.exists(output)
        return entry, exists, read_info(output) if exists else None

    infos = {}
    with ThreadPoolExecutor(NUM_CHECKERS) as pool:
        for entry, exists, info in pool.map(look, entries):
            output = outputs[entry.uri]
            if not exists:
                continue
            if info is None:
                raise InputError(
                    f"{output} would be replaced, but this command did not write it; give another"
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
                infos[entry.uri] = info
    return infos


def check_duplicates(folder: str, outputs: dict[str, str]) -> None:
    """Check that no earlier output in the folder has the jets of an input under another name.

    The output of A/x.root is x.root, or A_x.root if the same command also has an input B/x.root. So
    commands with different inputs may name the output of one file differently.

    Raises:
        InputError: If there is such an output.
    """
    from serving.calibration.outputs import read_info

    stems = {storage.name(uri).rpartition(".")[0] for uri in outputs}
    new_outputs = set(outputs.values())
    try:
        existing = storage.entries(folder)
    except AccessError:  # another user's folder in this one, as in /tmp
        return
    for entry in existing:
        stem, _, ending = storage.name(entry.uri).rpartition(".")
        alike = [other for other in stems if stem == other or stem.endswith(f"_{other}")]
        if entry.uri in new_outputs or ending not in FORMATS or not alike:
            continue
        info = read_info(entry.uri)
        if info is not None and info.source in outputs:
            raise InputError(
                f"the jets of {info.source} are already in {entry.uri}, and would be in"
                f" {outputs[info.source]} as well; give another --output, or delete the first"
            )


def check_folder(folder: str, description: Description) -> None:
    """Check that a folder has no results of another model.

    Raises:
        InputError: If it has.
    """
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
    """Check all files and return those that can be calibrated, and those that are damaged.

    Raises:
        InputError: One error for all files that lack inputs of the model, and if all are damaged.
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
    damaged_files: list[DamagedFile] = []
    refusals: list[InputError] = []
    with ThreadPoolExecutor(NUM_CHECKERS) as pool:
        for result in pool.map(check, entries):
            if isinstance(result, DamagedFile):
                damaged_files.append(result)
            elif isinstance(result, InputError):
                refusals.append(result)
            else:
                sources.append(result)
    if damaged_files and not sources:
        refusals += [DamagedFile(_with_own_remedy(error)) for error in damaged_files]
    if refusals:
        raise combine_errors(refusals, len(entries))
    return sources, damaged_files


def plan(options: Namespace, model: Model) -> Plan:
    """Check all inputs and return the work to be done.

    Raises:
        InputError: If something cannot be calibrated.
    """
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
    check_duplicates(storage.absolute(options.output), outputs)
    reused = finished_outputs(entries, outputs, description.digest)
    sources, damaged_files = open_all(
        [entry for entry in entries if entry.uri not in reused], description
    )

    training = kinds.kind_of_training(description.facts, description.treename)
    tasks = []
    refusals = []
    unknown_properties: dict[str, None] = {}
    for source in sources:
        uri = source.file.entry.uri
        problems = kinds.differences(training, source.kind)
        refusals += [f"{uri}: {difference}" for difference in problems]
        unknown_properties |= dict.fromkeys(kinds.unknown_properties(training, source.kind))
        tasks.append(Task(source=source, output=outputs[uri], forced=tuple(problems)))
    if refusals and not options.force:
        examples = "; ".join(refusals[:MAX_LISTED])
        more = f"; and {len(refusals) - MAX_LISTED} more" if len(refusals) > MAX_LISTED else ""
        raise InputError(
            f"the model {description.name} is not for these jets: {examples}{more}; give a model"
            " that was trained on such jets, or --force to calibrate these in spite of it"
        )
    return Plan(
        outputs=outputs,
        tasks=tasks,
        reused=list(reused.values()),
        damaged_files=damaged_files,
        warnings=refusals,
        unknown_properties=list(unknown_properties),
    )


def calibrate(options: Namespace) -> int:
    """Calibrate as the options say and return the exit code.

    Raises:
        InputError: An option, a file, the model or the output folder cannot be used.
        ClusterError: The model's server failed; the outputs of finished files stay.
    """
    from serving.calibration import outputs, work

    require(options.threads >= 1, f"--threads {options.threads}: give at least 1")
    require(bool(options.output), "--output is empty; give a folder, '.' for this one")
    outputs.check_format(options.format)
    model = _model(options)
    work_plan = plan(options, model)
    for warning in work_plan.warnings:
        print(f"warning: {warning} (--force)", file=sys.stderr)

    folder = storage.absolute(options.output)
    record = storage.join(folder, outputs.RECORD)
    is_first = not storage.exists(record)
    check_folder(folder, model.description)  # the checks of all files have taken a while
    outputs.folder_record(model.description).save(record)

    def check() -> None:
        """Raise an error if the outputs would come from different models."""
        model.check_unchanged()
        check_folder(folder, model.description)

    try:
        infos, failures = work.calibrate(work_plan.tasks, model, options.threads, check)
    except ClusterError as error:
        text = f"{error}; finished files stay; repeat the same command to continue"
        raise ClusterError(text) from None
    finally:
        if is_first:
            _delete_if_alone(record, folder)
    failures = [*work_plan.damaged_files, *failures]
    if infos or work_plan.reused:
        _report(options, work_plan, infos, model.description)
    if failures:
        raise _failure(
            failures, len(work_plan.tasks) + len(work_plan.damaged_files), options.output
        )
    return 0


def _delete_if_alone(record: str, folder: str) -> None:
    """Delete the record of the model if the folder has no results.

    Otherwise the record would make the folder refuse other models. Errors are ignored, because they
    would hide the error that stopped the command.
    """
    with contextlib.suppress(JecError):
        if _is_alone(record, folder):
            storage.delete(record)


def _is_alone(record: str, folder: str) -> bool:
    """Return whether a folder contains only its record."""
    try:
        return all(entry.uri == record for entry in storage.entries(folder))
    except AccessError:  # of a folder in it, as in /tmp
        return False


def _model(options: Namespace) -> Model:
    """Return the model of the options: on a server, or in a file."""
    if not options.url:
        from serving.calibration.model import local_model

        require(bool(options.model), "there is no --model; give --model RUN, or --url URL")
        require(
            not _is_server(options.model),
            f"--model {options.model} is the address of a server, not of a model.onnx; give --url"
            " http://HOST:PORT, and --model NAME-raw if it has several",
        )
        return local_model(options.model)
    from serving.calibration.served import served_model

    login = {"token": options.token, "cookies": options.cookies}
    return served_model(options.url, options.model or "", **login)


def _is_server(model: str) -> bool:
    """Return whether an address is that of a server, and not of a file or folder on it."""
    if model.startswith(("grpc://", "grpcs://")):
        return True
    path = urlsplit(model).path
    is_web = model.startswith(("http://", "https://"))
    return is_web and (path in ("", "/") or path.startswith("/v2"))


def _report(
    options: Namespace, work_plan: Plan, new_infos: list[FileInfo], description: Description
) -> None:
    """Print what was calibrated, what the columns mean, and the next step."""
    from serving.calibration.outputs import NOTE, TREE

    infos = [*work_plan.reused, *new_infos]
    jets = sum(info.jets for info in new_infos)
    print(f"{jets:,} jets of {len(new_infos)} files calibrated with {description.name}")
    if work_plan.reused:
        print(f"{len(work_plan.reused)} files were calibrated before and are kept")
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
    if work_plan.unknown_properties:
        print(
            f"not compared with the training ({', '.join(work_plan.unknown_properties)}): the model"
            " card or the files do not contain it"
        )
    for formula in dict.fromkeys(info.formula for info in infos):
        print(formula)
    print(NOTE)
    example = storage.join(options.output, storage.name(work_plan.outputs[infos[0].source]))
    if options.format == "root":
        print(f'next: tree->AddFriend("{TREE}", "{example}"); see docs/calibrate.md')
    else:
        print(f'next: pandas.read_parquet("{example}"); see docs/calibrate.md')


def _with_own_remedy(error: JecError) -> str:
    """Return the text of an error about a file, with a remedy for this command."""
    from weaver.read.opening import REMEDY, TREE_REMEDY

    text = str(error).replace(TREE_REMEDY, "name its tree as FILE.root:TREE")
    return text.replace(REMEDY, "copy it again")


def _failure(failures: list[JecError], count: int, output: str) -> JecError:
    """Return the error for files that could not be calibrated."""
    examples = "; ".join(_with_own_remedy(failure) for failure in failures[:MAX_LISTED])
    more = f"; and {len(failures) - MAX_LISTED} more" if len(failures) > MAX_LISTED else ""
    text = f"{len(failures)} of {count} files could not be calibrated: {examples}{more}"
    if len(failures) < count:
        text += f"; the outputs of the others are in {output}"
    return type(failures[0])(text)


def main(argv: list[str] | None = None) -> int:
    """Run `python -m serving.calibrate` and return the exit code."""
    parser = Parser(prog="python -m serving.calibrate", description=__doc__)
    parser.add_argument(
        "files",
        type=str,  # patterns, which line breaks may separate
        nargs="+",
        metavar="FILE",
        help="files of jets: paths, addresses (s3://, root://, https://), patterns, or"
        " FILE.root:TREE",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="a run's folder, or the model.onnx of a model NAME-raw, as path or address; with --url"
        " the model's name on the server (default: its only NAME-raw)",
    )
    parser.add_argument(
        "--url", metavar="URL", help="use the model server http://HOST:PORT instead of a file"
    )
    parser.add_argument(
        "--token",
        type=str,  # an error must not show a secret that was given in place of its file
        metavar="FILE",
        help="with --url: file with a token, or '$NAME' of an environment variable",
    )
    parser.add_argument(
        "--cookies",
        type=str,
        metavar="FILE",
        help="with --url: file with cookies, or '$NAME' of an environment variable",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the outputs: path or address",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="format of the outputs (default: %(default)s)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="calibrate jets of another kind or era than those of the training",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=cores(),
        metavar="N",
        help="threads that run the model (default: one per core, %(default)s)",
    )
    options = parser.parse_args(argv)
    return run_main(lambda: calibrate(options))


if __name__ == "__main__":
    sys.exit(main())
