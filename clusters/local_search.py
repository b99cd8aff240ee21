"""A Katib Experiment on one machine: Optuna proposes, processes train, the metrics file is read by
Katib's rule.

The study lies in a SQLite file, so that an interrupted search goes on: finished trials count, and
those that were running start again with the same name and parameters (and resume from their own
checkpoints). A search that failed is tried again from the beginning, in a study of its own and with
other trial names, as Katib's would be. One that has ended goes on when it is asked for again with a
larger maxTrialCount.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import itertools
import math
import time
import warnings
from pathlib import Path
from typing import Any

from clusters import early_stopping, katib
from clusters.processes import Replicas, cores, stop
from clusters.protocol import ExperimentResult, Manifest, Observation, Report, Trial, TrialStatus
from clusters.trials import COUNTED, FAILED, best_trial, progress_line
from common.errors import ClusterError, DeadlineError, InputError, unknown
from common.progress import clock

ALGORITHMS = ("random", "tpe", "cmaes", "sobol", "grid")
POLL = 0.2  # seconds
# Katib's tpe draws only its first batch at random; Optuna's default of 10 is half of a search of 20
STARTUP_TRIALS = 5
HEARTBEAT = 15.0  # seconds between two lines about trials that are still running


@dataclasses.dataclass(kw_only=True)
class Running:
    """A trial whose processes run."""

    number: int
    name: str
    assignments: dict[str, str]
    job: Replicas
    metrics: Path
    rule: early_stopping.StopRule | None
    started: float = dataclasses.field(default_factory=time.monotonic)
    reported: int = 0
    """How many values of the objective the study knows."""

    @property
    def deadline(self) -> float:
        """Seconds that the trial's own job may take."""
        return self.job.manifest["spec"].get("runPolicy", {}).get("activeDeadlineSeconds", math.inf)


