"""Measure an exported model on the test jets, decide the gate, and write the report.

    python -m evaluating.evaluate --run runs/RUN_ID --name MODEL [--trial NAME]
        [--baseline runs/EARLIER_RUN_ID] [--gate strict] [--min-improvement 0]

It writes metrics.json, report.html and the figures into the run's folder. It measures the file that
is deployed, <run>/model/<name>/1/model.onnx, with ONNX Runtime. If the model does not pass the
gate, the exit code is still 0: metrics.json has `passed: false` and the reasons, and the pipeline's
condition reads it.
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
from common.machine import return_freed_memory
from common.measurements import GateSettings
from common.records import MetricsRecord
from evaluating import inputs, results
from evaluating.inference import (
    BATCH_SIZE,
    batch_size_for,
    load_session,
    predict,
    predict_baseline,
)
from evaluating.measurement import Subject, measure
from evaluating.memory import memory_warning
from evaluating.mlflow_models import log_models
from evaluating.permutation import importances
from evaluating.requirements import check_observers, label_reason
from evaluating.trees import compare
from physics.bootstrap import REPLICATES

# The ends of a 95 % interval need at least 20 bootstrap draws.
MIN_VALUES = {"replicates": 20, "batch_size": 1, "seed": 0}
"""Smallest allowed value of these options."""

MAX_VALUES = {"replicates": 100_000, "batch_size": 100_000_000, "seed": 2**31 - 1}
"""Largest allowed value of these options: each draw takes milliseconds and is held in memory."""

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
    """Measure a model of a run on the run's test jets and write the results into its folder.

    Args:
        run: Folder of the run (path or URI).
        name: Name of the model, as under <run>/model/.
        trial: The exported trial, or 'auto' for the best of the search. The report shows its
            options and its training curve.
        baseline: Folder (path or URI) of an earlier run, whose model is measured on the same jets;
            or 'none'.
        settings: The mode and the limits of the gate.
        replicates: Number of bootstrap draws.
        batch_size: Jets per call of the model, or fewer where memory is short.

    Returns:
        The content of metrics.json.

    Raises:
        InputError: If the run, its model or its test data are missing, if the data lack an
            observer, or if the baseline was tested on other jets.
    """
    uri = storage.absolute(run)
    earlier = None if baseline == NONE else storage.absolute(baseline)
    records = inputs.read_records(uri, trial)
    test = inputs.open_prepared_test_set(uri)
    columns = test.observers()
    check_observers(columns, RunFolder(uri).data_config)

    num_train = num_val = 0
    if records.run.record.jet_columns:  # else no trees are trained
        data = records.run.record.data
        num_train, num_val = round(data["train"].jets * records.data_fraction), data["val"].jets
    if warning := memory_warning(len(test), num_train, num_val):
        print(warning, file=sys.stderr)

    batch_of_model = batch_size_for(test, records.export, batch_size)
    session = load_session(uri, name)
    predictions = predict(session, test, batch_of_model)
    input_importances = importances(
        session,
        test,
        columns,
        predictions.inference.jets_per_second,
        settings.seed,
        batch_of_model,
    )
    del session  # ONNX Runtime keeps the memory of its largest batch
    baseline_correction = predict_baseline(earlier, columns, batch_size) if earlier else None
    trees = compare(records.run, columns, fraction=records.data_fraction, seed=settings.seed)
    return_freed_memory()
    metrics = measure(
        Subject(run=uri, model=name, baseline=earlier),
        records,
        columns,
        predictions,
        label_reason(
            predictions.labels, inputs.label_values(predictions.labels, columns, test), columns
        ),
        baseline_correction,
        trees,
        settings,
        replicates,
    )
    return_freed_memory()
    metrics = dataclasses.replace(metrics, importances=input_importances)

    # Rounded before both are written, so that report and metrics.json agree in all digits.
    metrics = results.round_floats(metrics)
    results.write(uri, records.documents(metrics))
    return metrics


def parser() -> Parser:
    """Return the parser of the command line."""
    command = Parser(prog="python -m evaluating.evaluate", description=__doc__)
    command.add_argument(
        "--run",
        required=True,
        metavar="URI",
        help="run folder: a directory or s3://bucket/prefix/run-id",
    )
    command.add_argument(
        "--name", required=True, metavar="NAME", help="name of the model: a folder of <run>/model/"
    )
    command.add_argument(
        "--trial",
        default=AUTO,
        metavar="NAME",
        help="trial that was exported, for the report (default: the search's best)",
    )
    command.add_argument(
        "--baseline",
        default=NONE,
        metavar="URI",
        help="folder of an earlier run, to be compared on the same jets (default: none)",
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
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the bootstrap (default: %(default)s)",
    )
    command.add_argument(
        "--replicates",
        type=int,
        default=REPLICATES,
        metavar="N",
        help="bootstrap draws (default: %(default)s)",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help="jets per call of the model, fewer where memory is short (default: %(default)s)",
    )
    return command


def main(argv: list[str] | None = None) -> int:
    """Evaluate the model that the command line names and return the exit code."""
    options = vars(parser().parse_args(argv))

    def body() -> None:
        for name, lowest in MIN_VALUES.items():
            require(
                options[name] >= lowest, f"--{flag(name)} {options[name]}: give at least {lowest}"
            )
            highest = MAX_VALUES[name]
            require(
                options[name] <= highest,
                f"--{flag(name)} {options[name]}: give at most {highest:,}",
            )
        for name in LIMITS:
            value = options[name]
            require(math.isfinite(value), f"--{flag(name)} {value}: give a number")
            # The gain may be required to exceed any number; the other limits are sizes.
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
