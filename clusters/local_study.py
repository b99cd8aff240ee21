"""The record of a local search: an Optuna study in a SQLite file.

Each trial of the study has two records as user attributes: `made` is written when the trial is
proposed, `ended` when it has ended. The file outlives the process, so that an interrupted search
resumes: finished trials count, and the others start again with the same names and parameters.
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
    """A proposed trial. A restart repeats it with the same name and parameters."""

    number: int
    """Number of the trial in Optuna's study."""
    name: str
    parameters: dict[str, str]
    rule: early_stopping.StopRule | None


def rename_damaged_study(file: Path, report: Report) -> int:
    """Rename the file of a study that is not a valid SQLite file, and report it.

    The search then starts again without its earlier trials.

    Returns:
        How many files of this study have ever been renamed.
    """
    if file.exists() and (problem := _damage(file)):
        number = 1 + len(list(file.parent.glob(f"{file.name}.damaged-*")))
        aside = file.with_name(f"{file.name}.damaged-{number}")
        file.rename(aside)
        for name in ("-journal", "-wal", "-shm"):
            file.with_name(file.name + name).unlink(missing_ok=True)
        report(
            f"{file} is damaged ({problem}) and was renamed to {aside.name}: the search starts"
            " again; the folders of its earlier trials stay"
        )
    return len(list(file.parent.glob(f"{file.name}.damaged-*")))


def _damage(file: Path) -> str:
    """Return what is wrong with an SQLite file; empty if nothing."""
    if not file.stat().st_size:
        return "it is empty"
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
            connection.text_factory = bytes  # damaged text may not be UTF-8
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # a file that another program has locked, such as a dashboard, is not damaged
        return "" if "locked" in str(error) else str(error)
    return "" if answer == b"ok" else answer.decode(errors="replace")


