"""search.html, the table and the importance of parameters, from search.json alone."""

from __future__ import annotations

import html.parser

import numpy as np
import pytest

from reporting.importance import importances
from reporting.search_page import as_csv, markdown, search_page


def trial(number, loss, status="Succeeded", reason="", **parameters):
    metrics = (
        {} if loss is None else {"AvgLoss": {"min": loss, "max": loss + 0.1, "latest": loss + 0.01}}
    )
    return {
        "name": f"run-{number:03d}",
        "status": status,
        "parameters": parameters,
        "metrics": metrics,
        "reason": reason,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:03:00+00:00",
    }


@pytest.fixture
def record():
    """Ten trials whose loss follows start-lr; one stopped early, one failed."""
    rates = np.geomspace(1e-4, 1e-2, 10)
    trials = [
        trial(i, 0.1 - 0.002 * i, **{"start-lr": f"{rate:.4g}", "k": str(8 * (1 + i % 2))})
        for i, rate in enumerate(rates)
    ]
    trials[2] = {
        **trials[2],
        "status": "EarlyStopped",
        "reason": "worse than AvgLoss 0.09 after 2 epochs",
    }
    trials.append(
        trial(
            10,
            None,
            "Failed",
            "exit code 1: <b>nan</b> | in epoch 2",
            **{"start-lr": "0.01", "k": "8"},
        )
    )
    objective = {"name": "AvgLoss", "type": "minimize"}
    return {
        "experiment": "run",
        "objective": objective,
        "algorithm": "tpe",
        "seed": 1,
        "early_stopping": "medianstop",
        "optimal": "run-009",
        "trials": trials,
    }


class Page(html.parser.HTMLParser):
    """What a browser would find: whether tags are balanced, figures, links elsewhere."""

    VOID = {"meta", "br"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.open, self.figures, self.elsewhere = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "svg":
            self.figures.append(dict(attrs)["aria-label"])
        self.elsewhere += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_history_parameters_importance_and_every_trial(record):
    text = search_page(record)
    page = Page(text)
    assert page.open == []
    assert page.elsewhere == [], "it opens without anything from elsewhere"
    history, parallel, importance = page.figures
    assert "ends at 0.08200" in history
    assert "1 without a loss" in history
    assert "start-lr 0.01, k 16" in parallel
    assert importance.startswith("Importance: start-lr")
    assert all(one["name"] in text for one in record["trials"])
    assert text.count("stopped early") >= 2
    assert "<b>nan</b>" not in text
    assert "by chance" in text, "the caveat stands beside the figure"


def test_a_search_of_one_trial_has_a_page_too(record):
    text = search_page({**record, "trials": record["trials"][9:10]})
    assert "Not estimated" in text


def test_the_table_has_the_best_first_and_no_cell_breaks_it(record):
    lines = markdown(record).splitlines()
    assert lines[2].startswith("| run-009 ★ | succeeded | 0.08200 |")
    assert lines[-1].startswith("| run-010 | failed | – |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_csv_keeps_the_order_in_which_trials_were_made(record):
    lines = as_csv(record).splitlines()
    assert (
        lines[0] == "trial,status,AvgLoss (min),AvgLoss (latest),start-lr,k,started,finished,reason"
    )
    assert [line.split(",")[0] for line in lines[1:]] == [one["name"] for one in record["trials"]]


def test_importance_tells_what_mattered_from_what_did_not():
    generator = np.random.default_rng(1)
    rate, noise = generator.uniform(size=40), generator.uniform(size=40)
    losses = (rate - 0.3) ** 2 + 0.01 * generator.normal(size=40)
    kinds = np.where(generator.uniform(size=40) < 0.5, "adam", "ranger")
    columns = {
        "noise": [str(v) for v in noise],
        "rate": [str(v) for v in rate],
        "kind": list(kinds),
        "fixed": ["1"] * 40,
    }
    found = {one.name: one for one in importances(columns, list(losses))}
    assert next(iter(found)) == "rate"
    assert set(found) == {"noise", "rate", "kind"}, "what does not vary has no importance"
    assert found["rate"].beyond_chance
    assert found["rate"].share > 0.5
    assert not found["noise"].beyond_chance


def test_chance_is_what_the_formula_says():
    """For k groups of N trials without any effect, the share is (k - 1) / (N - 1) on average."""
    generator = np.random.default_rng(2)
    columns = {f"p{i}": [str(v) for v in generator.integers(0, 3, size=30)] for i in range(200)}
    found = importances(columns, list(generator.normal(size=30)))
    assert np.mean([one.share for one in found]) == pytest.approx(2 / 29, rel=0.15)
    assert np.mean([one.beyond_chance for one in found]) == pytest.approx(0.05, abs=0.04)


def test_with_few_trials_nothing_is_claimed():
    assert importances({"a": ["1", "2", "3"]}, [0.1, 0.2, 0.3]) == []


def test_equal_losses_make_nothing_important():
    found = importances({"a": ["1", "2"] * 5}, [0.5] * 10)
    assert [one.share for one in found] == [0.0]
