"""Render the chain for REANA: reana.yaml and a Snakefile.

The rules are the tasks of the compiled pipeline up to the evaluation. Each runs the step's own
program as on one machine: the search is Optuna's with processes for trials, because REANA has no
Katib, and nothing is deployed, because it serves nothing. The files of a run are in the workspace,
below `results`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from common import form, storage
from common.choices import SPLITS
from common.config import AUTO, NONE, SERVED, RunConfig, flag, quantity
from common.errors import InputError
from common.project import here, is_own
from common.run import slug
from common.storage.patterns import parse_one, separated
from components import graph
from components.chain import MEMORY_LIMIT
from components.graph import Task
from components.inputs import SAMPLE
from components.step import LOCAL_DIR
from training.search_space import is_text

RESULTS = "results"
"""Folder of the workspace that the run's folder is in."""
VALUES = "steps"
"""Folder of the workspace with the values that steps hand on."""
INPUTS = "inputs"
"""Folder of the workspace with the user's own files."""
LAST = "evaluate"
"""The last step: the ones after it act on a cluster."""
DONE = "done"
"""File of a step that hands on no value."""
HEAD = """\
# The chain of the JEC pipeline, written by `python pipeline.py --render-reana`. On REANA:
# reana-client run. Here, with the project in PYTHONPATH: snakemake --cores 2
"""


