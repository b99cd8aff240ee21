"""search.html, its figures, the table and the CSV, from search.json alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from common.records import Objective, Observation, SearchRecord, Trial
from reporting import search_figures
from reporting.drawing import svg
from reporting.search_page import (
    as_csv,
    as_markdown,
    common_parameters,
    search_page,
    trials_table,
    unsuccessful,
)
from tests.reporting.elements import HOSTILE, Elements, assert_harmless


def trial(number, loss, status="Succeeded", reason="", **parameters) -> Trial:
    metrics = {}
    if loss is not None:
        metrics["AvgLoss"] = Observation(min=loss, max=loss + 0.1, latest=loss + 0.01)
    return Trial(
        name=f"run-{number:03d}",
        status=status,
        parameters=parameters,
        metrics=metrics,
        reason=reason,
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:03:00+00:00",
    )


@pytest.fixture
def record() -> SearchRecord:
    """Ten trials whose loss follows start-lr; one stopped early, one failed."""
    trials = []
    for i, rate in enumerate(np.geomspace(1e-4, 1e-2, 10)):
        parameters = {"start-lr": f"{rate:.4g}", "k": str(8 * (1 + i % 2))}
        trials.append(trial(i, 0.1 - 0.002 * i, **parameters))
    trials[2] = dataclasses.replace(
        trials[2], status="EarlyStopped", reason="worse than AvgLoss 0.09 after 2 epochs"
    )
    reason = "exit code 1: <b>nan</b> | in epoch 2"
    trials.append(trial(10, None, "Failed", reason, **{"start-lr": "0.01", "k": "8"}))
    return SearchRecord(
        experiment="run",
        objective=Objective(name="AvgLoss", type="minimize"),
        algorithm="tpe",
        seed=1,
        early_stopping="medianstop",
        optimal="run-009",
        trials=trials,
    )


@pytest.fixture
def maximised(record) -> SearchRecord:
    """The same trials, of which the largest value is the best."""
    objective = Objective(name="AvgLoss", type="maximize")
    return dataclasses.replace(record, objective=objective, optimal="run-000")


def with_trial(record: SearchRecord, number: int, **changes) -> SearchRecord:
    """The search with one trial changed."""
    trials = list(record.trials)
    trials[number] = dataclasses.replace(trials[number], **changes)
    return dataclasses.replace(record, trials=trials)


def test_the_page_shows_history_parameters_importance_and_every_trial(record):
    text = search_page(record)
    elements = Elements(text)
    assert elements.open == []
    assert elements.addresses
    assert all(item.startswith("#") for item in elements.addresses), "it opens by itself"
    history, parallel, importance = [figure["aria-label"] for figure in elements.figures]
    assert "ends at 0.08200" in history
    assert "1 without a value" in history
    assert "start-lr 0.01, k 16" in parallel
    assert importance.startswith("Importance: start-lr")
    assert all(item.name in text for item in record.trials)
    assert elements.text.count("stopped early") >= 2
    assert "<b>nan</b>" not in text
    assert "by chance" in text, "the caveat stands beside the figure"
    assert "11 trials: 9 succeeded, 1 stopped early, 1 failed." in elements.text


def test_each_trial_has_a_tooltip_with_its_name(record):
    titles = [
        "run-009: AvgLoss 0.08200",
        "run-010: exit code 1: &lt;b&gt;nan&lt;/b&gt; | in epoch 2",
    ]
    history, parallel, _ = search_figures.drawings(record)
    for drawing in (history, parallel):
        text = svg(drawing)
        assert text.count("<title>") == len(record.trials)
        for title in titles:
            assert f"<title>{title}</title>" in text


def test_a_search_of_one_trial_has_a_page(record):
    text = search_page(dataclasses.replace(record, trials=record.trials[9:10]))
    assert Elements(text).open == []
    assert "Not estimated" in text


def test_the_objective_may_be_maximised(record, maximised):
    first = record.trials[0]
    failed_trial = dataclasses.replace(first, status="Failed")
    assert record.objective.value(first) == 0.1
    assert maximised.objective.value(first) == 0.2
    assert record.objective.value(failed_trial) is None, "its value does not count"
    least = record.objective.best_first(record.trials)
    assert [best_trial.name for best_trial in least][:2] == ["run-009", "run-008"]
    largest = maximised.objective.best_first(maximised.trials)
    assert [best_trial.name for best_trial in largest][:2] == ["run-000", "run-001"]
    assert largest[-1].name == "run-010", "those without a value are the last"
    text = search_page(maximised)
    assert "Best trial: run-000, AvgLoss 0.20000" in text
    assert "the best so far (red) ends at 0.20000" in text
    rows = [line for line in as_markdown(maximised).splitlines() if line.startswith("| 1)")]
    assert rows == ["| 1) | 0.2 | run-000 | 0.0001 | 8 |"]


@pytest.mark.parametrize(("factor", "logarithmic"), [(2.9, False), (3.1, True)])
def test_a_wide_range_of_values_is_drawn_on_a_logarithmic_axis(record, factor, logarithmic):
    loss = Observation(min=0.082 * factor, max=0.2, latest=0.11)
    wide = with_trial(record, 0, metrics={"AvgLoss": loss})
    history = next(search_figures.drawings(wide))
    (axes,) = history.figure.axes
    assert axes.get_yscale() == ("log" if logarithmic else "linear")
    assert ("logarithmic" in axes.get_ylabel()) == logarithmic


@pytest.mark.parametrize(
    ("texts", "heights", "labels"),
    [
        (["1", "2", "5"], [0, 0.301 / 0.699, 1], ["1", "2", "5"]),
        (["2", "3", "4"], [0, 0.5, 1], ["2", "3", "4"]),
        (["0", "0.05", "0.2"], [0, 0.25, 1], ["0", "0.05", "0.2"]),
        (["ranger", "adam", "adamW"], [1, 0, 0.5], ["adam", "adamW", "ranger"]),
        (["nan", "1"], [1, 0], ["1", "nan"]),
        (["1", "10", "100", "1e3", "1e4", "1e6"], None, ["1", "1000", "1e+06"]),
        (["7"], [0], ["7"]),
    ],
    ids=["logarithm", "value", "with zero", "words", "not finite", "many", "one"],
)
def test_the_axis_of_a_parameter_is_scaled_by_its_values(texts, heights, labels):
    scale = search_figures.axis_scale(texts)
    assert [text for _, text in scale.labels] == labels
    if heights:
        assert [scale.heights[text] for text in texts] == pytest.approx(heights, abs=1e-3)


def test_a_line_skips_the_axis_of_a_missing_parameter(record):
    rate = record.trials[3].parameters["start-lr"]
    partial = with_trial(record, 3, parameters={"start-lr": rate})
    _, parallel, _ = search_figures.drawings(partial)
    (axes,) = parallel.figure.axes
    lines = {line.get_gid(): list(line.get_ydata()) for line in axes.lines if line.get_gid()}
    assert lines["trial-3"] == [0, 1, 2]
    assert lines["trial-4"] == [0, 2]
    assert lines["trial-11"] == [0, 1], "a failed trial has no objective"


def test_names_and_values_never_become_markup(record):
    trials = []
    for trial_ in record.trials:
        observations = {HOSTILE: trial_.metrics["AvgLoss"]} if trial_.metrics else {}
        hostile_values = {
            "name": trial_.name + HOSTILE,
            "parameters": {HOSTILE: trial_.parameters["k"] + HOSTILE, **trial_.parameters},
            "metrics": observations,
        }
        trials.append(dataclasses.replace(trial_, **hostile_values))
    hostile_values = {"reason": f"last words: {HOSTILE}", "status": HOSTILE}
    trials[-1] = dataclasses.replace(trials[-1], **hostile_values)
    search = dataclasses.replace(
        record,
        experiment=HOSTILE,
        algorithm=HOSTILE,
        objective=Objective(name=HOSTILE),
        optimal=record.optimal + HOSTILE,
        trials=trials,
    )
    page = search_page(search)
    assert_harmless(
        page, f"Search {HOSTILE}", f"Best trial: run-009{HOSTILE}", f"8{HOSTILE}", "last words: "
    )
    assert HOSTILE in Elements(page).figures[0]["aria-label"]


def test_the_table_for_kubeflow_begins_with_rank_and_loss_and_is_escaped(record):
    name = "pfn-regressor-open-68e7e515-x7pptjjs"
    parameters = {"start-lr": "0.0013938750636616735", "k": "16"}
    record = with_trial(record, 9, name=name, parameters=parameters)
    text = as_markdown(dataclasses.replace(record, optimal=name))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == "| # | AvgLoss | trial | start-lr | k |"
    # an early loss of 0.082 is the least
    assert lines[2] == "| 1) | 0.082 | x7pptjjs | 0.001394 | 16 |"
    assert lines[-1] == "| 11) | – | run-010 | 0.01 | 8 |"
    assert len({line.count("|") for line in lines}) == 1
    assert "<" not in text
    others = [line for line in text.splitlines() if line.startswith("- ")]
    assert others == [
        "- run-002 stopped early: worse than AvgLoss 0.09 after 2 epochs",
        "- run-010 failed: exit code 1: ‹b>nan‹/b> ¦ in epoch 2",
    ]


def test_equal_parameters_are_no_columns(record):
    trials = [dataclasses.replace(trial, parameters={"k": "8"}) for trial in record.trials]
    for number, trial in enumerate(trials):
        trial.parameters["lr"] = str(number)
    record = dataclasses.replace(record, trials=trials)
    text = as_markdown(record)
    assert "| # | AvgLoss | trial | lr |" in text
    assert "The same in all trials: k 8" in text
    # of one trial all is shown
    text = as_markdown(dataclasses.replace(record, trials=trials[9:10]))
    assert "| # | AvgLoss | trial | k | lr |" in text


def test_the_csv_has_the_trials_in_their_order_of_creation(record):
    lines = as_csv(record).splitlines()
    assert (
        lines[0] == "trial,status,AvgLoss (min),AvgLoss (latest),start-lr,k,started,finished,reason"
    )
    assert [line.split(",")[0] for line in lines[1:]] == [trial_.name for trial_ in record.trials]


def test_the_table_shows_different_parameters_and_the_page_lists_the_equal_ones(record):
    trials = []
    for trial_ in record.trials:
        trials.append(
            dataclasses.replace(trial_, parameters={**trial_.parameters, "loss": "huber"})
        )
    search = dataclasses.replace(record, trials=trials)
    table = trials_table(search)
    assert table.head == ["Trial", "Status", "AvgLoss", "start-lr", "k", "Minutes"]
    assert common_parameters(search) == "loss huber"
    text = Elements(search_page(search)).text
    assert "The same in all trials: loss huber" in text
    for line in unsuccessful(search):
        assert line in text
    assert len(unsuccessful(search)) == 2
    single = dataclasses.replace(search, trials=trials[9:10])
    assert "loss" in trials_table(single).head
    assert common_parameters(single) == ""
