"""Run the checks of the inputs (components/inputs.py) as lines of the table of `--check`."""

from __future__ import annotations

from collections.abc import Iterator

from common import algorithms, storage
from common.choices import SPLITS
from common.config import RunConfig
from common.errors import InputError, StorageError
from components.inputs import CONFIGURATION_CHECKS, DATA_CHECKS, Check, Inputs
from operations.table import Line, error, not_seen, ok, warning
from training.search_space import cautions


def check_inputs(config: RunConfig, *, on_kubeflow: bool = False) -> Iterator[Line]:
    """Yield the lines of every check of the inputs, and warnings about the files they read.

    Lines on how Katib departs from the search space are for runs on Kubeflow only.
    """
    inputs = Inputs(config)
    for check in (*CONFIGURATION_CHECKS, *DATA_CHECKS):
        # A data configuration that cannot be read has its own line already.
        if inputs.data_config is not None or not check.reads_data_config:
            yield from lines_of(check, inputs)

    # random and tpe follow the search space closely: a note about them is no warning.
    line = ok if algorithms.find_offered(config.algorithm).step_caution else warning
    for caution in cautions(inputs.space, config.algorithm) if on_kubeflow else []:
        yield line("search space", caution)
    for split in SPLITS:
        name = f"{split} data"
        if split in inputs.file_checks:
            for skipped in inputs.file_checks[split].skipped_files:
                yield warning(name, f"{skipped.uri} is damaged and will be left out")
        here = [storage.is_local(entry.uri) for entry in inputs.files.get(split, [])]
        if storage.is_s3(config.s3_bucket) and any(here):
            yield warning(
                name,
                "is on this machine, where pods cannot read it",
                "give an s3://, root:// or https:// address",
            )


def lines_of(check: Check, inputs: Inputs) -> Iterator[Line]:
    """Run a check and yield its lines; its exception becomes an error line.

    So the checks after it still run, also if a storage server does not answer: the other data may
    be elsewhere.
    """
    try:
        result = check.run(inputs)
    except (InputError, StorageError) as problem:
        yield error(check.name, str(problem))
        return
    yield (
        ok(check.name, result.text)
        if result.is_checked
        else not_seen(check.name, result.text, result.cure)
    )
    if result.warning:
        yield warning(check.name, result.warning)
