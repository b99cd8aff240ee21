"""The search space: parsed from YAML (or JSON, in the UI), checked, and converted for Katib.

The name of a parameter is a flag of weaver.train or an option of the network, with hyphens or
underscores. Values are passed to trials as text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clusters.protocol import Manifest
from common import algorithms, storage, yaml_text
from common.errors import InputError, unknown
from common.project import here

TYPES = ("int", "double", "discrete", "categorical")
DISTRIBUTIONS = ("uniform", "logUniform")
FORBIDDEN = re.compile(r"""['"\\\x00-\x1f]|\$[$({]""")
"""Characters that no value may have, because Katib and the kubelet replace text without quoting.

A single quote would end the quotes of the trial's command (clusters.pod_command). Katib puts a
value into the trial's JSON unescaped, where double quotes, backslashes and control characters have
a meaning (katib v0.19.0 pkg/controller.v1beta1/experiment/manifest/generator.go:191-194; seen:
a search whose value has a double quote makes no trial). The kubelet expands $$ and $(, Katib ${.
"""
KEYS = ("name", "type", "min", "max", "step", "list", "distribution", "only_for")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension of the search space: a range (int, double) or a list (discrete, categorical).

    Raises:
        InputError: If its fields contradict each other.
    """

    name: str
    type: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    list: tuple[str, ...] = ()
    distribution: str = "uniform"
    only_for: str = "*"

    @classmethod
    def from_entry(cls, entry: object, where: str) -> Parameter:
        """Return the parameter that an entry of the YAML file describes.

        Args:
            entry: The entry.
            where: Beginning of error messages: the file.

        Raises:
            InputError: If a key is unknown, or a value is invalid.
        """
        if isinstance(entry, dict) and ("parameterType" in entry or "feasibleSpace" in entry):
            raise InputError(
                f"{where}: parameter '{entry.get('name', '')}' is in Katib's own form; write"
                f" {_from_katib(entry)}"
            )
        if not isinstance(entry, dict) or "name" not in entry or "type" not in entry:
            raise InputError(
                f"{where}: {entry!r} is not a parameter; write {{name: ..., type: ...}}"
            )
        name = str(entry["name"])
        for key in entry:
            if key not in KEYS:
                raise InputError(f"{where}, parameter '{name}': {unknown('key', str(key), KEYS)}")
        fields: dict[str, Any] = {**entry, "name": name, "type": str(entry["type"])}

        for key in ("min", "max", "step"):
            if fields.get(key) is not None:
                fields[key] = _number(f"{where}, parameter '{name}'", key, fields[key])

        if "list" in fields:
            if not isinstance(fields["list"], list):
                raise InputError(f"{where}, parameter '{name}': list must be a list, as [50, 100]")
            texts = []
            for value in fields["list"]:
                # Python counts true and false as numbers, but trials get them as words.
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                texts.append(text(value) if is_number else str(value))
            fields["list"] = tuple(texts)
        return cls(**fields)

    def __post_init__(self) -> None:
        """Check the parameter as Katib would.

        Raises:
            InputError: If its fields contradict each other.
        """
        where = f"search space, parameter '{self.name}'"
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name):
            raise InputError(
                f"{where}: a name has letters, digits, '-' and '_' and begins with a letter"
            )
        if self.type not in TYPES:
            raise InputError(f"{where}: {unknown('type', self.type, TYPES)}")
        if self.distribution not in DISTRIBUTIONS:
            raise InputError(
                f"{where}: {unknown('distribution', self.distribution, DISTRIBUTIONS)}"
            )
        if self.type in ("int", "double"):
            if self.list:
                raise InputError(
                    f"{where}: type {self.type} has min and max, a list belongs to discrete or"
                    " categorical; leave the list out, or write 'type: discrete' without min and"
                    " max"
                )
            self._check_range(where)
        elif self.min is not None or self.max is not None or self.step is not None:
            raise InputError(
                f"{where}: type {self.type} has a list, min, max and step belong to int or double;"
                " leave them out, or write 'type: double' without a list"
            )
        elif not self.list or len(set(self.list)) != len(self.list):
            raise InputError(
                f"{where}: type {self.type} needs a list of different values, as 'list: [50, 100]'"
            )
        for value in self.list:
            if match := FORBIDDEN.search(value):
                raise InputError(
                    f"{where}: value {value!r} has {match[0]!r}, which Katib cannot pass to a"
                    " trial; write it without quotes, backslashes, line breaks, $$, $( and ${"
                )
            if self.type == "discrete":
                _number(where, "list", value)

    def _check_range(self, where: str) -> None:
        if self.min is None or self.max is None:
            raise InputError(
                f"{where}: type {self.type} needs min and max; write both, as 'min: 1, max: 9'"
            )
        if not self.min < self.max:
            raise InputError(
                f"{where}: min {text(self.min)} is not below max {text(self.max)}; lower min, or"
                " raise max"
            )
        if self.type == "int":
            for number in (self.min, self.max, self.step):
                if number is not None and number != int(number):
                    raise InputError(
                        f"{where}: {text(number)} is not a whole number, and type int needs whole"
                        " numbers; write one, or 'type: double'"
                    )
        if self.distribution == "logUniform" and self.min <= 0:
            raise InputError(
                f"{where}: min is {text(self.min)}, and logUniform needs min above 0; raise min, or"
                " leave the distribution out"
            )
        if self.step is not None and self.step <= 0:
            raise InputError(f"{where}: step is {text(self.step)}; it must be above 0")
        if self.step is not None and self.distribution == "logUniform":
            raise InputError(f"{where}: a step and logUniform exclude each other; remove one")

    @property
    def flag(self) -> str:
        """Return the name with hyphens, as for flags of weaver.train."""
        return self.name.replace("_", "-")

    @property
    def option(self) -> str:
        """Return the name with underscores, as for options of a network."""
        return self.name.replace("-", "_")

    @property
    def lowest(self) -> float:
        """Return the smallest number of a range or of a list of numbers."""
        return self.min if self.min is not None else min(float(value) for value in self.list)

    @property
    def extremes(self) -> Sequence[str]:
        """Return both ends of a range, or the whole list, as text for a trial.

        A network that accepts these values accepts the whole dimension.
        """
        return self.list or (text(self.min), text(self.max))

    @property
    def is_logarithmic(self) -> bool:
        """Return whether values are drawn uniformly in their logarithm."""
        return self.distribution == "logUniform"

    @property
    def num_grid_points(self) -> int:
        """Return the number of values in a grid; a range of integers without a step has step 1."""
        if self.min is None or self.max is None:
            return len(self.list)
        # Tolerates rounding errors: 0 to 0.3 by 0.1 has four points.
        return math.floor((self.max - self.min) / (self.step or 1) + 1e-9) + 1

    @property
    def trial_name(self) -> str:
        """Return the name inside `${trialParameters.}`, in camel case as in examples of Katib."""
        first, *rest = re.split(r"[-_]", self.name)
        return first + "".join(part.capitalize() for part in rest)

    def as_katib(self) -> Manifest:
        """Return the entry of `spec.parameters` in an Experiment, where all numbers are strings."""
        space: Manifest
        if self.list:
            space = {"list": list(self.list)}
        else:
            space = {"min": text(self.min), "max": text(self.max)}
        if self.step is not None:
            space["step"] = text(self.step)
        if self.distribution != "uniform":
            space["distribution"] = self.distribution
        return {"name": self.name, "parameterType": self.type, "feasibleSpace": space}

    def as_json(self) -> Mapping[str, object]:
        """Return the entry that `parse` reads back, without defaults."""
        entry: dict[str, object] = {}
        for key, value in dataclasses.asdict(self).items():
            if value in (None, (), "uniform", "*"):
                continue
            if isinstance(value, tuple):
                entry[key] = list(value)
            elif isinstance(value, float) and value == int(value):
                entry[key] = int(value)
            else:
                entry[key] = value
        return entry


def _from_katib(entry: Mapping[str, object]) -> str:
    """Return a parameter of a Katib Experiment in the form of this file, as JSON, which YAML reads.

    Katib writes numbers as text; here they are numbers again.
    """
    kind = entry.get("parameterType", "double")
    own: dict[str, object] = {"name": entry.get("name", "..."), "type": kind}
    space = entry.get("feasibleSpace")
    for key, value in space.items() if isinstance(space, dict) else ():
        if kind == "categorical" or key == "distribution":
            own[key] = value
        elif isinstance(value, list):
            own[key] = [_as_number(item) for item in value]
        else:
            own[key] = _as_number(value)
    return json.dumps(own)


def _as_number(value: object) -> object:
    """Return the number that a text holds; the value itself if it holds none."""
    for convert in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return convert(str(value))
    return value


def parse(content: str, *, where: str = "the search space") -> list[Parameter]:
    """Parse the search space from YAML or JSON.

    Args:
        content: The text.
        where: Beginning of error messages: the file.

    Raises:
        InputError: If the text does not parse, or a parameter is invalid or occurs twice.
    """
    document = yaml_text.load(content, where)
    entries = document.get("parameters") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{where} has no list of parameters; write 'parameters:' and one '- {{name: ..., type:"
            " ...}' each"
        )
    parameters = [Parameter.from_entry(entry, where) for entry in entries]
    places = [(parameter.trial_name, parameter.only_for) for parameter in parameters]
    for parameter, place in zip(parameters, places, strict=True):
        if places.count(place) > 1 or parameter.trial_name == "trialName":
            raise InputError(
                f"{where}: parameter '{parameter.name}' is there twice, or Katib reserves its name;"
                " rename it"
            )
    return parameters


def load(source: str) -> list[Parameter]:
    """Load the search space from a file (path or URI), or parse it if `source` is the space itself.

    Raises:
        InputError: As `parse`, or if the file is missing.
    """
    if is_text(source):
        return parse(source)
    return parse(storage.read_text(here(source)), where=source)


def is_text(source: str) -> bool:
    """Return whether this is a space itself, JSON or YAML of several lines, and not its address."""
    return source.lstrip().startswith(("{", "[")) or "\n" in source


def for_network(parameters: list[Parameter], network_config: str) -> list[Parameter]:
    """Return the parameters whose `only_for` pattern matches the name of the network file.

    '!' before a pattern inverts it.

    Raises:
        InputError: If no parameter matches, or two of the same name do.
    """
    stem = storage.name(network_config).removesuffix(".py")
    selection = []
    for parameter in parameters:
        matches = fnmatch.fnmatchcase(stem, parameter.only_for.removeprefix("!"))
        if matches != parameter.only_for.startswith("!"):
            selection.append(parameter)
    if not selection:
        raise InputError(
            f"the search space has no parameter for the network '{stem}'; 'only_for' excludes all"
            " of them: add the network there, or remove 'only_for'"
        )
    names = [parameter.trial_name for parameter in selection]
    for parameter in selection:
        if names.count(parameter.trial_name) > 1:
            raise InputError(
                f"the search space has the parameter '{parameter.name}' twice for the network"
                f" '{stem}'; see 'only_for'"
            )
    return selection


def check_algorithm(parameters: list[Parameter], name: str) -> None:
    """Check that the algorithm can search the space, both in Katib and on one machine.

    Raises:
        InputError: If it cannot.
    """
    algorithm = algorithms.find_offered(name)
    ranges = [parameter for parameter in parameters if not parameter.list]
    if len(ranges) < algorithm.min_ranges:
        raise InputError(
            f"algorithm {name} needs {algorithm.min_ranges} parameters of type int or double; the"
            f" search space has {len(ranges)}; add some, or choose another algorithm"
        )
    for parameter in ranges:
        where = f"search space, parameter '{parameter.name}'"
        if algorithm.is_grid and parameter.type == "double" and parameter.step is None:
            raise InputError(
                f"{where}: algorithm {name} needs a step, or a list instead of a range"
            )
        is_log_integer = parameter.type == "int" and parameter.is_logarithmic
        if is_log_integer and not algorithm.log_integers:
            raise InputError(
                f"{where}: algorithm {name} draws whole numbers uniformly only; take type"
                " double, or another algorithm"
            )


def grid_size(parameters: list[Parameter]) -> int:
    """Return the number of points of a grid over parameters that passed `check_algorithm`."""
    size = 1
    for parameter in parameters:
        size *= parameter.num_grid_points
    return size


def cautions(parameters: list[Parameter], name: str) -> list[str]:
    """Return sentences on differences between the space and what Katib's algorithm really draws."""
    algorithm = algorithms.find_offered(name)
    logarithmic = [parameter.name for parameter in parameters if parameter.is_logarithmic]
    with_step = []
    for parameter in parameters:
        has_step = parameter.type == "int" or parameter.step is not None
        if has_step and not parameter.list and not parameter.is_logarithmic:
            with_step.append(parameter.name)
    sentences = []
    for caution, names in (
        (algorithm.log_caution, logarithmic),
        (algorithm.step_caution, with_step),
    ):
        if caution and names:
            sentences.append(f"algorithm {name}: {caution.format(names=', '.join(names))}")
    return sentences


def as_document(parameters: list[Parameter]) -> Manifest:
    """Return the space as the document that `parse` reads, for the form of Kubeflow."""
    return {"parameters": [parameter.as_json() for parameter in parameters]}


def to_json(parameters: list[Parameter]) -> str:
    """Return the space as one line of JSON that `parse` reads back, as in run.json."""
    return json.dumps(as_document(parameters))


def text(number: float | None) -> str:
    """Return a number in plain notation: 5 for 5.0, 0.00005 for 5e-05."""
    if number is None:
        return ""
    if float(number) == int(number):
        return str(int(number))
    # Ten significant digits, so that 0.1 + 0.2 is 0.3 although binary floats miss it.
    digits = max(0, 9 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}".rstrip("0").rstrip(".")


def _number(where: str, key: str, value: Any) -> float:
    """Return a value of the YAML file as a finite number.

    Raises:
        InputError: If it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        remedy = "; write one, such as 0.001"
        if key == "list":
            remedy += ", or 'type: categorical' for a list of texts"
        raise InputError(f"{where}: {key} {value!r} is not a number{remedy}") from None
    except OverflowError:
        raise InputError(
            f"{where}: {key} is too large for a floating-point number; write one below 1e308"
        ) from None
    if not math.isfinite(number):
        raise InputError(f"{where}: {key} {value!r} is not finite; write a number such as 0.001")
    return number