def render(config: RunConfig, folder: Path, steps_image: str) -> list[Path]:
    """Write reana.yaml, the Snakefile, and copies of the user's own files; return their paths.

    Raises InputError for data on this machine's disks outside of the folder, and for parameters
    that REANA has no use for.
    """
    import yaml

    check(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run_id == AUTO:
        config = config.replace(run_id=slug(config.network_config))
    config, copies = with_copied_files(config, folder)
    specification, snakefile = folder / "reana.yaml", folder / "Snakefile"
    content = reana_specification(config, [str(path.relative_to(folder)) for path in copies])
    specification.write_text(yaml.safe_dump(content, sort_keys=False))
    snakefile.write_text(snakefile_text(config, steps_image))
    return [specification, snakefile, *copies]


def check(config: RunConfig, folder: Path) -> None:
    """Refuse what cannot be on REANA. Raises InputError."""
    if config.s3_bucket != AUTO:
        raise InputError(
            f"--s3-bucket {config.s3_bucket}: on REANA the run is in the workspace; leave it out"
        )
    if config.num_gpus:
        raise InputError(f"--num-gpus {config.num_gpus}: jobs on REANA have no GPU; leave it out")
    for split in SPLITS:
        for pattern in local_patterns(config, split):
            if Path(pattern).is_absolute() or not storage.glob(str(folder / pattern)):
                raise InputError(
                    f"--data-{split} {pattern}: REANA reads no disk of this machine, and {folder}"
                    f" has no such file; give a root://, https:// or s3:// address, or copy the"
                    f" files into {folder} and name them relative to it"
                )
    if config.baseline not in (NONE, SERVED) and storage.is_local(config.baseline):
        raise InputError(
            f"--baseline {config.baseline}: REANA reads no disk of this machine; give an address"
        )


def local_patterns(config: RunConfig, split: str) -> list[str]:
    """The paths of a set of jets that are no addresses."""
    texts = [parse_one(text).text for text in separated(getattr(config, f"data_{split}"))]
    return [text for text in texts if text != SAMPLE and storage.is_local(text)]


def with_copied_files(config: RunConfig, folder: Path) -> tuple[RunConfig, list[Path]]:
    """Copy the user's own configurations into the folder; name them as they are in the workspace.

    The project's own files are in the images, and addresses stay as they are. Returns the
    configuration and the copies.
    """
    from weaver.network.network_file import NetworkFile
    from weaver.network.siblings import write_siblings

    names, copies = {}, []
    for field in ("data_config", "network_config", "search_space", "card"):
        path = getattr(config, field)
        is_none = path == NONE or (field == "search_space" and is_text(path))
        if is_none or not storage.is_local(path) or is_own(path):
            continue
        content = storage.read_bytes(here(path))
        if field == "network_config":
            siblings = NetworkFile.read(path).siblings
            write_siblings(siblings, str(folder / INPUTS))
            copies += [folder / INPUTS / name for name in siblings]
        copy = folder / INPUTS / storage.name(path)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
        copies.append(copy)
        names[field] = f"{INPUTS}/{copy.name}"
    return config.replace(**names), copies


def reana_specification(config: RunConfig, copies: list[str]) -> dict[str, object]:
    """The content of reana.yaml: what is uploaded, how it runs, what comes back."""
    data = [one for split in SPLITS for one in local_patterns(config, split)]
    inputs: dict[str, object] = {"files": ["Snakefile", *copies]}
    if data:
        inputs["directories"] = sorted({one.split("/")[0] for one in data})
    run = f"{RESULTS}/{config.run_id}"
    return {
        "inputs": inputs,
        "workflow": {"type": "snakemake", "file": "Snakefile"},
        "outputs": {
            "files": [f"{run}/{name}" for name in ("report.html", "metrics.json", "search.html")],
            "directories": [f"{run}/model", f"{run}/golden"],
        },
    }


def snakefile_text(config: RunConfig, steps_image: str) -> str:
    """The Snakefile: a rule for each step, after one that names the results of the last."""
    tasks = graph.tasks()
    last = [task.name for task in tasks].index(LAST)
    tasks = tasks[: last + 1]
    files = {task.name: outputs(task) for task in tasks}
    wanted = "".join(f"        {path!r},\n" for path in files[LAST].values())
    parts = [HEAD, f"rule all:\n    input:\n{wanted}"]
    parts += [rule(task, files, config, steps_image) for task in tasks]
    return "\n\n".join(parts)


def outputs(task: Task) -> dict[str, str]:
    """The files of a rule: one for each value, or else one that says that the step has ended."""
    return {name: f"{VALUES}/{task.name}/{name}" for name in task.outputs or (DONE,)}


def rule(task: Task, files: dict[str, dict[str, str]], config: RunConfig, steps_image: str) -> str:
    """The rule of a step, which runs its program."""
    is_first = not task.after
    words = [f'{LOCAL_DIR}="$PWD/{RESULTS}"', "python -m", f"components.{task.name}"]
    lines = [" ".join(words)]
    if is_first:
        lines += parameters(config)
    inputs = {}
    for parameter, source in sorted(task.parameters.items()):
        inputs[parameter] = files[source.task][source.output]
        lines.append(f'--{flag(form.field_of(parameter))} "$(cat {{input.{parameter}}})"')
    read = [source.task for source in task.parameters.values()]
    waited = [path for name in task.after if name not in read for path in files[name].values()]
    lines += [f"--{flag(name)}-output {{output.{name}}}" for name in task.outputs]
    if not task.outputs:
        lines[-1] += f" && touch {{output.{DONE}}}"

    text = f"rule {task.name}:\n"
    if inputs:
        text += "    input:\n" + "".join(f"        {path!r},\n" for path in waited)
        text += _entries(inputs)
    text += "    output:\n" + _entries(files[task.name])
    image = steps_image if is_first else config.weaver_image
    text += f"    container:\n        {f'docker://{image}'!r}\n"
    memory = max(config.steps_memory, MEMORY_LIMIT, key=bytes_of) if is_first else config.memory
    text += "    resources:\n"
    text += _entries({"compute_backend": "kubernetes", "kubernetes_memory_limit": memory})
    text += "    shell:\n"
    for number, line in enumerate(lines):
        text += f"        {line if number == 0 else f' {line}'!r}\n"
    return text


def parameters(config: RunConfig) -> list[str]:
    """The arguments of prepare: the place of the run, and what differs from the defaults."""
    defaults = RunConfig().parameters()
    values = {"s3_bucket": RESULTS, "run_id": config.run_id}
    values |= {name: value for name, value in config.parameters().items() if name not in values}
    words = []
    for name, value in values.items():
        if value != defaults[name]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            # Snakemake takes braces for its own placeholders
            quoted = shlex.quote(text).replace("{", "{{").replace("}", "}}")
            words.append(f"--{flag(name)} {quoted}")
    return words


def bytes_of(memory: str) -> float:
    """Bytes of the memory of a step."""
    return quantity("steps_memory", memory)


def _entries(values: dict[str, str]) -> str:
    """The lines `name="value",` of a rule."""
    return "".join(f"        {name}={value!r},\n" for name, value in values.items())
