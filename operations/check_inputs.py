"""Show in the table of `--check` what the checks of the inputs say (components/inputs.py)."""

from __future__ import annotations

from collections.abc import Iterator

from common import algorithms, storage
from common.choices import SPLITS
from common.config import RunConfig
from common.errors import InputError, StorageError
from components.inputs import OF_CONFIGURATION, OF_DATA, Check, Inputs
from operations.table import Line, error, not_seen, ok, warning
from training.search_space import cautions


def check_inputs(config: RunConfig, *, on_kubeflow: bool = False) -> Iterator[Line]:
    """Yield the lines of every check of the inputs, and warnings about what they read.

    What Katib does otherwise than the search space asks for concerns a run on Kubeflow alone.
    """
    inputs = Inputs(config)
    for check in (*OF_CONFIGURATION, *OF_DATA):
        # A data configuration that cannot be read has its own line already.
        if inputs.data_config is not None or not check.reads_data_config:
            yield from lines_of(check, inputs)

    # random and tpe draw nearly as they are asked to: what is to be known of them is no warning.
    line = ok if algorithms.offered(config.algorithm).step_caution else warning
    for caution in cautions(inputs.space, config.algorithm) if on_kubeflow else []:
        yield line("search space", caution)
    for split in SPLITS:
        name = f"{split} data"
        if split in inputs.checked:
            for skipped in inputs.checked[split].skipped:
                yield warning(name, f"{skipped.uri} is damaged and will be left out")
        here = [storage.is_local(entry.uri) for entry in inputs.files.get(split, [])]
        if storage.is_s3(config.s3_bucket) and any(here):
            yield warning(
                name,
                "lies on this machine; pods cannot read it",
                "name it by s3://, root:// or https://",
            )


def lines_of(check: Check, inputs: Inputs) -> Iterator[Line]:
    """Run a check; its refusal is an error of the table, so that the others are still run.

    So is a server that does not answer: the other data may lie elsewhere.
    """
    try:
        result = check.run(inputs)
    except (InputError, StorageError) as problem:
        yield error(check.name, str(problem))
        return
    yield (
        ok(check.name, result.text)
        if result.seen
        else not_seen(check.name, result.text, result.cure)
    )
    if result.warning:
        yield warning(check.name, result.warning)
