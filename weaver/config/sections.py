"""The sections `preprocess`, `inputs` and `labels` of a data config.

Each function reads one section, adds the expressions it defines to the document, and raises
InputError, with the file and the section, for what it does not accept.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypedDict, cast

from common.errors import unknown
from weaver.config.document import Document, Options, is_names, kind
from weaver.config.plan import OrderKey

AUTO = "auto"
NON_FINITE = ("weaver", "zero", "drop", "error")
"""Policies for NaN and infinity in inputs (weaver/prepared/transform.py)."""
PAD_MODES = ("constant", "wrap")
PARAMETERS = ("center", "scale", "min", "max", "pad_value")
DEFAULTS: tuple[Any, ...] = (None, 1, -5, 5, 0)
"""weaver-core's values of PARAMETERS, in the order in which they follow the name in `vars`."""


class Parameters(TypedDict):
    """How one input variable is standardised and padded."""

    length: int | None
    """Particles of a jet that are kept; None for one value a jet."""
    pad_mode: str
    center: Any
    """A number to subtract; None for no standardisation; AUTO until the number is derived."""
    scale: float
    min: float | None
    max: float | None
    pad_value: float


class Preprocess(TypedDict):
    """The `preprocess` section without the policy for NaN and infinity."""

    method: str
    data_fraction: float
    params: Any
    """Variable -> parameters, as in an *.auto.yaml file; they override those of `inputs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """One group of `inputs`."""

    order_by: tuple[OrderKey, ...]
    names: tuple[str, ...]
    """In the order of the file, which is that of the tensor's channels; names may repeat."""
    variables: dict[str, Parameters]
    """Parameters of each name."""


def parse_preprocess(document: Document) -> tuple[Preprocess, str]:
    """Read `preprocess`; returns the section, and the policy for NaN and infinity.

    Raises InputError for a value that is not allowed.
    """
    section = document.mapping("preprocess")
    document.check_keys("preprocess", section, {"method", "data_fraction", "params", "non_finite"})

    method = str(section.get("method") or "manual").lower()
    if not method.startswith((AUTO, "manual")):
        raise document.error("preprocess", unknown("method", method, (AUTO, "manual")))

    fraction = section.get("data_fraction")
    # weaver-core's default
    fraction = 0.1 if fraction is None else document.number(fraction, "preprocess: data_fraction")
    if not 0 < fraction <= 1:
        raise document.error(
            "preprocess", f"data_fraction must be above 0 and at most 1, found {fraction}"
        )

    policy = section.get("non_finite") or NON_FINITE[0]
    if policy not in NON_FINITE:
        raise document.error("preprocess", unknown("non_finite", str(policy), NON_FINITE))

    method = AUTO if method.startswith(AUTO) else "manual"
    return {"method": method, "data_fraction": fraction, "params": section.get("params")}, policy


def parse_inputs(document: Document, method: str) -> dict[str, Group]:
    """Read `inputs`: name of a group -> group, in the order of the file.

    method: of `preprocess`; with AUTO, the numbers of a variable without subtract_by are derived
    later. Raises InputError for a group or variable that is not in the right form.
    """
    section = document.mapping("inputs")
    if not section:
        raise document.error("", "no 'inputs'; a network needs at least one group of variables")
    for group in section:
        if not re.fullmatch(r"\w[\w.-]*", str(group)):
            raise document.error(
                "inputs", f"{group!r} cannot be the name of a group; use letters, digits and _"
            )
    center = AUTO if method == AUTO else None
    groups = {}
    for group, content in section.items():
        groups[str(group)] = _parse_group(document, str(group), content, center)
    return groups


def _parse_group(document: Document, name: str, content: object, center: str | None) -> Group:
    place = f"inputs:{name}"
    if not isinstance(content, dict):
        raise document.error(place, f"expected length and vars, found {kind(content)}")
    document.check_keys(place, content, {"length", "pad_mode", "order_by", "vars"})
    for key in ("length", "vars"):
        if key not in content:
            hint = " (null for one value a jet)" if key == "length" else ""
            raise document.error(place, f"'{key}' is missing{hint}")

    length = content["length"]
    # to Python, true is the whole number 1
    is_whole = isinstance(length, int) and not isinstance(length, bool)
    if length is not None and (not is_whole or length < 1):
        raise document.error(
            place, f"length must be a positive whole number or null, found {length!r}"
        )
    pad_mode = str(content.get("pad_mode") or "constant").lower()
    if pad_mode not in PAD_MODES:
        raise document.error(place, unknown("pad_mode", pad_mode, PAD_MODES))
    if name.endswith("_mask") and pad_mode != "constant":
        raise document.error(
            place, "a mask needs pad_mode constant: wrapped particles would count as real ones"
        )

    order_by = _parse_order(document, place, content.get("order_by"), length)
    names: list[str] = []
    variables: dict[str, Parameters] = {}
    for variable, numbers in _parse_variables(document, place, content["vars"], center):
        params: Parameters = {
            "length": length,
            "pad_mode": pad_mode,
            "center": numbers["center"],
            "scale": numbers["scale"],
            "min": numbers["min"],
            "max": numbers["max"],
            "pad_value": numbers["pad_value"],
        }
        names.append(variable)
        first = variables.setdefault(variable, params)
        if first != params:
            raise document.error(
                place,
                f"'{variable}' is listed twice, as {first} and as {params}; give both the same",
            )
    return Group(order_by=order_by, names=tuple(names), variables=variables)