class Study:
    """The trials of one Experiment.

    A search that failed continues in a new study in the same file. Finished trials are kept. A
    trial that failed for a reason that may pass runs again under its name, and so resumes from its
    checkpoint. A trial that would fail again is replaced by a new one.
    """

    def __init__(self, manifest: Manifest, folder: Path, report: Report) -> None:
        """Open or create the study; a damaged file is renamed and reported."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._manifest = manifest
        file = folder / "study.db"
        self._num_damaged = rename_damaged_study(file, report)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        self.num_dropped = 0
        """Number of trials of failed attempts that are replaced, as they would fail again."""
        self._study = self._open(report)

    def close(self) -> None:
        """Close the file, which Optuna would keep open until Python's garbage collection."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _open(self, report: Report) -> optuna.Study:
        """Return the first attempt that has not failed; create one if all have."""
        import optuna

        name = self._manifest["metadata"]["name"]
        # Folders of trials in a damaged record remain, and no other trial may resume from them.
        attempt = 1 + self._num_damaged
        failed_study: optuna.Study | None = None
        while True:
            study = optuna.create_study(
                storage=self._storage,
                study_name=name if attempt == 1 else f"{name}-{attempt}",
                direction=self._manifest["spec"]["objective"]["type"],
                load_if_exists=True,
            )
            if failed_study is not None:
                self.num_dropped += self._carry_over(failed_study, study, report)
            if not has_failed(self._manifest["spec"], _ended_trials(study)):
                return study
            failed_study = study
            attempt += 1

    def _carry_over(self, failed_study: optuna.Study, study: optuna.Study, report: Report) -> int:
        """Copy the trials of a failed attempt to a new one; return how many are not repeated.

        Trials that are present already are not added again, since an earlier process may have been
        killed during this step.
        """
        import optuna
        from optuna.trial import TrialState

        present_names = {
            trial.user_attrs.get("made", {}).get("name") for trial in study.get_trials()
        }
        is_new = not present_names
        num_kept = num_repeated = num_dropped = 0
        for trial in failed_study.get_trials(deepcopy=False):
            if "made" not in trial.user_attrs:
                continue
            end_record = trial.user_attrs.get("ended", {})
            if end_record.get("status") in FAILED and not end_record.get("transient"):
                num_dropped += 1
                continue
            is_finished = trial.state.is_finished() and end_record.get("status") not in FAILED
            num_kept, num_repeated = num_kept + is_finished, num_repeated + (not is_finished)
            if trial.user_attrs["made"]["name"] in present_names:
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
                f"experiment {self._manifest['metadata']['name']} failed before: {num_kept}"
                f" finished trials are kept, {num_repeated} that failed for a reason that may pass"
                f" or were running run again, {num_dropped} that would fail again are replaced"
            )
        return num_dropped

    def ended_trials(self) -> list[Trial]:
        """Return the trials that have ended."""
        return _ended_trials(self._study)

    def has_transient_failures(self) -> bool:
        """Return whether a trial failed for a reason that may pass."""
        trials = self._study.get_trials(deepcopy=False)
        return any(trial.user_attrs.get("ended", {}).get("transient") for trial in trials)

    def interrupted_trials(self) -> list[Proposal]:
        """Return the trials that were proposed and have not ended."""
        return [
            _proposal(trial.number, trial.user_attrs["made"])
            for trial in self._proposed_trials()
            if not trial.state.is_finished()
        ]

    def count(self) -> int:
        """Return how many trials have been proposed."""
        return len(self._proposed_trials())

    def propose(self, sampling: Sampling) -> Proposal:
        """Add a trial with the next parameters of the algorithm, and return it."""
        number = self.count()
        # trials that are not repeated have used up their points
        self._study.sampler = sampling.sampler(number + self.num_dropped)
        trial = self._study.ask(sampling.distributions)
        # As in Katib, the rule depends on the trials that have succeeded by now, and is stored with
        # the trial.
        rule = early_stopping.rule_for(self._manifest, self._successful_values())
        proposal_record = {
            "name": f"{self._study.study_name}-{number:03d}",
            "parameters": sampling.assignments(trial.params),
            "started": _now(),
            "rule": dataclasses.asdict(rule) if rule else None,
        }
        self._write_record(trial.number, "made", proposal_record)
        return _proposal(trial.number, proposal_record)

    def record_value(self, number: int, step: int, value: float) -> None:
        """Add a value of the objective, for dashboards. Steps begin at 1."""
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
        """Record how a trial ended.

        Optuna calls a trial that was stopped early pruned. Its sampler learns from pruned trials,
        as Katib's does.

        Args:
            number: Number of the trial in the study.
            status: Its status.
            reason: Why it did not succeed; empty if it did.
            metrics: Its metrics.
            transient: Whether it failed for a reason that may pass.
        """
        from optuna.trial import TrialState

        metrics_record = {
            name: dataclasses.asdict(observation) for name, observation in metrics.items()
        }
        end_record = {
            "status": status,
            "reason": reason,
            "metrics": metrics_record,
            "finished": _now(),
            "transient": transient,
        }
        self._write_record(number, "ended", end_record)
        if status == "Succeeded":
            self._study.tell(number, katib.objective_value(self._manifest, metrics))
        elif status == "EarlyStopped":
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, state=TrialState.FAIL)

    def _proposed_trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials with a `made` record.

        A trial whose process was killed while its parameters were drawn has none and never counts.
        """
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if "made" in trial.user_attrs]

    def _successful_values(self) -> list[list[float]]:
        """Return the values of the objective, in order, of each successful trial."""
        values_of_trials = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("ended", {}).get("status") == "Succeeded":
                values = trial.intermediate_values
                values_of_trials.append([values[step] for step in sorted(values)])
        return values_of_trials

    def _write_record(self, number: int, key: str, record: dict[str, Any]) -> None:
        """Write one record in one transaction, so that it is complete or missing."""
        self._storage.set_trial_user_attr(self._trial_id(number), key, record)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def failed_count(trials: list[Trial]) -> int:
    """Return how many of the trials failed."""
    return sum(trial.status in FAILED for trial in trials)


def reaches_failure_limit(spec: Manifest, trials: list[Trial]) -> bool:
    """Return whether Katib fails the experiment: at, not above, maxFailedTrialCount."""
    num_failed = failed_count(trials)
    return num_failed > 0 and num_failed >= spec["maxFailedTrialCount"]


def has_failed(spec: Manifest, trials: list[Trial]) -> bool:
    """Return whether the experiment has failed, which it also has if all its trials have."""
    num_failed = failed_count(trials)
    return reaches_failure_limit(spec, trials) or (
        num_failed > 0 and num_failed >= spec["maxTrialCount"]
    )


def _ended_trials(study: optuna.Study) -> list[Trial]:
    trials = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished() or "ended" not in trial.user_attrs:
            continue
        proposal_record = dict(trial.user_attrs["made"])
        proposal_record.pop("rule", None)
        end_record = dict(trial.user_attrs["ended"])
        end_record.pop("transient", None)
        metrics = {
            name: Observation(**observation)
            for name, observation in end_record.pop("metrics").items()
        }
        trials.append(Trial(**proposal_record, **end_record, metrics=metrics))
    return trials


def _proposal(number: int, record: dict[str, Any]) -> Proposal:
    # a study of an earlier version has no rules
    rule = record.get("rule")
    return Proposal(
        number=number,
        name=record["name"],
        parameters=record["parameters"],
        rule=early_stopping.StopRule(**rule) if rule else None,
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
