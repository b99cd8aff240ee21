"""Measure whether tpe with early stopping reaches random's best loss in less training time.

Each search has twenty real trials; several seeds are compared.

    python -m benchmarks.search                       # about 20 minutes on 2 cores
    python -m benchmarks.search --seeds 1 --trials 6  # a look
    python -m benchmarks.search --folder DIR --seeds 1 2  # in parts: searches that DIR holds are
        not done again

Each search is the Experiment that a run would make, with small Particle Flow Networks on generated
jets, one trial at a time on one thread. Time is the CPU time of the trials' processes, start-up
included, so that other programs on the machine do not count. For each seed, the time until tpe with
medianstop reaches the best loss of random's trials is compared with the time of all of random's
trials, because their best is known only after the last one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Report, Spread
from clusters.local_search import LocalSearch
from clusters.local_trial import RunningTrial
from common.config import RunConfig
from common.project import ROOT
from common.records import TrialStatus
from components.prepare import prepare
from training.experiment import experiment

SPACE = """[
 {"name": "num-conv-layers", "type": "int", "min": 1, "max": 3},
 {"name": "conv-dim", "type": "discrete", "list": [16, 32, 64]},
 {"name": "num-fc-layers", "type": "int", "min": 1, "max": 3},
 {"name": "fc-dim", "type": "discrete", "list": [32, 64, 128]},
 {"name": "dropout", "type": "double", "min": 0.0, "max": 0.2},
 {"name": "start-lr", "type": "double", "min": 5e-5, "max": 1e-2, "distribution": "logUniform"},
 {"name": "optimizer", "type": "categorical", "list": ["adam", "adamW", "ranger"]}]"""
"""The parameters and ranges of training/search_space.yaml, with narrower networks."""

CONTENDERS = {
    "random": {"algorithm": "random"},
    "tpe + medianstop": {"algorithm": "tpe", "early_stopping": "medianstop"},
}


class TimedSearch(LocalSearch):
    """A search that writes down its trials and the CPU seconds they took.

    After each trial: its status, its loss and the CPU seconds of all trials so far.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Start the clock of the trials' CPU time."""
        super().__init__(*args, **options)
        self.before = _children_seconds()
        self.records: list[dict[str, Any]] = []

    def _end(self, trial: RunningTrial, status: TrialStatus, reason: str, **options: Any) -> None:
        super()._end(trial, status, reason, **options)
        seconds = _children_seconds() - self.before
        self.records.append({"status": status, "loss": trial.objective_value(), "seconds": seconds})


def _children_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def search(
    folder: Path, contender: str, seed: int, trials: int, epochs: int, batch_size: int, jets: int
) -> list[dict[str, Any]]:
    """Run one search on the sample below `folder`; its trials in the order in which they ended."""
    config = RunConfig(
        s3_bucket=str(folder),
        run_id=f"{contender.split(maxsplit=1)[0]}-{seed:08x}",
        search_space=SPACE,
        seed=str(seed),
        max_trials=trials,
        parallel_trials=1,
        max_failed_trials=trials,
        num_epochs=epochs,
        batch_size=batch_size,
        num_cpus=1,
        sample_jets=jets,
        data_config="data/jec_pfn_full.yaml",
        **CONTENDERS[contender],
    )
    run = prepare(config.replace(seed="1"), "", "")  # all on the jets of one seed
    # of a search that was cut off: its times are lost
    for folder_to_remove in (folder / "searches" / run.id, folder / run.id / "trials"):
        shutil.rmtree(folder_to_remove, ignore_errors=True)
    search = TimedSearch(
        experiment(type(run)(config=config), reproducible=True),
        folder=folder / "searches",
        root=ROOT,
        report=lambda line: None,
    )
    search.run(3600.0)
    return search.records


def seconds_to_loss(records: Sequence[dict[str, Any]], loss: float) -> float | None:
    """CPU seconds after which a search had a trial with a loss not above this one.

    None if it never had.
    """
    return next(
        (
            record["seconds"]
            for record in records
            if record["loss"] is not None and record["loss"] <= loss
        ),
        None,
    )


def best(records: Sequence[dict[str, Any]]) -> float:
    """Return the least loss."""
    return min(record["loss"] for record in records if record["loss"] is not None)


