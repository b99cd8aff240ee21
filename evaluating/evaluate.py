"""Measures an exported model on the test jets and judges it: metrics.json, report.html and the
figures in the run folder.

    python -m physics.evaluate --run runs/<run id> --name <model name> [--trial NAME] [--baseline
        runs/<earlier run id>]
                               [--min-improvement 0] [--max-closure 0.02]

What is measured is what is deployed: <run>/model/<name>/1/model.onnx, run by ONNX Runtime. Not
passing the gate is an answer, not an error: the exit code is 0, and metrics.json says `passed:
false` with the reasons; the pipeline's condition reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.choices import MAX_CLOSURE, MIN_IMPROVEMENT
from common.cli import Parser, require, run_main
from common.config import AUTO, NONE
from common.errors import InputError, unknown
from common.machine import processor
from common.progress import Progress
from physics import uncertainty
from physics.bootstrap import REPLICATES
from physics.gate import gate
from physics.interval import percent
from physics.metrics import NEEDED, measure
from reporting.headline import headline
from reporting.report import Documents, figures_of, render

# a ParticleNet of 100 candidates then takes about 1 GB; larger batches are no faster on a CPU
BATCH_SIZE = 1000


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
) -> dict:
    """Measure model `name` of the run folder `run` (URI), write metrics.json, figures and
    report.html there; returns the metrics.

    trial: the one that was exported ('auto': the search's best); its options and training curve go
    into the report. baseline: an earlier run's folder (URI) whose model is measured on the same
    jets, or 'none'.

    Raises InputError where the run, its model or its test data are missing or lack an observer, or
    the baseline's are other jets.
    """
    run = storage.absolute(run)
    found = read_documents(run, trial)
    test = open_test_set(run)
    columns = check_observers(test.observers(), f"{run}/config/data.yaml")
    answers = predict(load_session(run, name), test, batch_size)
    earlier = (
        None
        if baseline == NONE
        else predict_baseline(storage.absolute(baseline), columns, batch_size)
    )
    with Progress("bootstrap", total=replicates + 1, unit="draws") as progress:
        metrics = measure(
            columns,
            answers.correction,
            baseline=earlier,
            replicates=replicates,
            seed=seed,
            advance=progress.advance,
        )
    metrics |= {"inference": answers.inference, **_uncertainty(columns, answers, replicates, seed)}
    passed, reasons = gate(metrics, min_improvement, max_closure)
    config = {"min_improvement": min_improvement, "max_closure": max_closure, "seed": seed}
    names = {
        "run": run,
        "run_id": found["run"].get("run_id", storage.name(run)),
        "model": name,
        "trial": found.pop("trial"),
    }
    names["baseline"] = None if baseline == NONE else storage.absolute(baseline)
    metrics = {"passed": passed, "reasons": reasons, **names, "config": config, **metrics}
    metrics = rounded({**metrics, "headline": headline(metrics, found["search"])})
    storage.write_json(storage.join(run, "metrics.json"), metrics)
    write_report(run, Documents(metrics=metrics, **found))
    return metrics


def _uncertainty(
    columns: Mapping[str, np.ndarray], answers: Answers, replicates: int, seed: int
) -> dict:
    """{"uncertainty": ...} of a quantile network; nothing of another one."""
    if not uncertainty.bands(answers.columns):
        return {}
    with Progress("bootstrap of the uncertainties", total=replicates + 1, unit="draws") as progress:
        found = uncertainty.measure(
            columns,
            answers.output,
            answers.columns,
            replicates=replicates,
            seed=seed,
            advance=progress.advance,
        )
    return {"uncertainty": found} if found else {}


def read_documents(run: str, trial: str = AUTO) -> dict[str, Any]:
    """run.json, search.json, model/export.json, service.json, and the trial's name, history and
    options; None for what is missing.

    Raises InputError without a run.json: then it is no run folder.
    """
    if not storage.exists(storage.join(run, "run.json")):
        raise InputError(
            f"{run} is no run folder: it has no run.json; give the folder that the prepare step"
            " made"
        )
    search = storage.find_json(storage.join(run, "search.json"))
    trial = (search or {}).get("optimal") if trial == AUTO else trial
    return {
        "run": storage.read_json(storage.join(run, "run.json")),
        "search": search,
        "trial": trial,
        "history": (
            storage.find_json(storage.join(run, "trials", trial, "history.json")) if trial else None
        ),
        "options": (
            storage.find_json(storage.join(run, "trials", trial, "options.json")) if trial else None
        ),
        "export": storage.find_json(storage.join(run, "model", "export.json")),
        "service": storage.find_json(storage.join(run, "service.json")),
    }


# -------------------------------------------------------------------------------------- the model


def open_test_set(run: str):
    """The run's test jets: an object with __len__, observers() -> {name:

    (N,)} and batch(index).inputs -> {name: tensor}.
    """
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

    return Dataset.open(
        storage.join(run, "data", "test.json"),
        DataConfig.load(storage.join(run, "config", "data.yaml")),
    )


def check_observers(columns: Mapping[str, np.ndarray], where: str) -> Mapping[str, np.ndarray]:
    """The observers, or InputError naming the first one that the physics needs and the data config
    does not list.
    """
    for name in NEEDED:
        if name not in columns:
            raise InputError(
                f"{where}: the evaluation needs the observer {name}, and 'observers' lists only"
                f" {', '.join(columns) or 'nothing'}; add it"
            )
    return columns


def load_session(run: str, name: str):
    """ONNX Runtime's session of model `name` in the run folder.

    Raises InputError where there is none, naming those there are.
    """
    import onnxruntime

    uri = storage.join(run, "model", name, "1", "model.onnx")
    if not storage.exists(uri):
        models = sorted(
            {storage.name(entry.uri[: -len("/1/model.onnx")]) for entry in _models(run)}
        )
        raise InputError(
            f"{unknown('model', name, models)} (looked for {uri}); the export step writes it"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = storage.download(uri, Path(folder) / "model.onnx")
        options = onnxruntime.SessionOptions()
        # As many threads as this process may use: left alone, onnxruntime counts the machine's
        # cores.
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime))


def _models(run: str) -> list[storage.Entry]:
    return [
        entry
        for entry in storage.entries(storage.join(run, "model"))
        if entry.uri.endswith("/1/model.onnx")
    ]


def _providers(onnxruntime) -> list[str]:
    """A GPU where this build of ONNX Runtime can use one, else the CPU."""
    return [
        name
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What an exported model answered to the jets of a test set, and how fast."""

    output: np.ndarray
    """(N, C) float32: the median or only answer first, then the further quantiles."""
    columns: list[str]
    """What the C columns are ('median', 'q16', 'q84'), as the model's own metadata say; empty where
    they do not.
    """
    inference: dict[str, Any]
    """Speed of ONNX Runtime by itself, and on what: see `_speed`."""

    @property
    def correction(self) -> np.ndarray:
        """log(pT_gen / pT) as the model sees it: (N,)."""
        return self.output[:, 0]


