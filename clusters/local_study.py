"""The record of a local search: an Optuna study in a SQLite file.

Each trial of the study has two records as user attributes. `made` is written when the trial is
proposed, `ended` when it has ended. The file outlives the process, so an interrupted search
resumes: finished trials count, the others start again with the same names and parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusters import early_stopping, katib
from clusters.local_sampling import Sampling
from clusters.protocol import Manifest, Report
from clusters.trials import FAILED
from common.records import Observation, Trial, TrialStatus

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial as it was proposed. A restart repeats it with the same name and parameters."""

    number: int
    """Number of the trial in Optuna's study."""
    name: str
    parameters: dict[str, str]
    rule: early_stopping.StopRule | None


def set_damaged_aside(file: Path, report: Report) -> int:
    """Rename a record of a search that is no whole SQLite file; return how many ever were renamed.

    The report is told that the search begins anew.
    """
    if file.exists() and (problem := _damage(file)):
        number = 1 + len(list(file.parent.glob(f"{file.name}.damaged-*")))
        aside = file.with_name(f"{file.name}.damaged-{number}")
        file.rename(aside)
        for name in ("-journal", "-wal", "-shm"):
            file.with_name(file.name + name).unlink(missing_ok=True)
        report(
            f"{file} is damaged ({problem}) and was renamed to {aside.name}: the search begins"
            " anew; the folders of its earlier trials stay"
        )
    return len(list(file.parent.glob(f"{file.name}.damaged-*")))


def _damage(file: Path) -> str:
    """What is wrong with an SQLite file; empty for nothing."""
    if not file.stat().st_size:
        return "it is empty"
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
            connection.text_factory = bytes  # damaged text may be no UTF-8
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # a program that holds a lock on it, such as a dashboard, is no damage
        return "" if "locked" in str(error) else str(error)
    return "" if answer == b"ok" else answer.decode(errors="replace")


