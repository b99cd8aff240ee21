"""Measure an exported model on the test jets, judge it, and report.

    python -m physics.evaluate --run runs/<run id> --name <model name> [--trial NAME]
        [--baseline runs/<earlier run id>] [--gate strict] [--min-improvement 0]

It writes metrics.json, report.html and the figures into the run's folder. What is measured is what
is deployed: <run>/model/<name>/1/model.onnx, run by ONNX Runtime. Not passing the gate is an
answer, not an error: the exit code is 0, and metrics.json says `passed: false` with the reasons;
the pipeline's condition reads it.
"""

from __future__ import annotations

import dataclasses
import math
import sys

from common import storage
from common.choices import GATE_REGIONS, GATES
from common.cli import Parser, require, run_job
from common.config import AUTO, NONE, RunConfig, flag
from common.layout import RunFolder
from common.measurements import GateSettings
from common.records import MetricsRecord
from evaluating import inputs, results
from evaluating.inference import BATCH_SIZE, load_session, predict, predict_baseline
from evaluating.measurement import Subject, measured
from evaluating.mlflow_models import log_models
from evaluating.permutation import importances
from evaluating.requirements import check_observers
from evaluating.trees import compare
from physics.bootstrap import REPLICATES

# With fewer draws the ends of a 95 % interval would rest on one or none.
LEAST = {"replicates": 20, "batch_size": 1, "seed": 0}
"""Option -> the least value that can be meant."""

LIMITS = (
    "min_improvement",
    "max_closure",
    "max_resolution_ratio",
    "max_tail_ratio",
    "max_flavour_ratio",
    "max_coverage_points",
)
"""The gate's limits, in the order of --help; pipeline.py has the same flags."""


def evaluate(
    run: str,
    name: str,
    *,
    trial: str = AUTO,
    baseline: str = NONE,
    settings: GateSettings,
    replicates: int = REPLICATES,
    batch_size: int = BATCH_SIZE,
) -> MetricsRecord:
    """Measure model `name` of the run in the folder `run` (URI), and write what was measured there.

    trial: the one that was exported ('auto': the search's best); its options and training curve go
    into the report. baseline: an earlier run's folder (URI) whose model is measured on the same
    jets, or 'none'. settings: what the gate asks for.

    Raises InputError where the run, its model or its test data are missing or lack an observer, or
    the baseline's are other jets.
    """
    uri = storage.absolute(run)
    earlier = None if baseline == NONE else storage.absolute(baseline)
    read = inputs.read_inputs(uri, trial)
    test = inputs.open_test_set(uri)
    columns = test.observers()
    check_observers(columns, RunFolder(uri).data_config)

    session = load_session(uri, name)
    answers = predict(session, test, batch_size)
    of_baseline = predict_baseline(earlier, columns, batch_size) if earlier else None
    trees = compare(read.run, columns, fraction=read.data_fraction, seed=settings.seed)
    shuffled = importances(session, test, columns, answers.inference.jets_per_second, settings.seed)
    metrics = measured(
        Subject(run=uri, model=name, baseline=earlier),
        read,
        columns,
        answers,
        inputs.label_values(answers.labels, columns, test),
        of_baseline,
        trees,
        settings,
        replicates,
    )
    metrics = dataclasses.replace(metrics, importances=shuffled)

    # The report shows the numbers of metrics.json, digit by digit.
    metrics = results.rounded(metrics)
    results.write(uri, read.documents(metrics))
    return metrics


def parser() -> Parser:
    """Return the parser of the command line."""
    command = Parser(prog="python -m physics.evaluate", description=__doc__)
    command.add_argument(
        "--run",
        required=True,
        metavar="URI",
        help="run folder: a directory or s3://bucket/prefix/run-id",
    )
    command.add_argument("--name", required=True, help="model name, as under <run>/model/")
    command.add_argument(
        "--trial",
        default=AUTO,
        help="trial that was exported, for the report (default: the search's best)",
    )
    command.add_argument(
        "--baseline",
        default=NONE,
        metavar="URI",
        help="folder of an earlier run, to be compared on the same jets",
    )
    gates = command.add_argument_group("gate")
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    for name, choices in (("gate", GATES), ("gate_regions", GATE_REGIONS)):
        gates.add_argument(
            f"--{flag(name)}",
            default=fields[name].default,
            choices=choices,
            help=f"{fields[name].metadata['help']} (default: %(default)s)",
        )
    for name in LIMITS:
        text = fields[name].metadata["help"].replace("%", "%%")
        gates.add_argument(
            f"--{flag(name)}",
            type=float,
            default=fields[name].default,
            metavar="X",
            help=f"{text} (default: %(default)s)",
        )
    command.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap (default %(default)s)"
    )
    command.add_argument(
        "--replicates", type=int, default=REPLICATES, help="bootstrap draws (default %(default)s)"
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="jets a call of the model (default %(default)s)",
    )
    return command


def main(argv: list[str] | None = None) -> int:
    """Evaluate the model that the command line names; return the exit code."""
    options = vars(parser().parse_args(argv))

    def body() -> None:
        for name, lowest in LEAST.items():
            require(
                options[name] >= lowest, f"--{flag(name)} {options[name]}: give at least {lowest}"
            )
        for name in LIMITS:
            value = options[name]
            require(math.isfinite(value), f"--{flag(name)} {value}: give a number")
            # A gain may be asked to be above any number, the other limits are sizes.
            require(
                value >= 0 or name == "min_improvement", f"--{flag(name)} {value}: give 0 or more"
            )
        names = [field.name for field in dataclasses.fields(GateSettings)]
        settings = GateSettings(**{name: options.pop(name) for name in names})
        metrics = evaluate(**options, settings=settings)
        log_models(metrics.run, metrics)
        lines = [*results.verdict(metrics), f"report: {RunFolder(metrics.run).report}"]
        print("\n".join(lines), flush=True)

    return run_job(body)


if __name__ == "__main__":
    sys.exit(main())
