"""The search step on a cluster whose launcher was lost: finished trials count, none twice."""

from __future__ import annotations

import json
import random

import pytest

from clusters.protocol import ExperimentResult
from common import storage
from common.config import RunConfig
from common.errors import ClusterError
from common.records import Observation, SearchRecord, Trial
from common.run import Run
from components import search, step
from tests.training.trials_in_storage import write_trial

SPACE = [{"name": "fc-dim", "type": "int", "min": 1, "max": 9999}]
EPOCHS = 3


class LauncherLost(BaseException):
    """The launcher's pod is gone: nothing that it would do at its end happens."""


class Cluster:
    """A cluster whose trials leave in the storage what real ones leave.

    `events` says what becomes of each trial in turn: "ends", "fails", "hangs" (it is half-way when
    its experiment is removed) or "lost" (the launcher is lost before the trial is made).
    """

    resumes = False

    def __init__(self, run: Run, events: list[str], rng: random.Random) -> None:
        self.run = run
        self.events = events
        self.rng = rng
        self.existing: dict[str, list[Trial]] = {}
        self.annotations: dict[str, dict[str, str]] = {}
        self.manifests: list[dict] = []
        self.jobs: list[dict] = []
        """Every job that was run for a resumed trial."""
        self.parallel = 0
        self.removed_jobs: list[str] = []
        self.interrupted_trials: dict[str, tuple[dict[str, str], list[float]]] = {}
        """Name of each trial that hung -> its parameters, and its losses so far."""
        self.losses_by_trial: dict[str, float] = {}
        """Name of each trial that has ever ended well -> its loss."""

    def experiments(self, run_id: str) -> dict[str, dict[str, str]]:
        assert run_id == self.run.id
        return {name: self.annotations.get(name, {}) for name in list(self.existing)[::-1]}

    def can_continue(self, name: str) -> bool:
        return name in self.existing

    def delete_experiment(self, name: str) -> None:
        self.existing.pop(name, None)

    def run_experiment(self, manifest, *, deadline, report) -> ExperimentResult:
        self.manifests.append(manifest)
        name = manifest["metadata"]["name"]
        self.annotations.setdefault(name, manifest["metadata"]["annotations"])
        trials = self.existing.setdefault(name, [])
        while sum(trial.status != "Running" for trial in trials) < _trial_limit(manifest):
            if self.next_event() == "lost":
                raise LauncherLost
            self.next_trial(name)
        past_trials = [trial for trial in trials if trial.status != "Running"]
        best = min(
            (trial for trial in past_trials if trial.counts),
            key=lambda trial: trial.metrics["AvgLoss"].min,
        )
        return ExperimentResult(name=name, trials=past_trials, optimal=best.name)

    def next_event(self) -> str:
        return self.events[0] if self.events else "ends"

    def next_trial(self, experiment: str) -> None:
        """Run one trial of an experiment to what the next event says."""
        event = self.events.pop(0) if self.events else "ends"
        name = f"{experiment}-{self.rng.randrange(16**8):08x}"
        losses = [round(self.rng.random(), 4) for _ in range(EPOCHS)]
        point = {"fc-dim": str(self.rng.randrange(1, 9999))}
        trials = self.existing[experiment]
        number = len(self.losses_by_trial) + len(trials)
        if event == "ends":
            write_trial(self.run, name, point, losses, start=100.0 * number)
            self.losses_by_trial[name] = min(losses)
            observation = Observation(min=min(losses), max=max(losses), latest=losses[-1])
            trial = Trial(
                name=name, status="Succeeded", parameters=point, metrics={"AvgLoss": observation}
            )
        elif event == "fails":
            storage.write_text(self.run.path("trials", name, "failed"), "no finite loss\n")
            trial = Trial(name=name, status="Failed", parameters=point, metrics={})
        else:
            losses = losses[: self.rng.randrange(EPOCHS)]
            write_trial(self.run, name, point, losses, start=100.0 * number)
            storage.write_bytes(self.run.path("trials", name, "checkpoint.pt"), b"state")
            self.interrupted_trials[name] = (point, losses)
            trial = Trial(name=name, status="Running", parameters=point, metrics={})
        trials.append(trial)

    def delete_job(self, name: str) -> None:
        self.removed_jobs.append(name)

    def run_jobs(self, manifests, *, parallel, on_end, deadline, report) -> None:
        """Resume trials one after the other, each to what the next event says."""
        assert deadline > 0
        self.parallel = parallel
        for manifest in manifests:
            if self.next_event() == "lost":
                raise LauncherLost
            self.jobs.append(manifest)
            event = self.events.pop(0) if self.events else "ends"
            name = manifest["metadata"]["name"]
            point, losses = self.interrupted_trials[name]
            assert not [
                experiment for experiment in self.existing if name.startswith(f"{experiment}-")
            ]
            assert f"fc_dim:{point['fc-dim']}'" in json.dumps(manifest)
            if event == "ends":
                rest = [round(self.rng.random(), 4) for _ in range(EPOCHS - len(losses))]
                write_trial(self.run, name, point, [*losses, *rest], start=100.0 * len(self.jobs))
                self.losses_by_trial[name] = min([*losses, *rest])
            on_end(name, "OOMKilled" if event == "fails" else "")


