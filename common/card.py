"""Read the user's own entries for the model card (`--card FILE`), and copy the file into the run.

    facts, notes = read("card.yaml")        # {"era": "2018", "campaign": "UL", ...}, ""
    copy_to("card.md", "runs/<id>/config")  # beside the run's other configurations
    facts, notes = read_copy("runs/<id>/config")

A YAML or JSON file gives facts: names with values. A Markdown file gives notes: its unchanged text.
"""

from __future__ import annotations

from common import storage, yaml_text
from common.config import NONE
from common.errors import InputError
from common.project import here
from common.storage import nearby

TABLES = (".yaml", ".yml", ".json")
ENDINGS = (*TABLES, ".md")
Facts = dict[str, str]


def read(path: str) -> tuple[Facts, str]:
    """Return (facts, notes) of a file; one of them is empty.

    Raises InputError if the file is missing, has another suffix, or has no names with values.
    """
    place = here(path)
    ending = _ending(path)
    if not storage.exists(place):
        raise InputError(f"--card {path}: {nearby.missing_file(place)}")
    text = storage.read_text(place)
    if ending not in TABLES:
        return {}, text
    content = yaml_text.load(text, f"--card {path}")  # reads JSON as well
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"--card {path}: expected names with values, such as 'era: 2018', found"
            f" {yaml_text.kind_of(content)}"
        )
    facts = {}
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in values):
            raise InputError(f"--card {path}: '{name}' is nested; write one value, or a list")
        facts[str(name)] = ", ".join(str(item) for item in values)
    return facts, ""


def copy_to(path: str, folder: str) -> None:
    """Check the file and copy it into a run's config folder; it replaces an earlier copy there.

    `path` is the value of --card; 'none' copies nothing.
    """
    if path == NONE:
        return
    read(path)
    content = storage.read_bytes(here(path))
    for ending in ENDINGS:
        storage.delete(storage.join(folder, f"card{ending}"))
    storage.write_bytes(storage.join(folder, f"card{_ending(path)}"), content)


def read_copy(folder: str) -> tuple[Facts, str]:
    """Return (facts, notes) of the copy in a run's config folder; both are empty without one."""
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