def predict(session, test, batch_size: int = BATCH_SIZE) -> Answers:
    """The model's answers for all jets of a test set, each asked once.

    Raises InputError if the model wants inputs that it lacks.
    """
    wanted = [entry.name for entry in session.get_inputs()]
    columns = json.loads(session.get_modelmeta().custom_metadata_map.get("output_columns", "[]"))
    batches, seconds = [np.empty((0, max(len(columns), 1)), dtype=np.float32)], 0.0
    with Progress("evaluating", total=len(test), unit="jets") as progress:
        for start in range(0, len(test), batch_size):
            index = np.arange(start, min(start + batch_size, len(test)))
            inputs = _inputs(test.batch(index).inputs, wanted)
            started = time.perf_counter()
            answer = session.run(None, inputs)[0]
            seconds += time.perf_counter() - started
            batches.append(answer.reshape(len(index), -1))
            progress.advance(len(index))
    output = np.concatenate(batches[1:] or batches)
    if columns and len(columns) != output.shape[1]:
        raise InputError(
            f"the model's metadata name the output columns {', '.join(columns)}, and it answers"
            f" with {output.shape[1]}"
        )
    return Answers(
        output=output, columns=columns, inference=_speed(session, len(test), seconds, batch_size)
    )


def _inputs(given: Mapping[str, Any], wanted: list[str]) -> dict[str, np.ndarray]:
    for name in wanted:
        if name not in given:
            raise InputError(
                f"{unknown('input', name, given)} (the model wants {', '.join(wanted)}); export it"
                " with the run's own data config"
            )
    return {name: np.asarray(given[name]) for name in wanted}