class Study:
    """The trials of one Experiment.

    A search that failed is run again in a study of its own. Finished trials are kept. A trial that
    failed for a reason that may pass is tried again under its name, and so resumes from its
    checkpoint. One that would fail again is left out: others are drawn in its place.
    """

    def __init__(self, manifest: Manifest, folder: Path, report: Report) -> None:
        """Open or make the study; a damaged one is set aside with a report."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._manifest = manifest
        file = folder / "study.db"
        self._damaged = set_damaged_aside(file, report)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        self.dropped = 0
        """Trials of failed attempts that are left out, because they would fail again."""
        self._study = self._open(report)

    def close(self) -> None:
        """Close the file. Optuna keeps two descriptors open until Python's garbage collection."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _open(self, report: Report) -> optuna.Study:
        """The first attempt that has not failed, new where all have."""
        import optuna

        name = self._manifest["metadata"]["name"]
        # trials of a lost record have folders, which no other trial may go on from
        attempt = 1 + self._damaged
        failed: optuna.Study | None = None
        while True:
            study = optuna.create_study(
                storage=self._storage,
                study_name=name if attempt == 1 else f"{name}-{attempt}",
                direction=self._manifest["spec"]["objective"]["type"],
                load_if_exists=True,
            )
            if failed is not None:
                self.dropped += self._carry_over(failed, study, report)
            if not has_failed(self._manifest["spec"], _ended_trials(study)):
                return study
            failed = study
            attempt += 1

    def _carry_over(self, failed: optuna.Study, study: optuna.Study, report: Report) -> int:
        """Add to a new attempt what a failed one leaves; return how many trials are left out.

        What was added before, as by an attempt that was killed meanwhile, is not added again.
        """
        import optuna
        from optuna.trial import TrialState

        present = {trial.user_attrs.get("made", {}).get("name") for trial in study.get_trials()}
        is_new = not present
        kept = again = dropped = 0
        for trial in failed.get_trials(deepcopy=False):
            if "made" not in trial.user_attrs:
                continue
            ended = trial.user_attrs.get("ended", {})
            if ended.get("status") in FAILED and not ended.get("transient"):
                dropped += 1
                continue
            is_finished = trial.state.is_finished() and ended.get("status") not in FAILED
            kept, again = kept + is_finished, again + (not is_finished)
            if trial.user_attrs["made"]["name"] in present:
                continue
            attributes = dict(trial.user_attrs)
            if not is_finished:
                attributes.pop("ended", None)
            study.add_trial(
                optuna.trial.create_trial(
                    state=trial.state if is_finished else TrialState.RUNNING,
                    value=trial.value if trial.state == TrialState.COMPLETE else None,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=attributes,
                    intermediate_values=trial.intermediate_values if is_finished else None,
                )
            )
        if is_new:
            report(
                f"experiment {self._manifest['metadata']['name']} failed before: {kept} finished"
                f" trials are kept, {again} that failed for a reason that may pass or were under"
                f" way are tried again, {dropped} that would fail again are left out, and others"
                " are drawn in their place"
            )
        return dropped

    def ended(self) -> list[Trial]:
        """The trials that have ended."""
        return _ended_trials(self._study)

    def has_transient_failures(self) -> bool:
        """Whether a trial failed for a reason that may pass, so that another attempt tries it."""
        trials = self._study.get_trials(deepcopy=False)
        return any(trial.user_attrs.get("ended", {}).get("transient") for trial in trials)

    def interrupted(self) -> list[Proposal]:
        """The trials that were proposed and have not ended."""
        return [
            _proposal(trial.number, trial.user_attrs["made"])
            for trial in self._made()
            if not trial.state.is_finished()
        ]

    def count(self) -> int:
        """How many trials have been proposed."""
        return len(self._made())

    def propose(self, sampling: Sampling) -> Proposal:
        """Add a trial with the next parameters of the algorithm."""
        number = self.count()
        # those that are left out have had their points
        self._study.sampler = sampling.sampler(number + self.dropped)
        trial = self._study.ask(sampling.distributions)
        # As in Katib, the rule follows from what has succeeded when the trial is made, and is part
        # of the trial.
        rule = early_stopping.rule_for(self._manifest, self._succeeded_values())
        made = {
            "name": f"{self._study.study_name}-{number:03d}",
            "parameters": sampling.assignments(trial.params),
            "started": _now(),
            "rule": dataclasses.asdict(rule) if rule else None,
        }
        self._write_record(trial.number, "made", made)
        return _proposal(trial.number, made)

    def record_value(self, number: int, step: int, value: float) -> None:
        """Add a value of the objective, so that a dashboard shows it live. Steps begin at 1."""
        self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)

    def record_end(
        self,
        number: int,
        status: TrialStatus,
        reason: str,
        metrics: dict[str, Observation],
        *,
        transient: bool = False,
    ) -> None:
        """Record how a trial ended; `transient`: it failed for a reason that may pass.

        Optuna calls a trial that was stopped early pruned. Its sampler learns from pruned trials,
        as Katib's does.
        """
        from optuna.trial import TrialState

        observed = {name: dataclasses.asdict(seen) for name, seen in metrics.items()}
        ended = {
            "status": status,
            "reason": reason,
            "metrics": observed,
            "finished": _now(),
            "transient": transient,
        }
        self._write_record(number, "ended", ended)
        if status == "Succeeded":
            self._study.tell(number, katib.objective_value(self._manifest, metrics))
        elif status == "EarlyStopped":
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, state=TrialState.FAIL)

    def _made(self) -> list[optuna.trial.FrozenTrial]:
        """The trials with a `made` record.

        A trial whose process was killed while its parameters were drawn has none and never counts.
        """
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if "made" in trial.user_attrs]

    def _succeeded_values(self) -> list[list[float]]:
        """The objective's values, in order, of each trial that has succeeded."""
        succeeded = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("ended", {}).get("status") == "Succeeded":
                values = trial.intermediate_values
                succeeded.append([values[step] for step in sorted(values)])
        return succeeded

    def _write_record(self, number: int, key: str, record: dict[str, Any]) -> None:
        """Write one record in one transaction, so that it is there whole or not at all."""
        self._storage.set_trial_user_attr(self._trial_id(number), key, record)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def failed_count(trials: list[Trial]) -> int:
    """How many of the trials failed."""
    return sum(trial.status in FAILED for trial in trials)


def too_many_failed(spec: Manifest, trials: list[Trial]) -> bool:
    """Katib fails the experiment at, not above, maxFailedTrialCount."""
    failed = failed_count(trials)
    return failed > 0 and failed >= spec["maxFailedTrialCount"]


def has_failed(spec: Manifest, trials: list[Trial]) -> bool:
    """An experiment whose trials have all failed has failed as well."""
    failed = failed_count(trials)
    return too_many_failed(spec, trials) or (failed > 0 and failed >= spec["maxTrialCount"])


def _ended_trials(study: optuna.Study) -> list[Trial]:
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() or "ended" not in trial.user_attrs:
            continue
        made = dict(trial.user_attrs["made"])
        made.pop("rule", None)
        ended = dict(trial.user_attrs["ended"])
        ended.pop("transient", None)
        metrics = {name: Observation(**seen) for name, seen in ended.pop("metrics").items()}
        trials.append(Trial(**made, **ended, metrics=metrics))
    return trials


def _proposal(number: int, made: dict[str, Any]) -> Proposal:
    # a study of an earlier version has no rules
    rule = made.get("rule")
    return Proposal(
        number=number,
        name=made["name"],
        parameters=made["parameters"],
        rule=early_stopping.StopRule(**rule) if rule else None,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
