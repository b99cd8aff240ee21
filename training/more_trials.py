"""`--more-trials N RUN_ID`: resume a finished search with N more trials."""

from __future__ import annotations

from common import storage
from common.cli import is_whole
from common.config import NONE, RunConfig
from common.errors import InputError
from common.layout import RunFolder
from common.records import SearchRecord


def with_more_trials(config: RunConfig, more: str) -> RunConfig:
    """Return the configuration of an earlier run with more trials than its search has.

    Args:
        config: Configuration of the earlier run.
        more: Number of further trials, as text of the command line.

    Raises:
        InputError: If `more` is not a positive whole number, or if the search has not ended or has
            reached its goal.
    """
    if not is_whole(more) or int(more) < 1:
        raise InputError(
            f"--more-trials '{more}': write a whole number from 1 up, followed by the run id"
        )
    folder = RunFolder(storage.join(config.s3_bucket, config.run_id))
    place = folder.search
    if not storage.exists(place):
        raise InputError(
            f"the search of {config.run_id} has not ended ({place} is not there); resume it first:"
            f" {folder.resume_command}"
        )
    record = SearchRecord.load(place)
    loss = record.best_value
    if config.goal != NONE and loss <= float(config.goal):
        raise InputError(
            f"the search of {config.run_id} has reached its goal of {config.goal} ({loss:.5f});"
            " give another --goal, or none"
        )
    return config.replace(max_trials=len(record.trials) + int(more))
