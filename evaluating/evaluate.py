"""Measure an exported model on the test jets, judge it, and report.

    python -m physics.evaluate --run runs/<run id> --name <model name> [--trial NAME]
        [--baseline runs/<earlier run id>] [--min-improvement 0] [--max-closure 0.02]

It writes metrics.json, report.html and the figures into the run's folder. What is measured is what
is deployed: <run>/model/<name>/1/model.onnx, run by ONNX Runtime. Not passing the gate is an
answer, not an error: the exit code is 0, and metrics.json says `passed: false` with the reasons;
the pipeline's condition reads it.
"""

from __future__ import annotations

import math
import sys

from common import storage
from common.choices import MAX_CLOSURE, MIN_IMPROVEMENT
from common.cli import Parser, require, run_main
from common.config import AUTO, NONE
from common.layout import RunFolder
from common.measurements import GateSettings
from common.records import MetricsRecord
from evaluating import inputs, results
from evaluating.inference import BATCH_SIZE, load_session, predict, predict_baseline
from evaluating.measurement import Subject, measured
from physics.bootstrap import REPLICATES

# With fewer draws the ends of a 95 % interval would rest on one or none.
LEAST = {"replicates": 20, "batch_size": 1, "max_closure": 0, "seed": 0}
"""Option -> the least value that can be meant."""


def evaluate(
    run: str,
    name: str,
    *,
    trial: str = AUTO,
    baseline: str = NONE,
    min_improvement: float = MIN_IMPROVEMENT,
    max_closure: float = MAX_CLOSURE,
    seed: int = 0,
    replicates: int = REPLICATES,
    batch_size: int = BATCH_SIZE,
) -> MetricsRecord:
    """Measure model `name` of the run in the folder `run` (URI), and write what was measured there.

    trial: the one that was exported ('auto': the search's best); its options and training curve go
    into the report. baseline: an earlier run's folder (URI) whose model is measured on the same
    jets, or 'none'.

    Raises InputError where the run, its model or its test data are missing or lack an observer, or
    the baseline's are other jets.
    """
    uri = storage.absolute(run)
    earlier = None if baseline == NONE else storage.absolute(baseline)
    read = inputs.read_inputs(uri, trial)
    test = inputs.open_test_set(uri)
    columns = inputs.check_observers(test.observers(), RunFolder(uri).data_config)

    answers = predict(load_session(uri, name), test, batch_size)
    of_baseline = predict_baseline(earlier, columns, batch_size) if earlier else None
    metrics = measured(
        Subject(run=uri, model=name, baseline=earlier),
        read,
        columns,
        answers,
        of_baseline,
        GateSettings(min_improvement=min_improvement, max_closure=max_closure, seed=seed),
        replicates,
    )

    # The report shows the numbers of metrics.json, digit by digit.
    metrics = results.rounded(metrics)
    results.write(uri, read.documents(metrics))
    return metrics


def parser() -> Parser:
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
    gates.add_argument(
        "--min-improvement",
        type=float,
        default=MIN_IMPROVEMENT,
        metavar="X",
        help="per cent (default %(default)s)",
    )
    gates.add_argument(
        "--max-closure",
        type=float,
        default=MAX_CLOSURE,
        metavar="X",
        help="|median response - 1| (default %(default)s)",
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
    options = vars(parser().parse_args(argv))

    def body() -> None:
        for name, lowest in LEAST.items():
            require(
                options[name] >= lowest,
                f"--{name.replace('_', '-')} {options[name]}: give at least {lowest}",
            )
        require(
            math.isfinite(options["min_improvement"]),
            f"--min-improvement {options['min_improvement']}: give a number",
        )
        metrics = evaluate(**options)
        lines = [*results.verdict(metrics), f"report: {RunFolder(metrics.run).report}"]
        print("\n".join(lines), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
