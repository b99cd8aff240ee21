"""The search space: what a user writes in YAML (or in the UI as JSON), checked, and in the words of
a Katib Experiment.

A parameter's name is a flag of weaver.train or an option of the network, with hyphens or
underscores. Values travel as text.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import re
from typing import Any

from common import storage
from common.errors import InputError, unknown
from common.project import here

TYPES = ("int", "double", "discrete", "categorical")
DISTRIBUTIONS = ("uniform", "logUniform")
KEYS = ("name", "type", "min", "max", "step", "list", "distribution", "only_for")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension: a range (int, double) or a list (discrete, categorical).

    Raises InputError where it makes no sense.
    """

    name: str
    type: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    list: tuple[str, ...] = ()
    distribution: str = "uniform"
    only_for: str = "*"

    def __post_init__(self) -> None:
        where = f"search space, parameter '{self.name}'"
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name):
            raise InputError(f"{where}: a name is letters, digits, '-' and '_'")
        if self.type not in TYPES:
            raise InputError(f"{where}: {unknown('type', self.type, TYPES)}")
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"{where}: {unknown('distribution', self.distribution, DISTRIBUTIONS)}"
            )
        if self.type in ("int", "double"):
            self._check_range(where)
        elif not self.list or len(set(self.list)) != len(self.list):
            raise InputError(
                f"{where}: type {self.type} needs a list of different values, as 'list: [50, 100]'"
            )
        elif self.type == "discrete":
            for value in self.list:
                _number(where, "list", value)

    def _check_range(self, where: str) -> None:
        if self.min is None or self.max is None:
            raise InputError(f"{where}: type {self.type} needs min and max")
        if not self.min < self.max:
            raise InputError(f"{where}: min {text(self.min)} is not below max {text(self.max)}")
        if self.type == "int" and any(
            v is not None and v != int(v) for v in (self.min, self.max, self.step)
        ):
            raise InputError(f"{where}: type int needs whole numbers")
        if self.distribution == "logUniform" and self.min <= 0:
            raise InputError(f"{where}: logUniform needs min above 0")
        if self.step is not None and self.step <= 0:
            raise InputError(f"{where}: step must be above 0")
        if self.step is not None and self.distribution == "logUniform":
            raise InputError(f"{where}: a step and logUniform exclude each other")

    @property
    def lowest(self) -> float:
        """The smallest number of a range or of a list of numbers."""
        return self.min if self.min is not None else min(float(value) for value in self.list)

    @property
    def extremes(self) -> list[str]:
        """Values, as a trial gets them, that show whether all of the dimension can be used: both
        ends, or everything listed.
        """
        return list(self.list) or [text(self.min), text(self.max)]

    @property
    def trial_name(self) -> str:
        """The name inside `${trialParameters.}`, in camel case as Katib's own examples write it."""
        first, *rest = re.split(r"[-_]", self.name)
        return first + "".join(part.capitalize() for part in rest)

    def as_katib(self) -> dict[str, Any]:
        """The parameter as `spec.parameters` of an Experiment has it; all numbers are strings
        there.
        """
        space: dict[str, Any] = (
            {"list": list(self.list)}
            if self.list
            else {"min": text(self.min), "max": text(self.max)}
        )
        if self.step is not None:
            space["step"] = text(self.step)
        if self.distribution != "uniform":
            space["distribution"] = self.distribution
        return {"name": self.name, "parameterType": self.type, "feasibleSpace": space}

    def as_json(self) -> dict[str, Any]:
        values = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if value not in (None, (), "uniform", "*")
        }
        return {
            key: list(value) if isinstance(value, tuple) else _whole(value)
            for key, value in values.items()
        }


def parse(content: str, *, where: str = "the search space") -> list[Parameter]:
    """Parameters from YAML or JSON text. Raises InputError naming what is wrong and what exists."""
    import yaml

    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise InputError(
            f"{where} is neither YAML nor JSON: {' '.join(str(error).split())}"
        ) from None
    entries = document.get("parameters") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{where} has no list of parameters; write 'parameters:' and one '- {{name: ..., type:"
            " ...}' each"
        )
    parameters = [_parameter(entry, where) for entry in entries]
    places = [(parameter.trial_name, parameter.only_for) for parameter in parameters]
    for parameter, place in zip(parameters, places, strict=True):
        if places.count(place) > 1 or parameter.trial_name == "trialName":
            raise InputError(
                f"{where}: parameter '{parameter.name}' is there twice, or its name is Katib's own"
            )
    return parameters


