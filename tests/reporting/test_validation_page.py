"""The page of data.validate, from records and arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reporting.validation_page import drawings, render
from tests.reporting.elements import HOSTILE, Elements, assert_harmless


@dataclasses.dataclass(frozen=True)
class Finding:
    level: str = "error"
    where: str = "jets.root"
    problem: str = "jetPt: 1 of 3 values are NaN"
    remedy: str = "make the file again"


@dataclasses.dataclass(frozen=True)
class Measured:
    topic: str = "resolution, barrel"
    where: str = "50 GeV"
    value: float = 0.18
    error: float = 0.01
    low: float = 0.16
    high: float = 0.21
    jets: int = 1234
    within: bool = True


@pytest.fixture
def jets():
    """The columns of data.summary that are drawn; light quarks have a larger likelihood."""
    generator = np.random.default_rng(1)
    flavour = generator.choice([1, -2, 21], 600)
    return {
        "jetPt": generator.uniform(30, 300, 600),
        "genJetPt": generator.uniform(30, 300, 600),
        "nPF": generator.integers(10, 200, 600),
        "nInCone": generator.integers(5, 80, 600),
        "fromPVFraction": np.r_[np.nan, generator.uniform(size=599)],
        "partonFlav": flavour,
        "jetQGl": np.where(flavour == 21, 0.3, 0.7),
    }


def test_a_page_of_jets_without_errors_has_numbers_and_figures(jets):
    numbers = [Measured(), Measured(where="111 GeV", value=0.3, within=False)]
    page = render({"train": jets, "test": jets}, [], numbers, num_errors=0)
    elements = Elements(page)
    assert elements.open == []
    assert all(address.startswith("#") for address in elements.addresses)
    assert "Nothing wrong was found Jets: train 600, test 600. 1 of 2 numbers" in elements.text
    assert "resolution, barrel 50 GeV 1,234 0.18 ± 0.01 0.16 to 0.21 yes" in elements.text
    words = [figure["aria-label"] for figure in elements.figures]
    assert len(words) == 6
    assert words[0].startswith("resolution, barrel: 50 GeV 0.18 (target 0.16 to 0.21)")
    assert "Distribution of genJetPt; means: train 1" in words[1]


def test_a_page_of_errors_without_jets_has_no_figures():
    page = render({}, [Finding(), Finding(level="warning")], [], num_errors=1)
    text = Elements(page).text
    assert "1 check failed Jets: none could be read. 0 of 0 numbers" in text
    assert "error jets.root jetPt: 1 of 3 values are NaN make the file again" in text
    assert "Too few jets to compare." in text
    assert Elements(page).figures == []


def test_too_few_jets_or_numbers_give_no_figure(jets):
    few = {name: values[:150] for name, values in jets.items()}
    single = [Measured(topic="candidates a jet")]
    names = [drawing.name for drawing in drawings({"few": few}, single)]
    assert "likelihood" not in names, "the distribution of few jets shows nothing"
    assert not any(name.startswith("candidates") for name in names), "one number is not a figure"


def test_names_and_values_never_become_markup(jets):
    finding = Finding(level=HOSTILE, where=f"in {HOSTILE}", problem=HOSTILE, remedy=f"do {HOSTILE}")
    numbers = [Measured(topic=f"topic {HOSTILE}"), Measured(topic="b", where=HOSTILE)]
    page = render({HOSTILE: jets}, [finding], numbers, num_errors=1)
    assert_harmless(page, f"in {HOSTILE}", f"do {HOSTILE}", f"topic {HOSTILE}", f"{HOSTILE} 600")