def _trial_limit(manifest: dict) -> int:
    count: int = manifest["spec"]["maxTrialCount"]
    return count


def make_run(tmp_path, **values) -> Run:
    settings = {"max_trials": 5, "parallel_trials": 1, "num_epochs": EPOCHS} | values
    run = Run(
        config=RunConfig(
            s3_bucket=str(tmp_path),
            run_id="pfn-00000000",
            search_space=json.dumps(SPACE),
            **settings,
        )
    )
    run.save()
    return run


@pytest.fixture
def cluster_of(monkeypatch):
    def make(run: Run, *events: str, seed: int = 0) -> Cluster:
        new_cluster = Cluster(run, list(events), random.Random(seed))
        monkeypatch.setattr(step, "backend", lambda _: new_cluster)
        return new_cluster

    return make


def lose(run: Run, cluster: Cluster) -> None:
    """Run the step until its launcher is lost."""
    with pytest.raises(LauncherLost):
        search.search(run, step.Artifacts(""))
    cluster.events.remove("lost")


def end(run: Run) -> SearchRecord:
    best = search.search(run, step.Artifacts(""))
    record = SearchRecord.load(run.folder.search)
    assert record.optimal == best
    return record


def test_after_a_loss_only_the_missing_trials_run(tmp_path, cluster_of, capsys):
    run = make_run(tmp_path)
    cluster = cluster_of(run, "ends", "hangs", "ends", "fails", "lost")
    lose(run, cluster)
    cluster.delete_experiment(run.id)
    record = end(run)
    [interrupted] = cluster.interrupted_trials
    assert [job["metadata"]["name"] for job in cluster.jobs] == [interrupted]
    second = cluster.manifests[-1]
    assert (second["metadata"]["name"], _trial_limit(second)) == ("pfn-00000000-3", 2)
    assert sorted(trial.name for trial in record.trials) == sorted(cluster.losses_by_trial)
    assert (record.carried, len(record.trials)) == (3, 5)
    best = min(cluster.losses_by_trial, key=lambda name: cluster.losses_by_trial[name])
    assert (record.optimal, record.best_value) == (best, cluster.losses_by_trial[best])


@pytest.mark.parametrize("algorithm", ["tpe", "cmaes", "sobol"])
def test_the_log_says_that_the_algorithm_does_not_know_earlier_trials(
    tmp_path, cluster_of, capsys, algorithm
):
    run = make_run(tmp_path, algorithm=algorithm)
    cluster = cluster_of(run, "ends", "lost")
    lose(run, cluster)
    assert "1 trials" not in capsys.readouterr().out
    cluster.delete_experiment(run.id)
    end(run)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 trials")]
    assert algorithm in line


