"""The search step: its files, when it resumes, and which trials count beside a new experiment's
trials.
"""

from __future__ import annotations

import dataclasses

import pytest

from clusters.protocol import ExperimentResult
from common import storage
from common.config import RunConfig
from common.errors import InputError
from common.layout import RunFolder
from common.records import Observation, Trial
from common.run import Run
from components import search, step
from training.more_trials import with_more_trials


class Backend:
    """A cluster whose experiments return the next losses of a list, one for each trial.

    With `is_gone` no experiment can continue.
    """

    resumes = True

    def __init__(self, run):
        self.run, self.losses, self.is_gone, self.manifests, self.deletions = (
            run,
            iter(range(9, 0, -1)),
            False,
            [],
            [],
        )
        self.trials = {}

    def run_experiment(self, manifest, *, deadline, report):
        self.manifests.append(manifest)
        name = manifest["metadata"]["name"]
        trials = self.trials.setdefault(name, [])
        while len(trials) < manifest["spec"]["maxTrialCount"]:
            loss = next(self.losses) / 100
            observations = {"AvgLoss": Observation(min=loss, max=loss, latest=loss)}
            trials.append(
                Trial(
                    name=f"{name}-{len(trials):03d}",
                    status="Succeeded",
                    parameters={"fc-dim": "50"},
                    metrics=observations,
                )
            )
            place = self.run.path("trials", trials[-1].name)
            step.write_output(f"{place}/best.pt", "")
        return ExperimentResult(
            name=name,
            trials=list(trials),
            optimal=min(trials, key=lambda t: t.metrics["AvgLoss"].min).name,
        )

    def can_continue(self, name):
        return not self.is_gone

    def experiments(self, run_id):
        assert run_id == self.run.id
        return {} if self.is_gone else {name: {} for name in reversed(self.trials)}

    def delete_experiment(self, name):
        self.deletions.append(name)


@pytest.fixture
def run(tmp_path):
    return Run(
        config=RunConfig(
            s3_bucket=str(tmp_path), run_id="pfn-00000000", max_trials=3, parallel_trials=1
        )
    )


@pytest.fixture
def backend(run, monkeypatch):
    backend_of_run = Backend(run)
    monkeypatch.setattr(step, "backend", lambda _: backend_of_run)
    return backend_of_run


def do(run):
    return search.search(run, step.Artifacts(""))


def record(run):
    return storage.read_json(run.path("search.json"))


def with_trial_limit(run, trials):
    return dataclasses.replace(run, config=run.config.replace(max_trials=trials))


def test_a_search_leaves_its_trials_in_three_forms_and_is_not_repeated(run, backend):
    assert do(run) == "pfn-00000000-002"
    assert len(record(run)["trials"]) == 3
    assert "pfn-00000000-002" in storage.read_text(run.path("search.html"))
    assert len(storage.read_text(run.path("trials.csv")).splitlines()) == 4
    assert do(run) == "pfn-00000000-002"
    assert len(backend.manifests) == 1


def test_the_same_experiment_continues_with_more_trials(run, backend):
    do(run)
    more = dataclasses.replace(run, config=with_more_trials(run.config, "2"))
    assert do(more) == "pfn-00000000-004"
    assert [manifest["metadata"]["name"] for manifest in backend.manifests] == ["pfn-00000000"] * 2
    assert len(record(run)["trials"]) == 5


def test_a_second_experiment_follows_a_deleted_one_and_their_trials_are_joined(run, backend):
    do(run)
    backend.is_gone = True
    assert do(with_trial_limit(run, 5)) == "pfn-00000000-3-001"
    first, second = backend.manifests
    assert second["metadata"]["name"] == "pfn-00000000-3"
    assert second["spec"]["maxTrialCount"] == 2
    assert second["spec"]["algorithm"] != first["spec"]["algorithm"], (
        "another seed, or it would try the same again"
    )
    names = [trial["name"] for trial in record(run)["trials"]]
    assert names == [f"pfn-00000000-00{i}" for i in range(3)] + [
        f"pfn-00000000-3-00{i}" for i in range(2)
    ]
    backend.is_gone = False
    do(with_trial_limit(run, 6))  # the second one continues, the first three still count
    assert len(record(run)["trials"]) == 6
    assert backend.manifests[-1]["metadata"]["name"] == "pfn-00000000-3"


def test_the_best_of_all_may_be_one_of_the_first(run, backend):
    backend.losses = iter([1, 5, 6, 7, 8])
    best = do(run)
    backend.is_gone = True
    assert do(with_trial_limit(run, 5)) == best


def test_the_experiment_is_deleted_when_asked_and_its_results_stay(run, backend):
    do(dataclasses.replace(run, config=run.config.replace(delete_train_experiment=True)))
    assert backend.deletions == ["pfn-00000000"]
    assert record(run)["optimal"]


@pytest.mark.parametrize(
    ("goal", "more", "expected"),
    [
        ("none", "none", "none"),
        ("none", "0", r"\b0\b"),
        ("0.08", "2", "goal"),
    ],
)
def test_an_impossible_number_of_more_trials_is_refused(run, backend, goal, more, expected):
    do(run)
    with pytest.raises(InputError, match=expected):
        with_more_trials(run.config.replace(goal=goal), more)


def test_more_trials_of_a_search_that_has_not_ended_are_refused(run):
    with pytest.raises(InputError, match="has not ended") as error:
        with_more_trials(run.config, "2")
    assert RunFolder(run.uri).resume_command in str(error.value)