def _speed(session, num_jets: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """Jets/s of ONNX Runtime's own time, inputs prepared and in memory; null without jets."""
    import onnxruntime

    return {
        "jets_per_second": num_jets / seconds if seconds else None,
        "batch_size": min(batch_size, num_jets),
        "threads": session.get_session_options().intra_op_num_threads,
        "provider": session.get_providers()[0].removesuffix("ExecutionProvider"),
        "processor": processor()[0],
        "onnxruntime": onnxruntime.__version__,
    }


def predict_baseline(
    run: str, columns: Mapping[str, np.ndarray], batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """An earlier run's answers for the jets whose observers are `columns`, (N,) float32: its own
    inputs, its own exported model.

    Raises InputError where that run has no model, or its test set does not hold the same jets in
    the same order.
    """
    measured = storage.join(run, "metrics.json")
    if not storage.exists(measured):
        raise InputError(
            f"--baseline {run} has no metrics.json; give the folder of a run that was evaluated"
        )
    test = open_test_set(run)
    theirs = test.observers()
    for name in NEEDED:
        if (
            name not in theirs
            or len(theirs[name]) != len(columns[name])
            or not np.array_equal(theirs[name], columns[name])
        ):
            raise InputError(
                f"--baseline {run} was tested on other jets ({len(test):,}, here"
                f" {len(columns[name]):,}; {name} differs): a gain is measured on the same jets."
                " Give both runs the same --data-test, and data configs with the same selection"
            )
    return predict(
        load_session(run, storage.read_json(measured)["model"]), test, batch_size
    ).correction


# ---------------------------------------------------------------------------------------- results


def rounded(value: Any, digits: int = 7) -> Any:
    """The same structure with floats of `digits` significant digits: more than the intervals
    deserve, and readable.
    """
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, digits) for one in value]
    return (
        float(f"{value:.{digits}g}") if isinstance(value, float) and math.isfinite(value) else value
    )


def write_report(run: str, documents: Documents) -> None:
    """report.html, and each figure as figures/<name>.pdf beside it."""
    from reporting.drawing import pdf

    figures = list(figures_of(documents))
    for drawing in figures:
        storage.write_bytes(storage.join(run, "figures", f"{drawing.name}.pdf"), pdf(drawing))
    storage.write_text(storage.join(run, "report.html"), render(documents, figures))


def verdict(metrics: Mapping) -> list[str]:
    """The outcome in a few lines for the console."""
    gain, closure = metrics["gain"], metrics["closure"]
    lines = [
        f"resolution gain over the standard JEC: {percent(gain) if gain else 'not measured'} "
        f"(pT > 30 GeV, {metrics['num_measured']:,} test jets)"
    ]
    if metrics.get("gain_over_baseline"):
        lines.append(
            f"resolution gain over {storage.name(metrics['baseline'])}:"
            f" {percent(metrics['gain_over_baseline'])}"
        )
    lines += [
        f"closure, {record['region']}, pT > {closure['from_gev']:g} GeV:"
        f" {percent(record['model'], 100, 2)}"
        for record in closure["bins"]
        if record["pt_low"] == closure["from_gev"] and record["pt_high"] is None
    ]
    lines += [
        f"flavour spread removed, {region}: {percent(one['reduction'])}"
        for region, one in metrics["flavour"]["regions"].items()
    ]
    if found := metrics.get("uncertainty"):
        band = found["bands"][0]
        covered, wanted = percent(band["coverage"], 100, sign=""), f"{100 * band['nominal']:g} %"
        lines.append(
            f"jets between the model's {band['low']} and {band['high']}: {covered}, wanted {wanted}"
        )
    return [
        *lines,
        "gate passed" if metrics["passed"] else "gate not passed:",
        *(f"  - {reason}" for reason in metrics["reasons"]),
    ]


def parser() -> Parser:
    found = Parser(prog="python -m physics.evaluate", description=__doc__)
    found.add_argument(
        "--run",
        required=True,
        metavar="URI",
        help="run folder: a directory or s3://bucket/prefix/run-id",
    )
    found.add_argument("--name", required=True, help="model name, as under <run>/model/")
    found.add_argument(
        "--trial",
        default=AUTO,
        help="trial that was exported, for the report (default: the search's best)",
    )
    found.add_argument(
        "--baseline",
        default=NONE,
        metavar="URI",
        help="folder of an earlier run, to be compared on the same jets",
    )
    gates = found.add_argument_group("gate")
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
    found.add_argument("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    found.add_argument(
        "--replicates", type=int, default=REPLICATES, help="bootstrap draws (default %(default)s)"
    )
    found.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="jets a call of the model (default %(default)s)",
    )
    return found


def main(argv: list[str] | None = None) -> int:
    options = vars(parser().parse_args(argv))

    def body() -> None:
        for name, lowest in {
            "replicates": 20,
            "batch_size": 1,
            "max_closure": 0,
            "seed": 0,
        }.items():
            require(
                options[name] >= lowest,
                f"--{name.replace('_', '-')} {options[name]}: give at least {lowest}",
            )
        require(
            math.isfinite(options["min_improvement"]),
            f"--min-improvement {options['min_improvement']}: give a number",
        )
        metrics = evaluate(**options)
        print(
            "\n".join(
                [*verdict(metrics), f"report: {storage.join(metrics['run'], 'report.html')}"]
            ),
            flush=True,
        )

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
