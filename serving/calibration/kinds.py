"""The kind of jets (radius, pile-up treatment, year), and whether a correction fits another kind.

A correction is valid for jets like those it was derived from. The facts of the model card (`--card
FILE` of the export) are compared with those of a file: the title of CMS's branch nJet, the name of
the tree, the number of the first run, and the campaign in the path. Properties that either side
does not have are not compared.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

RADIUS = re.compile(r"(?:\b|Jets)AK(\d{1,2})|anti-?k_?t[\s_]*(?:R\s*=\s*)?0\.(\d)", re.IGNORECASE)
# The first run of each year's collisions, from CMS' luminosity tables; 1 is simulation.
FIRST_RUNS = {
    2010: 132440,
    2011: 160329,
    2012: 190456,
    2015: 246908,
    2016: 272007,
    2017: 294927,
    2018: 315252,
    2022: 352319,
    2023: 365753,
    2024: 378981,
    2025: 391000,
}
PERIODS = {1: range(2010, 2013), 2: range(2015, 2019), 3: range(2022, 2027)}
NUMERALS = {"1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}
# "UL18", which goes before the year in which Ultra Legacy was produced ("Summer20UL18")
ULTRA_LEGACY = re.compile(r"(?<![A-Za-z])UL[_-]?(?:20)?(1[5-8])|(?<=\d)UL(?:20)?(1[5-8])")
SEASON = re.compile(r"(?:Summer|Autumn|Fall|Winter|Spring)_?(?:20)?([12]\d)")
DATA_TAKING = re.compile(r"Run(20[12]\d)[A-Z]")
YEARS = re.compile(r"(?<!\d)(20[12]\d)\s*(?:-|–|to)\s*(20[12]\d)(?!\d)")
YEAR = re.compile(r"(?<!\d)(20[12]\d)(?!\d)")
PERIOD = re.compile(r"\bRun[\s_-]?(III|II|I|[123])(?![a-zA-Z0-9])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JetKind:
    """Kind of some jets; unknown properties are empty."""

    radius: str = ""
    """Ten times the radius: 4 of AK4."""
    pileup: str = ""
    """CHS or PUPPI."""
    years: frozenset[int] = frozenset()
    """Years of data taking, or those that the simulation describes."""
    era: str = ""
    """The text from which the years were read."""


def kind_of_training(facts: Mapping[str, str], treename: str | None) -> JetKind:
    """Return the kind of the training jets, from the facts of the model card and the tree.

    Facts whose name contains "jet" give the type of the jets; facts named era or year the years, or
    else campaign.
    """
    texts = {name.lower(): text for name, text in facts.items()}
    jets = " ".join(text for name, text in texts.items() if "jet" in name)
    kind = of_title(jets)
    if not kind.radius and treename:
        kind = dataclasses.replace(kind, radius=_radius(treename))
    for name in ("era", "eras", "year", "years", "campaign"):
        text = texts.get(name, "")
        years = years_of(text)
        if years:
            return dataclasses.replace(kind, years=years, era=text)
    return kind


def of_title(title: str) -> JetKind:
    """Return the kind from words like "slimmedJetsPuppi, i.e. ak4 PFJets Puppi"."""
    pileup = ""
    if re.search("puppi", title, re.IGNORECASE):
        pileup = "PUPPI"
    elif re.search("chs", title, re.IGNORECASE):
        pileup = "CHS"
    return JetKind(radius=_radius(title), pileup=pileup)


def of_path(uri: str) -> JetKind:
    """Return the years from a campaign in a path: RunIISummer20UL18NanoAODv9, Run2018A."""
    match = ULTRA_LEGACY.search(uri)
    if match:
        return _of_year(2000 + int(match[1] or match[2]), match[0])
    match = DATA_TAKING.search(uri)
    if match:
        return _of_year(int(match[1]), match[0])
    match = re.search(rf"Run(?:III|II|I|[123])(?:20[12]\d)?{SEASON.pattern}", uri)
    return _of_year(2000 + int(match[1]), match[0]) if match else JetKind()


def of_run(run: int) -> JetKind:
    """Return the year of a run of collisions; unknown for simulation, whose run is 1."""
    years = [year for year, first in FIRST_RUNS.items() if run >= first]
    return _of_year(years[-1], f"run {run}") if years else JetKind()


def combined(kinds: list[JetKind]) -> JetKind:
    """Combine several descriptions of the same jets; the first takes precedence."""
    properties: dict[str, str] = {}
    years = JetKind()
    for kind in reversed(kinds):
        properties |= {
            name: value for name in ("radius", "pileup") if (value := getattr(kind, name))
        }
        years = kind if kind.years else years
    return JetKind(years=years.years, era=years.era, **properties)


def differences(training: JetKind, jets: JetKind) -> list[str]:
    """Return why a correction does not fit these jets, one clause for each reason."""
    clauses = []
    if training.radius and jets.radius and training.radius != jets.radius:
        clauses.append(f"its jets are AK{jets.radius}, those of the training AK{training.radius}")
    if training.pileup and jets.pileup and training.pileup != jets.pileup:
        clauses.append(f"its jets are {jets.pileup} jets, those of the training {training.pileup}")
    if training.years and jets.years and not training.years & jets.years:
        clauses.append(
            f"it is of {_words(jets.years)} ({jets.era}), the training of"
            f" {_words(training.years)} ({training.era})"
        )
    return clauses


def unknown_properties(training: JetKind, jets: JetKind) -> list[str]:
    """Return the properties that cannot be compared, because one side does not have them."""
    names = {"radius": "radius", "pileup": "CHS or PUPPI", "years": "era"}
    return [
        text
        for name, text in names.items()
        if not (getattr(training, name) and getattr(jets, name))
    ]


def years_of(text: str) -> frozenset[int]:
    """Return the years that a text names: 2018, 2016-2018, UL18, RunIISummer20UL18, Run 2."""
    years = {2000 + int(a or b) for a, b in ULTRA_LEGACY.findall(text)}
    if years:
        return frozenset(years)
    for first, last in YEARS.findall(text):
        years |= set(range(int(first), int(last) + 1))
    years |= {int(year) for year in YEAR.findall(text) + DATA_TAKING.findall(text)}
    years |= {2000 + int(year) for year in SEASON.findall(text)}
    if not years:
        for numeral in PERIOD.findall(text):
            years |= set(PERIODS[NUMERALS[numeral]])
    return frozenset(years)


def _radius(text: str) -> str:
    match = RADIUS.search(text)
    return (match[1] or match[2]) if match else ""


def _of_year(year: int, era: str) -> JetKind:
    return JetKind(years=frozenset({year}), era=era)


def _words(years: frozenset[int]) -> str:
    return ", ".join(str(year) for year in sorted(years))