def load(source: str) -> list[Parameter]:
    """Parameters from a file (path or URI), or from the text itself where it begins like JSON or
    YAML with several lines.
    """
    return (
        parse(source) if is_text(source) else parse(storage.read_text(here(source)), where=source)
    )


def is_text(source: str) -> bool:
    """True for a space that is there as text rather than by its place."""
    return source.lstrip().startswith(("{", "[")) or "\n" in source


def for_network(parameters: list[Parameter], network_config: str) -> list[Parameter]:
    """Those whose `only_for` pattern matches the network file's name; '!' before a pattern means
    all others.

    Raises InputError if none is left, or one is left twice.
    """
    stem = storage.name(network_config).removesuffix(".py")
    fitting = [parameter for parameter in parameters if _is_for(stem, parameter.only_for)]
    if not fitting:
        raise InputError(
            f"the search space has no parameter for the network '{stem}'; 'only_for' keeps all of"
            " them from it"
        )
    names = [parameter.trial_name for parameter in fitting]
    for parameter in fitting:
        if names.count(parameter.trial_name) > 1:
            raise InputError(
                f"the search space has the parameter '{parameter.name}' twice for the network"
                f" '{stem}'; see 'only_for'"
            )
    return fitting


def _is_for(stem: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(stem, pattern.removeprefix("!")) != pattern.startswith("!")


def check_algorithm(parameters: list[Parameter], algorithm: str) -> None:
    """Raise InputError where the algorithm cannot search the space, in Katib or on one machine."""
    ranges = [parameter for parameter in parameters if not parameter.list]
    if algorithm == "cmaes" and len(ranges) < 2:
        raise InputError(
            "algorithm cmaes needs two parameters of type int or double; the search space has"
            f" {len(ranges)}"
        )
    for parameter in ranges:
        where = f"search space, parameter '{parameter.name}'"
        if algorithm == "grid" and parameter.type == "double" and parameter.step is None:
            raise InputError(f"{where}: algorithm grid needs a step, or a list instead of a range")
        if (
            algorithm in ("sobol", "cmaes")
            and parameter.type == "int"
            and parameter.distribution == "logUniform"
        ):
            raise InputError(
                f"{where}: algorithm {algorithm} draws whole numbers uniformly only; take type"
                " double, or another algorithm"
            )


def grid_size(parameters: list[Parameter]) -> int:
    """How many points a grid has. The parameters must have passed check_algorithm for it."""
    return math.prod(
        len(p.list) or math.floor((p.max - p.min) / (p.step or 1) + 1e-9) + 1 for p in parameters
    )


def cautions(parameters: list[Parameter], algorithm: str) -> list[str]:
    """What a cluster does otherwise than it was asked, as sentences."""
    names = [parameter.name for parameter in parameters if parameter.distribution == "logUniform"]
    if algorithm in ("sobol", "cmaes") and names:
        return [
            f"algorithm {algorithm}: Katib up to 0.19 draws {', '.join(names)} uniformly, whatever"
            " the search space says (katib#2688); random and tpe draw it logarithmically"
        ]
    return []


def to_json(parameters: list[Parameter]) -> str:
    """One line of JSON that `parse` reads back: the form in which the space travels as a pipeline
    parameter.
    """
    return json.dumps({"parameters": [parameter.as_json() for parameter in parameters]})


def text(number: float | None) -> str:
    """A number as plain as can be: 5 rather than 5.0, 0.00005 rather than 5e-05."""
    if number is None:
        return ""
    if float(number) == int(number):
        return str(int(number))
    digits = max(0, 9 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}".rstrip("0").rstrip(".")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == int(value) else value


def _parameter(entry: Any, where: str) -> Parameter:
    if not isinstance(entry, dict) or "name" not in entry or "type" not in entry:
        raise InputError(f"{where}: {entry!r} is no parameter; write {{name: ..., type: ...}}")
    name = str(entry["name"])
    for key in entry:
        if key not in KEYS:
            raise InputError(f"{where}, parameter '{name}': {unknown('key', str(key), KEYS)}")
    values = dict(entry, name=name, type=str(entry["type"]))
    for key in ("min", "max", "step"):
        if values.get(key) is not None:
            values[key] = _number(f"{where}, parameter '{name}'", key, values[key])
    if "list" in values:
        if not isinstance(values["list"], list):
            raise InputError(f"{where}, parameter '{name}': list must be a list, as [50, 100]")
        values["list"] = tuple(
            text(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
            for v in values["list"]
        )
    return Parameter(**values)


def _number(where: str, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {key} {value!r} is no number") from None
    if not math.isfinite(number):
        raise InputError(f"{where}: {key} {value!r} is not finite")
    return number