def _parse_order(
    document: Document, place: str, texts: object, length: int | None
) -> tuple[OrderKey, ...]:
    if texts is None:
        return ()
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not is_names(texts):
        raise document.error(
            place, f"order_by is a list of expressions, as in [-PF_pT]; found {texts!r}"
        )
    if length is None:
        raise document.error(place, "order_by sorts particles; a group without length has none")
    where = f"{document.source}:{place}:order_by"
    keys = tuple(OrderKey.parse(text, where) for text in texts)
    for key in keys:
        document.functions[key.name] = key.expression
    return keys


def _parse_variables(
    document: Document, place: str, entries: object, center: str | None
) -> list[tuple[str, Options]]:
    """Return the list `vars`: variables, each with the value of each of PARAMETERS."""
    if not isinstance(entries, list) or not entries:
        raise document.error(place, f"vars must be a list of variables, found {kind(entries)}")
    variables: list[tuple[str, Options]] = []
    for entry in entries:
        name, *values = entry if isinstance(entry, list) and entry else [entry]
        if not isinstance(name, str) or len(values) > len(PARAMETERS):
            form = "a name or [name, subtract_by, multiply_by, clip_min, clip_max, pad_value]"
            raise document.error(place, f"each of vars is {form}; found {entry!r}")

        numbers = dict(zip(PARAMETERS, (center, *DEFAULTS[1:]), strict=True))
        for key, value in zip(PARAMETERS, values, strict=False):
            # null asks for no standardisation, or for no bound
            is_null = value is None and key in ("center", "min", "max")
            is_auto = key == "center" and value == AUTO
            if is_null or is_auto:
                numbers[key] = value
            else:
                numbers[key] = document.number(value, f"{place}:{name}: {key}")
        variables.append((name, numbers))
    return variables


def parse_params(
    document: Document, groups: Mapping[str, Group], preprocess: Preprocess
) -> dict[str, Parameters]:
    """Collect variable -> parameters from all groups; `preprocess: params` overrides them.

    Raises InputError for a variable whose parameters differ between groups.
    """
    all_params: dict[str, Parameters] = {}
    overrides = preprocess["params"]
    for group_name, group in groups.items():
        for name, params in group.variables.items():
            if overrides is not None:
                all_params[name] = _override(document, overrides, name)
                continue
            other = all_params.setdefault(name, params)
            if other != params:
                raise document.error(
                    f"inputs:{group_name}",
                    f"'{name}' is used in another group as {other}, here as {params}; give it the"
                    " same parameters in all groups",
                )
    return all_params


def _override(document: Document, overrides: object, name: str) -> Parameters:
    keys = ("length", "pad_mode", *PARAMETERS)
    params = overrides.get(name) if isinstance(overrides, dict) else None
    if not isinstance(params, dict) or set(params) != set(keys):
        raise document.error(
            "preprocess", f"params must give {', '.join(keys)} for the input '{name}'"
        )
    return cast(Parameters, dict(params))


def parse_labels(document: Document) -> tuple[str, tuple[str, ...]]:
    """Read `labels`; returns the type, simple or custom, and the names of the label columns.

    Raises InputError for another type, or a value that does not fit the type.
    """
    section = document.mapping("labels")
    document.check_keys("labels", section, {"type", "value", "names"})
    label_type = section.get("type")
    value = section.get("value")
    if label_type not in ("simple", "custom"):
        raise document.error("labels", f"type must be simple or custom, found {label_type!r}")

    if label_type == "custom":
        if not isinstance(value, dict) or not value:
            raise document.error(
                "labels", f"a custom label needs value: {{name: expression}}, found {kind(value)}"
            )
        for name, text in value.items():
            document.define(name, text, "labels")
        return label_type, tuple(map(str, value))

    if not isinstance(value, list) or not value:
        raise document.error(
            "labels", f"a simple label needs value: [branch, ...], found {kind(value)}"
        )
    # weaver-core's expressions: the number of the class, and how many classes a jet belongs to
    arrays = ", ".join(f"ak.to_numpy({item})" for item in value)
    matrix = f"np.stack([{arrays}], axis=1)"
    document.define("_label_", f"np.argmax({matrix}, axis=1)", "labels")
    document.define("_labelcheck_", f"np.sum({matrix}, axis=1)", "labels")
    return label_type, ("_label_",)
