"""Flags from files: --config FILE, and JEC_CONFIG for the defaults of a site.

A file is a YAML mapping from flags, named as in run.json (`num_gpus`), to values; or it is a
run.json, whose parameters are read. If a flag has several values, the first of these applies: the
command line, --config, the earlier run of --resume or --rerun, JEC_CONFIG.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import yaml_text
from common.cli import Parser
from common.config import RETIRED, RunConfig, flag, with_former_defaults, with_types
from common.errors import InputError, unknown
from common.storage import nearby

VARIABLE = "JEC_CONFIG"
LARGEST_BYTES = 1_000_000
"""Largest size of a file of flags, far above any real one."""
OF_ONE_RUN = ("run_id", "user")
"""Parameters that a new run does not take over from another run's run.json."""
_NOT_TYPED = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Values of flags by field, and the name of their file for errors."""

    where: str
    values: Mapping[str, Any]


class Flags:
    """Combine the flags of a command line with values from files.

    A flag on the command line overrides all `sources`, and a later source overrides earlier ones.
    keys: the flags that a file may set. words: the command line; None for that of this process.
    """

    def __init__(self, parser: Parser, keys: Iterable[str], words: list[str] | None) -> None:
        """Parse the command line once, to know which flags it has."""
        self.parser, self.words = parser, words
        self.keys = tuple(keys)
        self.sources: list[Source] = []
        destinations = vars(parser.parse_args(words))
        blank = argparse.Namespace(**dict.fromkeys(destinations, _NOT_TYPED))
        values = vars(parser.parse_args(words, blank))
        self._typed_names = {name for name, value in values.items() if value is not _NOT_TYPED}

    def parse(self) -> argparse.Namespace:
        """Return all flags: from the command line, else from the sources, else the defaults."""
        for source in self.sources:
            self.parser.set_defaults(**source.values)
        return self.parser.parse_args(self.words)

    def read(self, path: str, name: str) -> Source:
        """Read the file `path`, the value of `name` (--config or JEC_CONFIG).

        Raises InputError if it is not a YAML mapping, or has an unknown key or a value of another
        type than its flag.
        """
        where = f"{name} {path}"
        content = yaml_text.load(_text(path, where), where)
        if not isinstance(content, dict):
            raise InputError(
                f"{where} is {yaml_text.kind_of(content)}; write a flag a line, as 'num_gpus:"
                " 1', or give a run.json"
            )
        if "run_id" in content and isinstance(content.get("config"), dict):
            content = _of_run(content["config"])
        values = {}
        for key, value in content.items():
            if key not in self.keys:
                raise InputError(f"{where}: {unknown('key', str(key), self.keys)}")
            values[key] = self._convert(where, key, value)
        return Source(where=where, values=values)

    def explain(self, error: InputError) -> None:
        """Append to the error's text which file set the flags that the text names."""
        origins = {}
        for name in self.keys:
            if name in self._typed_names or not re.search(rf"--{flag(name)}(?![\w-])", str(error)):
                continue
            for source in self.sources:
                if name in source.values:
                    origins[name] = source.where
        if origins:
            places = "; ".join(f"--{flag(name)} is from {origins[name]}" for name in origins)
            error.args = (f"{error} ({places})",)

    def as_yaml(self, args: argparse.Namespace, without: Mapping[str, Any]) -> str:
        """Return the text of a file for --config with the values of all keys, grouped as in --help.

        Args:
            args: All flags.
            without: Key -> value. A key that has this value is left out.
        """
        import yaml

        lines = []
        # argparse has no other list of its groups
        for group in self.parser._action_groups:
            keys = [action.dest for action in group._group_actions if action.dest in self.keys]
            if keys:
                lines.append(f"# {group.title}")
            for key in keys:
                value = getattr(args, key)
                if key in without and value == without[key]:
                    continue
                plain = str(value) if isinstance(value, Path) else value
                text = yaml.safe_dump({key: plain}, width=math.inf, allow_unicode=True)
                lines.append(text.rstrip("\n"))
        return "\n".join(lines) + "\n"

    def _convert(self, where: str, key: str, value: Any) -> Any:
        """Return a value in the type of its flag. Raises InputError for one of another type.

        The value is not shown, as it may be an address with a secret in it.
        """
        action = next(action for action in self.parser._actions if action.dest == key)
        default = RunConfig().parameters().get(key, action.default)
        kind = str if isinstance(default, Path) else type(default)
        result = _as(kind, value)
        if result is None:
            hint = "; write it in quotes" if kind is str and isinstance(value, bool) else ""
            raise InputError(
                f"{where}: {key} must be {_NAMES[kind]}, not {yaml_text.kind_of(value)}{hint}"
            )
        if action.choices and result not in action.choices:
            raise InputError(f"{where}: {key}: {unknown('value', result, action.choices)}")
        if kind is str and callable(action.type):
            try:
                return action.type(result)
            except argparse.ArgumentTypeError as error:
                raise InputError(f"{where}: {key}: {error}") from None
        return result


def keys(how_to_run: Iterable[str]) -> list[str]:
    """Return the flags that a file may set: those in `how_to_run`, and the fields of RunConfig.

    `how_to_run`: flags of pipeline.py itself, which say where and how a run is started. The run id
    is not among the fields, because it belongs to one run.
    """
    fields = [field.name for field in dataclasses.fields(RunConfig) if field.name != "run_id"]
    return [*how_to_run, *fields]


def site(flags: Flags) -> list[Source]:
    """Return the site's defaults, read from the file that JEC_CONFIG names; empty if not set."""
    path = os.environ.get(VARIABLE, "")
    return [flags.read(path, VARIABLE)] if path else []


def _of_run(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run.json without those that belong to that run alone."""
    values = with_former_defaults(with_types(parameters))
    return {name: values[name] for name in values if name not in (*RETIRED, *OF_ONE_RUN)}


def _text(path: str, where: str) -> str:
    """Return the text of a file on this machine's disks. Raises InputError where there is none."""
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{where}: {nearby.missing_file(path)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where} cannot be read: {reason}") from None
    if len(content) > LARGEST_BYTES:
        raise InputError(
            f"{where} is larger than {LARGEST_BYTES:,} bytes: no file of flags; --write-config"
            " prints one"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not text in UTF-8; --write-config prints a file") from None


_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def _as(kind: type, value: Any) -> Any:
    """Return the value as this type; None where it is of another one."""
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float and isinstance(value, str) and re.fullmatch(r"-?\d+[eE][-+]?\d+", value):
        return float(value)  # YAML 1.1 takes the 1e-05 of JSON for a text
    if isinstance(value, int | float):
        try:
            whole = float(value) == math.floor(value)
        except (OverflowError, ValueError):  # infinity, NaN, and more than a float holds
            return None
        if kind is str:
            return str(int(value)) if whole else str(value)
        if kind is int:
            return int(value) if whole else None
        return float(value)
    return value if isinstance(value, str) and kind is str else None