def test_a_running_experiment_continues_and_its_trials_count_once(tmp_path, cluster_of):
    run = make_run(tmp_path)
    cluster = cluster_of(run, "ends", "ends", "lost")
    lose(run, cluster)
    cluster.next_trial(run.id)  # the launcher is lost, and the run uses its copy
    record = end(run)
    assert [manifest["metadata"]["name"] for manifest in cluster.manifests] == [run.id] * 2
    assert _trial_limit(cluster.manifests[-1]) == 5
    assert sorted(trial.name for trial in record.trials) == sorted(cluster.losses_by_trial)
    assert (record.carried, len(record.trials)) == (0, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": "24Gi"}, "--memory was 12Gi, now 24Gi"),
        ({"tolerations": "gpu"}, "--tolerations was none, now gpu"),
        ({"num_replicas": 2}, "--num-replicas was 1, now 2"),
        ({"weaver_image": "jec-weaver:2"}, "--weaver-image was jec-weaver:latest, now"),
        ({"goal": "0.0001"}, "--goal was none, now 0.0001"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_experiment_that_katib_does_not_let_change_is_replaced(
    tmp_path, cluster_of, capsys, changes, message
):
    run = make_run(tmp_path)
    cluster = cluster_of(run, "ends", "hangs", "ends", "lost")
    lose(run, cluster)
    [hanging] = [trial.name for trial in cluster.existing[run.id] if trial.status == "Running"]
    second_run = Run(config=run.config.replace(**changes))
    record = end(second_run)
    assert list(cluster.existing) == [f"{run.id}-3"]
    assert sorted(trial.name for trial in record.trials) == sorted(cluster.losses_by_trial)
    assert hanging in cluster.losses_by_trial
    assert (record.carried, len(record.trials)) == (3, 5)
    text = capsys.readouterr().out
    assert message in text
    [line] = [line for line in text.splitlines() if hanging in line and "checkpoint" in line]
    assert line
    [job] = cluster.jobs
    [spec] = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    assert spec["image"] == second_run.config.weaver_image
    assert spec["resources"]["limits"]["memory"] == second_run.config.memory


def hanging_run(tmp_path, cluster_of, *events: str, **values) -> tuple[Run, Cluster]:
    """A run whose launcher and experiment are gone, after these events of its trials."""
    run = make_run(tmp_path, **values)
    cluster = cluster_of(run, *events, "lost")
    lose(run, cluster)
    cluster.delete_experiment(run.id)
    return run, cluster


def test_a_step_lost_during_resumed_trials_continues_with_the_others(tmp_path, cluster_of):
    run, cluster = hanging_run(tmp_path, cluster_of, "hangs", "hangs", "hangs", parallel_trials=3)
    cluster.events = ["ends", "fails", "lost"]
    lose(run, cluster)
    first = [job["metadata"]["name"] for job in cluster.jobs]
    record = end(run)
    assert sorted(job["metadata"]["name"] for job in cluster.jobs) == sorted(
        cluster.interrupted_trials
    )
    assert len(cluster.jobs) == 3, "neither the one that ended nor the one that failed ran again"
    assert cluster.parallel == 3
    assert record.trial(first[0]).status == "Succeeded"
    assert (record.trial(first[1]).status, record.trial(first[1]).reason) == ("Failed", "OOMKilled")
    assert (record.carried, len(record.trials)) == (3, 5)
    assert _trial_limit(cluster.manifests[-1]) == 2


def test_the_jobs_of_resumed_trials_go_with_the_experiment_where_that_is_asked(
    tmp_path, cluster_of
):
    run, cluster = hanging_run(tmp_path, cluster_of, "hangs", delete_train_experiment=True)
    end(run)
    assert cluster.existing == {}
    assert cluster.removed_jobs == list(cluster.interrupted_trials)


def test_a_failed_resumed_trial_counts_where_the_experiment_after_it_is_lost(tmp_path, cluster_of):
    run, cluster = hanging_run(tmp_path, cluster_of, "hangs", max_failed_trials=3)
    cluster.events = ["fails", "ends", "lost"]
    lose(run, cluster)
    record = end(run)
    assert list(cluster.existing) == [f"{run.id}-1"]
    assert [manifest["spec"]["maxFailedTrialCount"] for manifest in cluster.manifests[1:]] == [2, 2]
    assert (record.carried, len(record.trials)) == (1, 5)
    assert record.trials[0].status == "Failed"
    assert record.trials[0].parameters == cluster.interrupted_trials[record.trials[0].name][0]


def test_too_many_failed_resumed_trials_end_the_search_until_it_is_tried_again(
    tmp_path, cluster_of
):
    run, cluster = hanging_run(tmp_path, cluster_of, *["hangs"] * 3, max_failed_trials=2)
    cluster.events = ["fails", "fails"]
    with pytest.raises(ClusterError, match="2 x OOMKilled"):
        end(run)
    failed_jobs = [job["metadata"]["name"] for job in cluster.jobs]
    assert cluster.removed_jobs == [
        name for name in cluster.interrupted_trials if name not in failed_jobs
    ]
    assert cluster.manifests[1:] == []
    record = end(run)
    assert sorted(job["metadata"]["name"] for job in cluster.jobs[2:]) == sorted(
        cluster.interrupted_trials
    )
    assert [trial.status for trial in record.trials] == ["Succeeded"] * 5


def test_a_resumed_trial_that_failed_is_tried_again_with_other_settings(tmp_path, cluster_of):
    run, cluster = hanging_run(tmp_path, cluster_of, "hangs")
    cluster.events = ["fails", "lost"]
    lose(run, cluster)
    cluster.delete_experiment(f"{run.id}-1")
    record = end(Run(config=run.config.replace(memory="24Gi")))
    assert [trial.status for trial in record.trials] == ["Succeeded"] * 5
    assert len(cluster.jobs) == 2
    assert sorted(trial.name for trial in record.trials) == sorted(cluster.losses_by_trial)


@pytest.mark.parametrize(
    ("trials", "spoil", "resumed_count"),
    [
        (5, lambda run, name: None, 1),
        (5, lambda run, name: storage.delete(run.path("trials", name, "checkpoint.pt")), 0),
        (5, lambda run, name: storage.delete(run.path("trials", name, "options.json")), 0),
        (5, lambda run, name: storage.write_text(run.folder.options(name), "{"), 0),
        (1, lambda run, name: None, 0),
    ],
    ids=["whole", "no checkpoint", "no options", "options cut off", "no more trials asked for"],
)
def test_trials_that_cannot_resume_are_replaced_by_new_ones(
    tmp_path, cluster_of, capsys, trials, spoil, resumed_count
):
    run, cluster = hanging_run(tmp_path, cluster_of, "ends", "hangs")
    [name] = cluster.interrupted_trials
    spoil(run, name)
    record = end(Run(config=run.config.replace(max_trials=trials)))
    assert len(cluster.jobs) == resumed_count
    assert len(record.trials) == trials
    assert ("is not resumed" in capsys.readouterr().out) == (resumed_count == 0 and trials > 1)
    assert storage.exists(run.folder.resumed) == bool(resumed_count)


def test_a_trial_that_early_stopping_ends_is_not_resumed(tmp_path, cluster_of):
    """Its files look like those of a trial that was under way; Katib's rule tells them apart."""
    run = make_run(
        tmp_path,
        early_stopping="medianstop",
        early_stopping_min_trials=1,
        early_stopping_start_step="2",
    )
    point = {"fc-dim": "7"}
    write_trial(run, f"{run.id}-good", point, [0.2, 0.1, 0.1])
    for name, losses in (("worse", [0.3, 0.25]), ("better", [0.1, 0.1]), ("young", [0.3])):
        write_trial(run, f"{run.id}-{name}", point, losses)
        storage.write_bytes(run.path("trials", f"{run.id}-{name}", "checkpoint.pt"), b"state")
    cluster = cluster_of(run)
    cluster.interrupted_trials = {
        f"{run.id}-better": (point, [0.1, 0.1]),
        f"{run.id}-young": (point, [0.3]),
    }
    record = end(run)
    assert [job["metadata"]["name"] for job in cluster.jobs] == list(cluster.interrupted_trials)
    assert (record.carried, len(record.trials)) == (3, 5)


@pytest.mark.parametrize(
    "changes", [{"parallel_trials": 2}, {"max_trials": 6}, {"min_improvement": 1.0}]
)
def test_changes_that_katib_allows_replace_no_experiment(tmp_path, cluster_of, changes):
    run = make_run(tmp_path)
    cluster = cluster_of(run, "ends", "lost")
    lose(run, cluster)
    end(Run(config=run.config.replace(**changes)))
    assert list(cluster.existing) == [run.id]


def test_an_experiment_of_an_earlier_version_continues_unchanged(tmp_path, cluster_of):
    run = make_run(tmp_path)
    cluster = cluster_of(run, "ends", "lost")
    lose(run, cluster)
    cluster.annotations.clear()
    end(Run(config=run.config.replace(memory="24Gi")))
    assert list(cluster.existing) == [run.id]


def test_a_search_whose_trials_had_all_ended_makes_no_experiment(tmp_path, cluster_of):
    run = make_run(tmp_path, max_trials=2)
    cluster = cluster_of(run, "ends", "ends")
    cluster.existing[run.id] = []
    cluster.next_trial(run.id)
    cluster.next_trial(run.id)
    cluster.delete_experiment(run.id)
    record = end(run)
    assert cluster.manifests == []
    assert [trial.name for trial in record.trials] == list(cluster.losses_by_trial)


def test_a_goal_that_a_finished_trial_has_reached_ends_the_search(tmp_path, cluster_of):
    run = make_run(tmp_path, goal="0.999")
    cluster = cluster_of(run, "ends")
    cluster.existing[run.id] = []
    cluster.next_trial(run.id)
    cluster.delete_experiment(run.id)
    assert len(end(run).trials) == 1
    assert cluster.manifests == []


def test_additional_trials_that_were_lost_count_beside_those_of_the_record(tmp_path, cluster_of):
    run = make_run(tmp_path)
    cluster = cluster_of(run)
    first = end(run)
    more = Run(config=run.config.replace(max_trials=9))
    cluster.events = ["ends", "lost"]
    lose(more, cluster)
    cluster.delete_experiment(run.id)
    record = end(more)
    assert cluster.manifests[-1]["metadata"]["name"] == "pfn-00000000-6"
    assert [trial.name for trial in record.trials] == list(cluster.losses_by_trial)
    assert (len(first.trials), record.carried, len(record.trials)) == (5, 6, 9)
    cluster.events = ["lost"]
    twice = Run(config=run.config.replace(max_trials=11))
    lose(twice, cluster)
    record = end(twice)
    assert cluster.manifests[-1]["metadata"]["name"] == "pfn-00000000-6", "the run uses its copy"
    assert (record.carried, len(record.trials)) == (6, 11)


@pytest.mark.parametrize("seed", range(40))
def test_after_any_losses_every_ended_trial_counts_once(tmp_path, cluster_of, seed):
    """Chains of losses: of experiments that were removed, that stayed, and that went on."""
    rng = random.Random(seed)
    trials = rng.randrange(2, 8)
    run = make_run(tmp_path, max_trials=trials)
    cluster = cluster_of(run, seed=seed)
    for _ in range(rng.randrange(1, 4)):
        before = rng.choices(["ends", "fails", "hangs"], [3, 1, 1], k=rng.randrange(3))
        cluster.events = [*before, "lost"]
        try:
            search.search(run, step.Artifacts(""))
        except LauncherLost:
            pass
        else:
            break  # it had ended before its launcher was lost
        if not cluster.existing:
            continue  # it was lost among the resumed trials
        [name] = cluster.existing
        cluster.events = []
        fate = rng.choice(["removed", "stays", "goes on"])
        requested = _trial_limit(cluster.manifests[-1])
        end_count = sum(trial.status != "Running" for trial in cluster.existing[name])
        if fate == "goes on" and end_count < requested:
            cluster.next_trial(name)
        if fate == "removed":
            cluster.delete_experiment(name)
    cluster.events = []
    record = end(run)
    names = [trial.name for trial in record.trials]
    assert len(set(names)) == len(names)
    resumed_jobs = [job["metadata"]["name"] for job in cluster.jobs]
    assert len(set(resumed_jobs)) == len(resumed_jobs), "none is resumed twice"
    succeeded = [trial.name for trial in record.trials if trial.counts]
    assert sorted(succeeded) == sorted(cluster.losses_by_trial), (
        "none is lost, none was trained in vain"
    )
    assert len(names) == trials
    assert record.best_value == min(cluster.losses_by_trial.values())
    calls = len(cluster.manifests)
    assert end(run) == record
    assert len(cluster.manifests) == calls, "a search that has ended is not repeated"
