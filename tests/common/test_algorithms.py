"""One table of algorithms: the rest of the project needs only an entry in it."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from common import algorithms
from common.algorithms import Algorithm
from common.config import RunConfig
from common.errors import InputError
from common.run import Run
from training.experiment import experiment
from training.search_space import cautions, check_algorithm, parse

ROOT = Path(__file__).resolve().parents[2]
RANGE = {"name": "a", "type": "double", "min": 1, "max": 2}
LOG_INTEGER = {"name": "b", "type": "int", "min": 1, "max": 64, "distribution": "logUniform"}


@pytest.fixture
def annealing(monkeypatch: pytest.MonkeyPatch) -> Algorithm:
    """An algorithm that exists only in the table."""
    algorithm = Algorithm(
        name="annealing",
        seed_setting="seed",
        learns=True,
        min_ranges=2,
        log_integers=False,
        log_caution="{names} cool linearly",
        sampler="RandomSampler",
        plan="grid",
    )
    monkeypatch.setitem(algorithms.TABLE, algorithm.name, algorithm)
    return algorithm


def space(*entries: dict) -> str:
    return json.dumps({"parameters": entries})


def test_an_algorithm_of_the_table_is_accepted_and_rendered(annealing: Algorithm) -> None:
    config = RunConfig(
        algorithm=annealing.name,
        seed="7",
        s3_bucket="s3://b/r",
        run_id="a-00000000",
        search_space=space({"name": "fc-dim", "type": "discrete", "list": [50, 100, 200]}),
    )
    spec = experiment(Run(config=config), earlier_trials=1)["spec"]
    assert spec["algorithm"] == {
        "algorithmName": "annealing",
        "algorithmSettings": [{"name": "seed", "value": "8"}],
    }
    assert spec["maxTrialCount"] == 3, "a grid has no more trials than points"


@pytest.mark.parametrize(
    ("entries", "facts"),
    [
        ([RANGE], ["annealing", "2", "1"]),
        ([RANGE, {**RANGE, "name": "c"}], ["annealing", "'a'", "step"]),
        ([{**RANGE, "step": 0.5}, LOG_INTEGER], ["annealing", "'b'", "uniformly"]),
    ],
    ids=["too few ranges", "a range without a step", "a logarithmic integer"],
)
def test_the_search_space_is_checked_by_the_table(
    annealing: Algorithm, entries: list[dict], facts: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        check_algorithm(parse(space(*entries)), annealing.name)
    for fact in facts:
        assert fact in str(error.value)


def test_cautions_of_the_table_are_shown_to_the_user(annealing: Algorithm) -> None:
    parameters = parse(space(RANGE, LOG_INTEGER))
    assert cautions(parameters, annealing.name) == ["algorithm annealing: b cool linearly"]
    assert cautions(parameters[:1], annealing.name) == []


@pytest.mark.parametrize("name", ["annealing", "hyperband"])
def test_an_unknown_algorithm_is_refused(name: str) -> None:
    """`hyperband` is Katib's, but not this project's."""
    with pytest.raises(InputError) as error:
        RunConfig(algorithm=name)
    assert "--algorithm" in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("name", algorithms.offered_names())
def test_a_sampler_of_optuna_draws_the_trials_on_one_machine(name: str) -> None:
    algorithm = algorithms.find_offered(name)
    options = dict(algorithm.sampler_options)
    if algorithm.random_start:
        options["n_startup_trials"] = 5
    sampler = getattr(optuna.samplers, algorithm.sampler)(seed=1, **options)
    assert isinstance(sampler, optuna.samplers.BaseSampler)


@pytest.mark.parametrize(
    ("name", "learns"),
    [("random", False), ("sobol", False), ("grid", False), ("tpe", True), ("cmaes", True)],
)
def test_only_some_algorithms_learn_from_results(name: str, learns: bool) -> None:
    assert algorithms.find_offered(name).learns is learns
    assert not (learns and algorithms.find_offered(name).plan != "none"), (
        "a plan does not depend on results"
    )
