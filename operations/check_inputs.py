"""Run the checks of the inputs (components/inputs.py) as lines of the table of `--check`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from common import algorithms, storage
from common.choices import SPLITS
from common.config import RunConfig
from common.errors import InputError, JecError, NoCredentials, StorageError
from components.inputs import CONFIGURATION_CHECKS, DATA_CHECKS, Check, Inputs
from operations.table import Line, error, not_seen, ok, warning
from training.search_space import cautions


def check_inputs(config: RunConfig, *, on_kubeflow: bool = False) -> Iterator[Line]:
    """Yield the lines of every check of the inputs, and warnings about the files they read.

    Lines on how Katib departs from the search space are for runs on Kubeflow only.
    """
    inputs = Inputs(config)
    data_errors: dict[tuple[str, str], list[tuple[str, str]]] = {}
    names_of_data = [f"{split} data" for split in SPLITS]
    for check in (*CONFIGURATION_CHECKS, *DATA_CHECKS):
        # A data configuration that cannot be read has its own line already.
        if inputs.data_config is None and check.reads_data_config:
            continue
        try:
            yield from lines_of(check, inputs)
        except (InputError, StorageError) as problem:
            # The checks after it still run: the other data may be on another server.
            if check.name in names_of_data:
                data_errors.setdefault(cause_of(problem), []).append((check.name, str(problem)))
            else:
                yield error(check.name, str(problem))
        if check.name == names_of_data[-1]:
            yield from merged_errors(data_errors.values())

    # random and tpe follow the search space closely: a note about them is no warning.
    line = ok if algorithms.find_offered(config.algorithm).step_caution else warning
    for caution in cautions(inputs.space, config.algorithm) if on_kubeflow else []:
        yield line("search space", caution)
    for split in SPLITS:
        name = f"{split} data"
        if split in inputs.file_checks:
            for file in inputs.file_checks[split].skipped_files:
                yield warning(name, f"{file.uri} is damaged and will be left out")
        here = [storage.is_local(entry.uri) for entry in inputs.files.get(split, [])]
        if storage.is_s3(config.s3_bucket) and any(here):
            yield warning(
                name,
                "is on this machine, where pods cannot read it",
                "give an s3://, root:// or https:// address",
            )


def lines_of(check: Check, inputs: Inputs) -> Iterator[Line]:
    """Run a check and yield its lines. Raises what the check raises."""
    result = check.run(inputs)
    yield (
        ok(check.name, result.text)
        if result.is_checked
        else not_seen(check.name, result.text, result.cure)
    )
    if result.warning:
        yield warning(check.name, result.warning)


def cause_of(problem: JecError) -> tuple[str, str]:
    """Return a key that is the same for errors of several sets with one cause.

    An error of the storage concerns the server, whichever file it names.
    """
    text = str(problem)
    if isinstance(problem, StorageError | NoCredentials):
        text = re.sub(r"(\w+://[^/\s]+)/\S*", r"\1", text)
    return type(problem).__name__, text


def merged_errors(groups: Iterable[list[tuple[str, str]]]) -> Iterator[Line]:
    """Yield one error line for each group of (name of the set, text), with the first text."""
    for group in groups:
        names = [name.removesuffix(" data") for name, _ in group]
        *first, last = names
        what = f"{', '.join(first)} and {last}" if first else last
        yield error(f"{what} data", group[0][1])
