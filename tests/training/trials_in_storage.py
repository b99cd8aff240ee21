"""Trials in a run's storage, written by the code that a trial writes them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from common import storage
from common.run import Run
from training.search_space import for_network, load
from weaver.fit.checkpoint import TrialFolder, TrialProgress
from weaver.fit.options import TRAIN_FLAGS, parse

PATIENCE = 4
EPOCH_SECONDS = 10


def write_trial(
    run: Run,
    name: str,
    assignments: Mapping[str, str],
    losses: Sequence[float],
    *,
    start: float = 0.0,
    **options: object,
) -> None:
    """Leave what a trial has in its folder after epochs with these validation losses.

    start: seconds from the first of January 2026.
    """
    args = [
        "--data-train=t",
        "--data-val=v",
        "--data-config=d",
        "--network-config=n",
        f"--model-prefix={run.folder.trial(name)}/",
        "--regression-mode",
    ]
    flags = {"num_epochs": run.config.num_epochs, **options}
    args += [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
    for parameter in for_network(load(run.config.search_space), run.config.network_config):
        value = assignments[parameter.name]
        if parameter.flag in TRAIN_FLAGS:
            args.append(f"--{parameter.flag}={value}")
        else:
            args.append(f"--network-option={parameter.option}:{value}")
    trained = parse(args)

    folder = TrialFolder(run.folder.trial(name))
    progress = TrialProgress()
    first_start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=start)
    for loss in losses:
        epoch = progress.epoch
        end = first_start + timedelta(seconds=EPOCH_SECONDS * (epoch + 1))
        progress.history.append(
            {
                "epoch": epoch,
                "train_loss": loss,
                "val_loss": loss,
                "learning_rate": 0.001,
                "jets_per_second": 1e4,
                "seconds": EPOCH_SECONDS,
                "time": end.isoformat().replace("+00:00", "Z"),
                "metrics": {"AvgLoss": loss, "learning_rate": 0.001, "jets_per_second": 1e4},
            }
        )
        if loss < progress.best_metric:
            progress.best_epoch, progress.best_metric = epoch, loss
            storage.write_bytes(folder.path("best.pt"), b"weights")
        progress.next_epoch()
    description = {
        "network_options": dict(trained.network_option),
        "train_options": trained.settings(),
    }
    folder.write_results(progress, description)
