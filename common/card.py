"""Read and store the user's file with facts for the model card (`--card FILE`).

    facts, notes = read("card.yaml")     # {"era": "2018", "campaign": "UL", ...}, ""
    keep("card.md", "runs/<id>/config")  # a copy beside the run's other configurations
    facts, notes = load("runs/<id>/config")

YAML and JSON hold names with values; Markdown is taken as it is.
"""

from __future__ import annotations

from common import storage, yaml_text
from common.config import NONE
from common.errors import InputError
from common.project import here

TABLES = (".yaml", ".yml", ".json")
ENDINGS = (*TABLES, ".md")
Facts = dict[str, str]


def read(path: str) -> tuple[Facts, str]:
    """Names and values of a file, or its text where it is Markdown.

    Raises InputError for a file that is missing, ends otherwise, or holds no names with values.
    """
    place = here(path)
    ending = _ending(path)
    if not storage.exists(place):
        raise InputError(f"--card {path}: there is no such file")
    text = storage.read_text(place)
    if ending not in TABLES:
        return {}, text
    content = yaml_text.load(text, f"--card {path}")  # reads JSON as well
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"--card {path}: expected names with values, such as 'era: 2018', found"
            f" {type(content).__name__}"
        )
    facts = {}
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, dict | list) for one in values):
            raise InputError(f"--card {path}: '{name}' is nested; write one value, or a list")
        facts[str(name)] = ", ".join(str(one) for one in values)
    return facts, ""


def keep(path: str, folder: str) -> None:
    """Copy the file into a run's folder of configurations, in place of an earlier one."""
    if path == NONE:
        return
    read(path)
    content = storage.read_bytes(here(path))
    for ending in ENDINGS:
        storage.delete(storage.join(folder, f"card{ending}"))
    storage.write_bytes(storage.join(folder, f"card{_ending(path)}"), content)


def load(folder: str) -> tuple[Facts, str]:
    """Read the file in a run's folder of configurations; ({}, "") where there is none."""
    for ending in ENDINGS:
        place = storage.join(folder, f"card{ending}")
        if storage.exists(place):
            return read(place)
    return {}, ""


def _ending(path: str) -> str:
    for ending in ENDINGS:
        if path.endswith(ending):
            return ending
    raise InputError(f"--card {path}: expected a file that ends in {', '.join(ENDINGS)}")