def measure(
    arguments: argparse.Namespace, folder: Path
) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Searches: seed -> contender -> its trials.

    They run beside each other, one a core.
    """
    sizes = (arguments.trials, arguments.epochs, arguments.batch_size, arguments.jets)
    missing = [
        (seed, name)
        for seed in arguments.seeds
        for name in CONTENDERS
        if not _record(folder, seed, name).exists()
    ]
    if missing:
        # makes the sample, and shows that a trial runs
        search(folder, "random", 0, 1, 2, arguments.batch_size, arguments.jets)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        running = {
            pool.submit(search, folder, name, seed, *sizes): (seed, name) for seed, name in missing
        }
        for future in concurrent.futures.as_completed(running):
            seed, name = running[future]
            _record(folder, seed, name).write_text(json.dumps(future.result()))
            print(
                f"seed {seed}, {name}: best {best(future.result()):.5f}",
                file=sys.stderr,
                flush=True,
            )
    return {
        seed: {name: json.loads(_record(folder, seed, name).read_text()) for name in CONTENDERS}
        for seed in arguments.seeds
    }


def _record(folder: Path, seed: int, contender: str) -> Path:
    return folder / f"{contender.split(maxsplit=1)[0]}-{seed}.json"


def write(
    results: dict[int, dict[str, list[dict[str, Any]]]], arguments: argparse.Namespace
) -> None:
    """Write the results."""
    report = Report("search", "tpe with early stopping against random search")
    rows = []
    ratios = []
    gains = []
    random, other = CONTENDERS
    for seed, searches in sorted(results.items()):
        goal, seconds = best(searches[random]), searches[random][-1]["seconds"]
        when = seconds_to_loss(searches[other], goal)
        num_stopped = sum(record["status"] == "EarlyStopped" for record in searches[other])
        ratios += [when / seconds] if when else []
        gains.append(best(searches[other]) - goal)
        rows.append(
            [
                seed,
                f"{goal:.5f}",
                f"{seconds:.0f}",
                f"{seconds_to_loss(searches[random], goal):.0f}",
                f"{best(searches[other]):.5f}",
                f"{searches[other][-1]['seconds']:.0f}",
                num_stopped,
                f"{when:.0f}" if when else "never",
                f"{when / seconds:.2f}" if when else "–",
            ]
        )
    head = [
        "random: best",
        "s, all trials",
        "s, its best",
        "tpe: best",
        "s, all trials",
        "stopped",
        "s to random's best",
        "share",
    ]
    losses = [
        record["loss"]
        for searches in results.values()
        for record in searches[random]
        if record["loss"] is not None
    ]
    low, middle, high = statistics.quantiles(losses, n=10)[::4]
    notes = [
        (
            f"{arguments.trials} trials a search, one at a time on one thread; a trial:"
            f" {arguments.epochs} epochs of {arguments.jets:,} jets in batches of"
            f" {arguments.batch_size}."
        ),
        (
            f"Losses of random's trials: 10 % below {low:.4f}, half below {middle:.4f}, 90 % below"
            f" {high:.4f}."
        ),
        (
            "s: CPU seconds of the trials, start-up included. share: s to random's best over s of"
            " all of random's trials."
        ),
        "tpe's first five trials are random's first five, drawn with the same seed.",
    ]
    outcome = (
        f"tpe with medianstop reached random's best loss for {len(ratios)} of {len(results)} seeds"
    )
    notes.append(
        outcome
        + (f", in {Spread.of(ratios).text('.2f')} of random's training time." if ratios else ".")
    )
    notes.append(f"Best loss of tpe minus random's: {Spread.of(gains).text('+.5f')}.")
    title = (
        f"time to the best loss of random search, {arguments.epochs} epochs in batches of"
        f" {arguments.batch_size}"
    )
    report.section(title, columns=["seed", *head], rows=rows, notes=notes, searches=results)
    report.save()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--trials", type=int, default=20)
    # So few steps that learning rate and size decide; longer trainings of these small networks all
    # end alike.
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument(
        "--jets", type=int, default=8000, help="training jets; a quarter as many for validation"
    )
    parser.add_argument("--workers", type=int, default=2, help="searches at a time")
    parser.add_argument(
        "--folder", type=Path, help="keep the jets and the results of finished searches here"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="search-benchmark-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(measure(arguments, folder.resolve()), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
