"""`--more-trials N RUN_ID`: how many trials the search of a run that is gone on with shall have in
all.
"""

from __future__ import annotations

from common import storage
from common.config import NONE, RunConfig
from common.errors import InputError


def with_more_trials(config: RunConfig, more: str) -> RunConfig:
    """The configuration of a former run with `more` trials beyond those that its search has had.

    Raises InputError for what is no number, for a run whose search has not ended, and for one that
    has reached its goal.
    """
    if not more.isdigit() or int(more) < 1:
        raise InputError(
            f"--more-trials '{more}': write a whole number from 1 up, and the run's id behind it"
        )
    place = storage.join(config.s3_bucket, config.run_id, "search.json")
    if not storage.exists(place):
        raise InputError(
            f"the search of {config.run_id} has not ended ({place} is not there); go on with it by"
            f" --resume {config.run_id}"
        )
    record = storage.read_json(place)
    best = next(trial for trial in record["trials"] if trial["name"] == record["optimal"])
    loss = best["metrics"][record["objective"]["name"]]["min"]
    if config.goal != NONE and loss <= float(config.goal):
        raise InputError(
            f"the search of {config.run_id} has reached its goal of {config.goal} ({loss:.5f});"
            " give another --goal, or none"
        )
    return config.replace(max_trials=len(record["trials"]) + int(more))
