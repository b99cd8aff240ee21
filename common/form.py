"""Map the fields of RunConfig to the parameters in Kubeflow's form, and back.

The form sorts the pipeline's parameters by name, and shows a text field for each, with its name and
type but without a description. To keep the form short, only a few fields of RunConfig are
parameters themselves (`own_input`). Their names are chosen so that those that users change first
sort first, and the storage of the run sorts last. All other fields are entries of one JSON
parameter, `settings`, for which the form has an editor; prefixes of their names group them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from common.cli import truth
from common.config import PREFIXED_NAME, RunConfig, flag
from common.errors import InputError, unknown

SETTINGS = "settings"
SHOWN = 60
"""Characters of a refused text that its error shows."""
SEARCH_SPACE = "search_space"
"""The only parameter that is JSON in the form and text in RunConfig."""
PREFIXES = {
    "data and network": "data",
    "search": "search",
    "resources": "pods",
    "gates and serving": "serve",
    "tracking": "tracking",
    "Kubeflow": "kubeflow",
}
"""Groups of `--help` -> first word of their names in the form."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One field of RunConfig as the form has it."""

    name: str
    field: str
    default: Any
    description: str
    own_input: bool
    of_site: bool

    @property
    def type(self) -> type:
        """Its type as a parameter of the pipeline."""
        return dict if self.name == SEARCH_SPACE else type(self.default)


def _entries() -> tuple[Entry, ...]:
    entries = []
    for field in dataclasses.fields(RunConfig):
        metadata = field.metadata
        name = metadata["form"]
        if name == PREFIXED_NAME:
            prefix = PREFIXES[metadata["group"]]
            name = field.name if field.name.startswith(prefix) else f"{prefix}_{field.name}"
        if name:
            text = f"{metadata['help']} (--{flag(field.name)})"
            if metadata["choices"]:
                text = f"{text}: {', '.join(metadata['choices'])}"
            entries.append(
                Entry(
                    name=name,
                    field=field.name,
                    default=field.default,
                    description=text,
                    own_input=metadata["own_input"],
                    of_site=metadata["of_site"],
                )
            )
    return tuple(sorted(entries, key=lambda entry: entry.name))


ENTRIES = _entries()
OWN_INPUTS = tuple(entry for entry in ENTRIES if entry.own_input)
IN_SETTINGS = tuple(entry for entry in ENTRIES if not entry.own_input)
TYPES: dict[str, type] = {**{entry.name: entry.type for entry in OWN_INPUTS}, SETTINGS: dict}
"""The parameters of the pipeline -> their types."""
DESCRIPTIONS = {
    **{entry.name: entry.description for entry in OWN_INPUTS},
    SETTINGS: "everything else, one line each: "
    + "; ".join(f"{entry.name}: {entry.description}" for entry in IN_SETTINGS),
}
"""The parameters of the pipeline -> their descriptions."""
_FIELDS = {entry.name: entry.field for entry in ENTRIES}


def field_of(parameter: str) -> str:
    """Return the field of RunConfig for a parameter or setting; other names are returned as is."""
    return _FIELDS.get(parameter, parameter)


def parameters(config: RunConfig, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the pipeline for a configuration, whose search space is `space`."""
    values = {entry.name: getattr(config, entry.field) for entry in OWN_INPUTS}
    values[SEARCH_SPACE] = dict(space)
    values[SETTINGS] = {entry.name: getattr(config, entry.field) for entry in IN_SETTINGS}
    return {name: values[name] for name in TYPES}


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of RunConfig's fields by name: the inverse of `parameters`.

    The search space becomes text. Unknown names are kept, because in earlier versions the
    parameters had the names of the fields.
    """
    flat = {name: value for name, value in values.items() if name != SETTINGS}
    flat.update(values.get(SETTINGS) or {})
    by_field = {field_of(name): value for name, value in flat.items()}
    if isinstance(by_field.get(SEARCH_SPACE), Mapping):
        by_field[SEARCH_SPACE] = json.dumps(by_field[SEARCH_SPACE])
    return by_field


def fields_of_settings(text: str) -> dict[str, Any]:
    """Return the fields of RunConfig that the settings name, in their types.

    Settings that are not there have the defaults of RunConfig. Raises InputError for what is no
    JSON object, and for an entry whose name or type is wrong.
    """
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{SETTINGS} is not JSON: {error}; write an object such as {{"pods_memory": "12Gi"}}'
        ) from None
    if not isinstance(settings, dict):
        raise InputError(
            f"{SETTINGS} is {text.strip()[:SHOWN]}, which is not a JSON object; write one, such as"
            ' {"pods_memory": "12Gi"}'
        )
    entries = {entry.name: entry for entry in IN_SETTINGS}
    values = {}
    for name, value in settings.items():
        if name in TYPES:
            raise InputError(
                f"{SETTINGS}: {name} is a parameter of its own; remove it here, and set the"
                f" parameter {name}"
            )
        if name not in entries:
            raise InputError(f"{SETTINGS}: {unknown('setting', name, list(entries))}")
        values[entries[name].field] = _to_field_type(entries[name], value)
    return values


def _to_field_type(entry: Entry, value: Any) -> Any:
    """Convert a JSON value to the field's type: 2.0 to 2 for an int, 7 to '7' for text."""
    wrong = InputError(
        f"{SETTINGS}: {entry.name} is {json.dumps(value)}; write"
        f" {_WORDS[type(entry.default)]}, as {json.dumps(entry.default)}"
    )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if isinstance(entry.default, bool):
            return value if isinstance(value, bool) else truth(str(value))
        if isinstance(entry.default, str):
            if is_number:
                return str(int(value)) if value == int(value) else str(value)
            if not isinstance(value, str):
                raise wrong
            return value
        if not is_number and not isinstance(value, str):
            raise wrong
        number = float(value)
        if isinstance(entry.default, float):
            return number
        if number != int(number):
            raise wrong
        return int(number)
    except (ValueError, OverflowError):
        raise wrong from None


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