class LocalSearch:
    """Runs one Experiment manifest.

    The order and the parameters of random, sobol and grid depend on the seed alone.
    """

    def __init__(self, manifest: Manifest, *, folder: Path, root: Path, report: Report) -> None:
        katib.check_experiment(manifest)
        self.manifest, self.spec, self.name = (
            manifest,
            manifest["spec"],
            manifest["metadata"]["name"],
        )
        self.folder, self.root, self.report = folder / self.name, root, report
        self.folder.mkdir(parents=True, exist_ok=True)
        self.algorithm = self.spec["algorithm"]["algorithmName"]
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"on one machine: {unknown('algorithm', self.algorithm, ALGORITHMS)}")
        self.seed = int(
            {
                s["name"]: s["value"] for s in self.spec["algorithm"].get("algorithmSettings", [])
            }.get("random_state", 0)
        )
        self.running: list[Running] = []
        self.attempt, self.study = self._open_study()
        self.planned = _planned(
            self.spec["parameters"], self.algorithm, self.seed, self._asked_trials()
        )
        self.maximum = (
            min(self._asked_trials(), len(self.planned))
            if self.planned is not None
            else self._asked_trials()
        )
        self.parallel = self._parallel()
        self._spoke, self._best_told = time.monotonic(), ""

    def run(self, deadline: float) -> ExperimentResult:
        """Run until all trials are done or the goal is met.

        Raises ClusterError and DeadlineError; leaves no process behind.
        """
        end = time.monotonic() + deadline
        if self._finished():
            return self._result()
        self.report(
            f"live: optuna-dashboard sqlite:///{self.folder / 'study.db'} (pip install"
            " optuna-dashboard)"
        )
        try:
            self._restart_interrupted()
            while not self._finished():
                if time.monotonic() > end:
                    raise DeadlineError(
                        f"experiment {self.name}: {self._counts()} when its {clock(deadline)} were"
                        " over"
                    )
                self._fill()
                self._collect()
                self._heartbeat()
                time.sleep(POLL)
        finally:
            stop(*(process for trial in self.running for process in trial.job.processes.values()))
        for trial in self.running:  # the goal has been reached without them
            self._end(trial, "Killed", "the goal was reached")
        return self._result()

    # ---------------------------------------------------------------------------------- the study

    def _open_study(self) -> tuple[int, Any]:
        """The first attempt that has not failed, new where all have."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{self.folder / 'study.db'}")
        direction = self.spec["objective"]["type"]
        for attempt in itertools.count(1):
            name = self.name if attempt == 1 else f"{self.name}-{attempt}"
            study = optuna.create_study(
                storage=self.storage, study_name=name, direction=direction, load_if_exists=True
            )
            if not self._has_failed(_trials(study)):
                return attempt, study
            self.report(f"experiment {self.name} failed before; it is run again")
        raise AssertionError("itertools.count does not end")

    def _has_failed(self, trials: list[Trial]) -> bool:
        """Katib fails the experiment at, not above, maxFailedTrialCount; one that ends without a
        success has failed as well.
        """
        failed = _failed(trials)
        most = self.spec.get("maxFailedTrialCount", self._asked_trials())
        return bool(failed) and (failed >= most or failed >= self._asked_trials())

    def _asked_trials(self) -> int:
        return self.spec.get("maxTrialCount", 30)

    def _parallel(self) -> int:
        asked = self.spec.get("parallelTrialCount", 3)
        parallel = max(1, min(asked, cores(), self.maximum))
        if parallel < asked:
            self.report(
                f"{asked} trials at a time asked; {parallel} at a time here ({cores()} cores,"
                f" {self.maximum} trials)"
            )
        return parallel

    def _made(self) -> list[Any]:
        """The study's trials that were made whole; one that was cut off while its parameters were
        drawn never counts.
        """
        return [
            trial for trial in self.study.get_trials(deepcopy=False) if "made" in trial.user_attrs
        ]

    def _propose(self) -> tuple[int, str, dict[str, str]]:
        """A new trial's number in the study, its name, and its assignments as text."""
        number = len(self._made())
        # A sampler of its own for each trial: what it draws depends on the seed and the number, not
        # on restarts before it.
        fixed = self.planned[number] if self.planned is not None else {}
        startup = max(STARTUP_TRIALS, self.spec.get("parallelTrialCount", 3))
        self.study.sampler = _sampler(self.algorithm, self.seed * 100_003 + number, fixed, startup)
        distributions = {p["name"]: _distribution(p) for p in self.spec["parameters"]}
        trial = self.study.ask(distributions)
        assignments = {
            p["name"]: _text(p, trial.params[p["name"]]) for p in self.spec["parameters"]
        }
        name = f"{self.study.study_name}-{number:03d}"
        # As in Katib, the rule is settled with what has succeeded when the trial is made, and is
        # part of it.
        rule = early_stopping.rule_for(self.manifest, self._succeeded_values())
        made = {
            "name": name,
            "parameters": assignments,
            "started": _now(),
            "rule": dataclasses.asdict(rule) if rule else None,
        }
        self._note(trial.number, "made", made)
        return trial.number, name, assignments

    def _succeeded_values(self) -> list[list[float]]:
        """The objective's values, in order, of each trial that has succeeded."""
        done = [
            t
            for t in self.study.get_trials(deepcopy=False)
            if t.user_attrs.get("ended", {}).get("status") == "Succeeded"
        ]
        return [
            [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
            for trial in done
        ]

    def _note(self, number: int, key: str, value: dict[str, Any]) -> None:
        """One record of a trial in one write, so that it is there whole or not at all."""
        self.storage.set_trial_user_attr(self._trial_id(number), key, value)

    def _trial_id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    # ---------------------------------------------------------------------------------- processes

    def _restart_interrupted(self) -> None:
        for trial in self._made():
            if not trial.state.is_finished():
                made = trial.user_attrs["made"]
                self.report(f"{made['name']}: taken up again")
                self._start(trial.number, made["name"], made["parameters"])

    def _fill(self) -> None:
        while len(self.running) < self.parallel and len(self._made()) < self.maximum:
            self._start(*self._propose())

    def _start(self, number: int, name: str, assignments: dict[str, str]) -> None:
        metrics = self.folder / name / "metrics.log"
        source = (
            self.spec.get("metricsCollectorSpec", {})
            .get("source", {})
            .get("fileSystemPath", {})
            .get("path", "")
        )
        job = Replicas(
            katib.substitute(self.manifest, assignments, name),
            folder=self.folder / name,
            root=self.root,
            threads=max(1, cores() // self.parallel),
            rewrites={source: str(metrics)} if source else {},
        )
        # a trial that resumes writes the epochs it already had again
        metrics.unlink(missing_ok=True)
        made = next(trial for trial in self._made() if trial.number == number).user_attrs["made"]
        rule = early_stopping.StopRule(**made["rule"]) if made.get("rule") else None
        job.start()
        self.running.append(
            Running(
                number=number,
                name=name,
                assignments=assignments,
                job=job,
                metrics=metrics,
                rule=rule,
            )
        )
        chosen = ", ".join(f"{key} {value}" for key, value in assignments.items())
        self._say(f"{name} started: {chosen}")

    def _collect(self) -> None:
        """Record the trials that have ended, and end those that shall go no further."""
        for trial in list(self.running):
            code = trial.job.poll()
            values = self._report_values(trial)
            if code is not None:
                self._record(trial, code)
            elif trial.rule and trial.rule.stops(values, self.spec["objective"]["type"]):
                trial.job.stop()
                self._report_values(trial)
                limit = f"{self.spec['objective']['objectiveMetricName']} {trial.rule.value:.5g}"
                self._end(
                    trial,
                    "EarlyStopped",
                    f"worse than {limit} after {trial.rule.start_step} epochs",
                )
            elif time.monotonic() - trial.started > trial.deadline:
                trial.job.stop()
                self._end(
                    trial, "Failed", f"active longer than its deadline of {clock(trial.deadline)}"
                )
            else:
                continue
            self.running.remove(trial)
            self._tell_best()
            self._say(self._counts())

    def _report_values(self, trial: Running) -> list[float]:
        """The objective's values so far, in order; the study learns of new ones, so that a
        dashboard shows them live.
        """
        text = trial.metrics.read_text(errors="replace") if trial.metrics.exists() else ""
        values = katib.values(text, self.spec["objective"]["objectiveMetricName"])
        for step in range(trial.reported, len(values)):
            self.storage.set_trial_intermediate_value(
                self._trial_id(trial.number), step + 1, values[step]
            )
        trial.reported = len(values)
        return values

    def _record(self, trial: Running, code: int) -> None:
        """Record a trial whose processes have ended by themselves."""
        value = katib.objective_value(self.manifest, self._observe(trial.metrics))
        objective = self.spec["objective"]["objectiveMetricName"]
        if code != 0:
            self._end(trial, "Failed", trial.job.reason())
        elif value is None:
            self._end(
                trial,
                "MetricsUnavailable",
                f"ended well, but its metrics file has no finite '{objective}'",
            )
        else:
            self._end(trial, "Succeeded", "")

    def _end(self, trial: Running, status: TrialStatus, reason: str) -> None:
        """Write down how a trial ended.

        Optuna calls one that was stopped early pruned: it is there to learn from, as in Katib.
        """
        from optuna.trial import TrialState

        seen = self._observe(trial.metrics)
        observed = {name: dataclasses.asdict(observation) for name, observation in seen.items()}
        self._note(
            trial.number,
            "ended",
            {"status": status, "reason": reason, "metrics": observed, "finished": _now()},
        )
        if status == "Succeeded":
            self.study.tell(trial.number, katib.objective_value(self.manifest, seen))
            return
        self.study.tell(
            trial.number, state=TrialState.PRUNED if status == "EarlyStopped" else TrialState.FAIL
        )
        self._say(f"{trial.name}: {status}: {reason}")

    def _observe(self, path: Path) -> dict[str, Observation]:
        text = path.read_text(errors="replace") if path.exists() else ""
        return katib.observations(text, katib.metric_names(self.manifest))

    # ------------------------------------------------------------------------------ end and words

    def _finished(self) -> bool:
        trials = self._trials()
        most = self.spec.get("maxFailedTrialCount", self._asked_trials())
        if self._has_failed(trials) and _failed(trials) >= most:
            raise ClusterError(
                f"experiment {self.name} failed: {most} failed trials end the"
                f" search\n{_reasons(trials)}"
            )
        return self._goal_met(trials) or (not self.running and len(trials) >= self.maximum)

    def _goal_met(self, trials: list[Trial]) -> bool:
        goal = self.spec["objective"].get("goal")
        best = best_trial(self.manifest, trials)
        if goal is None or best is None:
            return False
        value = katib.objective_value(self.manifest, best.metrics)
        return value <= goal if self.spec["objective"]["type"] == "minimize" else value >= goal

    def _trials(self) -> list[Trial]:
        return _trials(self.study)

    def _result(self) -> ExperimentResult:
        trials = self._trials()
        best = best_trial(self.manifest, trials)
        if best is None:
            raise ClusterError(f"experiment {self.name}: no trial succeeded\n{_reasons(trials)}")
        return ExperimentResult(name=self.name, trials=trials, optimal=best.name)

    def _counts(self) -> str:
        """One line of progress, with the words of the cluster's home."""
        running = [
            Trial(name=trial.name, status="Running", parameters={}, metrics={})
            for trial in self.running
        ]
        return progress_line(
            {"spec": {**self.spec, "maxTrialCount": self.maximum}}, [*self._trials(), *running]
        )

    def _objective_text(self, metrics: dict[str, Observation]) -> str:
        value = katib.objective_value(self.manifest, metrics)
        return (
            f"{self.spec['objective']['objectiveMetricName']} {value:.5f}"
            if value is not None
            else "no value yet"
        )

    def _heartbeat(self) -> None:
        if time.monotonic() - self._spoke > HEARTBEAT:
            states = [
                f"{trial.name[len(self.name) + 1 :]}:"
                f" {self._objective_text(self._observe(trial.metrics))}"
                for trial in self.running
            ]
            self._say(f"running {'; '.join(states)}{self._time_left()}")

    def _time_left(self) -> str:
        """An estimate from the mean duration of the trials that ended since this process began;
        nothing before the first.
        """
        done = [t for t in self._trials() if t.finished]
        if not done:
            return ""
        mean = sum(_seconds(t.started, t.finished) for t in done) / len(done)
        spent = sum(min(time.monotonic() - trial.started, mean) for trial in self.running)
        left = (mean * (self.maximum - len(done)) - spent) / self.parallel
        # a trial longer than the mean of the others is no news
        return f"; about {clock(left)} left" if left > POLL else ""

    def _tell_best(self) -> None:
        best = best_trial(self.manifest, self._trials())
        if best and best.name != self._best_told:
            self._best_told = best.name
            self._say(
                f"best so far: {best.name}:"
                f" {', '.join(f'{name} {value}' for name, value in best.parameters.items())}"
            )

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        self.report(line)


def _trials(study: Any) -> list[Trial]:
    """Finished trials of a study."""
    records = [
        t.user_attrs
        for t in study.get_trials(deepcopy=False)
        if t.state.is_finished() and "ended" in t.user_attrs
    ]
    trials = []
    for record in records:
        ended = dict(record["ended"])
        metrics = {name: Observation(**seen) for name, seen in ended.pop("metrics").items()}
        made = {name: value for name, value in record["made"].items() if name != "rule"}
        trials.append(Trial(**made, **ended, metrics=metrics))
    return trials


def _failed(trials: list[Trial]) -> int:
    return sum(trial.status in FAILED for trial in trials)


# ---------------------------------------------------------------------------------- search spaces


def _distribution(parameter: dict[str, Any]):
    """Optuna's distribution of a Katib parameter. Lists stay text, in the order given."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = parameter["feasibleSpace"]
    if "list" in space:
        return CategoricalDistribution(space["list"])
    log = space.get("distribution") == "logUniform"
    if parameter["parameterType"] == "int":
        return IntDistribution(
            int(space["min"]), int(space["max"]), log=log, step=int(space.get("step", 1))
        )
    step = float(space["step"]) if "step" in space else None
    with _quiet():  # it warns where the range is no multiple of the step, which Katib allows
        return FloatDistribution(float(space["min"]), float(space["max"]), log=log, step=step)


def _sampler(algorithm: str, seed: int, fixed: dict[str, Any], startup: int):
    """Optuna's sampler under Katib's name; `fixed` are the values that a planned point has already
    settled, `startup` the number of trials that tpe draws at random."""
    from optuna import samplers

    with _quiet():
        if algorithm == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=startup)
        if algorithm == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        random = samplers.RandomSampler(seed=seed)
        return samplers.PartialFixedSampler(fixed, random) if fixed else random


def _planned(
    parameters: list[dict[str, Any]], algorithm: str, seed: int, count: int
) -> list[dict[str, Any]] | None:
    """The points of an algorithm that does not learn from results (grid, sobol), in order;

    None for the others.
    """
    distributions = {p["name"]: _distribution(p) for p in parameters}
    if algorithm == "grid":
        return [
            dict(zip(distributions, point, strict=True))
            for point in itertools.product(*map(_grid, distributions.values()))
        ]
    if algorithm == "sobol":
        from scipy.stats import qmc

        with _quiet():  # it warns where the count is no power of two
            points = qmc.Sobol(len(distributions), scramble=True, rng=seed).random(count)
        return [
            {name: _at(d, u) for (name, d), u in zip(distributions.items(), point, strict=True)}
            for point in points
        ]
    return None


def _grid(distribution: Any) -> list[Any]:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    if distribution.step is None:
        raise InputError("algorithm grid needs a step for every double, or a list")
    count = int((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def _at(distribution: Any, u: float) -> Any:
    """The value at the quantile u in [0, 1) of a distribution."""
    if hasattr(distribution, "choices"):
        return distribution.choices[int(u * len(distribution.choices))]
    low, high = distribution.low, distribution.high
    if isinstance(low, int):
        if distribution.log:
            return min(high, int(math.exp(math.log(low) + u * math.log((high + 1) / low))))
        return low + distribution.step * int(u * ((high - low) // distribution.step + 1))
    value = (
        math.exp(math.log(low) + u * math.log(high / low))
        if distribution.log
        else low + u * (high - low)
    )
    return (
        low + round((value - low) / distribution.step) * distribution.step
        if distribution.step
        else value
    )


def _text(parameter: dict[str, Any], value: Any) -> str:
    return (
        f"{value:.8g}"
        if parameter["parameterType"] == "double" and not isinstance(value, str)
        else str(value)
    )


# ------------------------------------------------------------------------------------ small words


def _reasons(trials: list[Trial]) -> str:
    """The three most common reasons, each with how often it came and its last line."""
    counted = collections.Counter(
        trial.reason.splitlines()[-1]
        for trial in trials
        if trial.reason and trial.status not in COUNTED
    )
    return "\n".join(f"  {count} x {reason}" for reason, count in counted.most_common(3))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _seconds(started: str, finished: str) -> float:
    return (
        datetime.datetime.fromisoformat(finished) - datetime.datetime.fromisoformat(started)
    ).total_seconds()


@contextlib.contextmanager
def _quiet():
    """Without the warnings that a sampler is experimental, or that a Sobol sequence is no power of
    two long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
