"""Render the chain for REANA: reana.yaml and a Snakefile.

There is a rule for each task of the compiled pipeline up to the evaluation. A rule runs the step's
program as on one machine: Optuna searches with processes as trials, because REANA has no Katib, and
nothing is deployed, because REANA serves no models. The run's files are below `results` in the
workspace.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from clusters.registry import Reference
from common import form, storage
from common.choices import SPLITS
from common.config import AUTO, NONE, SERVED, RunConfig, flag, quantity
from common.errors import InputError
from common.project import here, is_own
from common.run import kubernetes_name
from common.storage.patterns import parse_one, split_patterns
from components import graph
from components.chain import MEMORY_LIMIT
from components.graph import Task
from components.inputs import SAMPLE
from components.step import LOCAL_DIR
from training.search_space import is_text

RESULTS = "results"
"""Folder of the workspace that has the run's folder."""
VALUES = "steps"
"""Folder of the workspace with the outputs of steps."""
INPUTS = "inputs"
"""Folder of the workspace with the user's own files."""
LAST = "evaluate"
"""The last step; the later ones need a cluster."""
END_MARK = "done"
"""File that a step without outputs writes when it has ended."""
HEAD = """\
# The chain of the JEC pipeline, written by `python pipeline.py --render-reana`. On REANA:
# reana-client run. Here, with the project in PYTHONPATH: snakemake --cores 2
"""


def render(config: RunConfig, folder: Path, steps_image: str) -> list[Path]:
    """Write reana.yaml, the Snakefile, and copies of the user's own files; return their paths.

    Raises InputError for data on this machine's disks outside of `folder`, and for parameters that
    do not work on REANA.
    """
    import yaml

    check(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run_id == AUTO:
        config = config.replace(run_id=kubernetes_name(config.network_config))
    config, copies = with_copied_files(config, folder)
    specification, snakefile = folder / "reana.yaml", folder / "Snakefile"
    content = reana_specification(config, [str(path.relative_to(folder)) for path in copies])
    specification.write_text(yaml.safe_dump(content, sort_keys=False))
    snakefile.write_text(snakefile_text(config, steps_image))
    return [specification, snakefile, *copies]


def unpullable(images: Iterable[str]) -> list[str]:
    """Return a warning for each image without a registry, which no cluster can pull."""
    return [
        f"REANA cannot pull the image {image}, which names no registry; push images with"
        " make images REGISTRY=REGISTRY/PROJECT, or give --steps-image and --weaver-image"
        for image in dict.fromkeys(images)
        if Reference.parse(image) is None
    ]


def check(config: RunConfig, folder: Path) -> None:
    """Raise InputError for parameters and data that do not work on REANA."""
    if config.s3_bucket != AUTO:
        raise InputError(
            f"--s3-bucket {config.s3_bucket}: REANA keeps the run in the workspace; leave it out"
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
    """Return the local paths among the patterns of a set of jets."""
    texts = [parse_one(text).text for text in split_patterns(getattr(config, f"data_{split}"))]
    return [text for text in texts if text != SAMPLE and storage.is_local(text)]


def with_copied_files(config: RunConfig, folder: Path) -> tuple[RunConfig, list[Path]]:
    """Copy the user's own data config, network file, search space and card into the folder.

    The project's own files are in the images already, and addresses are kept.

    Returns:
        The configuration with paths in the workspace, and the paths of the copies.
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
    """Return the content of reana.yaml: files to upload, the workflow, files to download."""
    data = [pattern for split in SPLITS for pattern in local_patterns(config, split)]
    inputs: dict[str, object] = {"files": ["Snakefile", *copies]}
    if data:
        inputs["directories"] = sorted({pattern.split("/")[0] for pattern in data})
    run_folder = f"{RESULTS}/{config.run_id}"
    return {
        "inputs": inputs,
        "workflow": {"type": "snakemake", "file": "Snakefile"},
        "outputs": {
            "files": [
                f"{run_folder}/{name}" for name in ("report.html", "metrics.json", "search.html")
            ],
            "directories": [f"{run_folder}/model", f"{run_folder}/golden"],
        },
    }


def snakefile_text(config: RunConfig, steps_image: str) -> str:
    """Return the Snakefile: `rule all` with the last step's outputs, then a rule for each step."""
    tasks = graph.tasks()
    last = [task.name for task in tasks].index(LAST)
    tasks = tasks[: last + 1]
    files = {task.name: outputs(task) for task in tasks}
    results = "".join(f"        {path!r},\n" for path in files[LAST].values())
    parts = [HEAD, f"rule all:\n    input:\n{results}"]
    parts += [rule(task, files, config, steps_image) for task in tasks]
    return "\n\n".join(parts)


def outputs(task: Task) -> dict[str, str]:
    """Return the output files of a rule: one for each output of the step, or else the end mark."""
    return {name: f"{VALUES}/{task.name}/{name}" for name in task.outputs or (END_MARK,)}


def rule(task: Task, files: dict[str, dict[str, str]], config: RunConfig, steps_image: str) -> str:
    """Return the Snakemake rule that runs a step's program.

    `files` has the output files of each task: task -> output -> path.
    """
    is_first = not task.after
    words = [f'{LOCAL_DIR}="$PWD/{RESULTS}"', "python -m", f"components.{task.name}"]
    lines = [" ".join(words)]
    if is_first:
        lines += parameters(config)
    inputs = {}
    for parameter, source in sorted(task.parameters.items()):
        inputs[parameter] = files[source.task][source.output]
        lines.append(f'--{flag(form.field_of(parameter))} "$(cat {{input.{parameter}}})"')
    sources = [source.task for source in task.parameters.values()]
    waiting_files = [
        path for name in task.after if name not in sources for path in files[name].values()
    ]
    lines += [f"--{flag(name)}-output {{output.{name}}}" for name in task.outputs]
    if not task.outputs:
        lines[-1] += f" && touch {{output.{END_MARK}}}"

    text = f"rule {task.name}:\n"
    if inputs:
        text += "    input:\n" + "".join(f"        {path!r},\n" for path in waiting_files)
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
    """Return the arguments of prepare: the run's place, and all values that are not defaults."""
    defaults = RunConfig().parameters()
    values = {"s3_bucket": RESULTS, "run_id": config.run_id}
    values |= {name: value for name, value in config.parameters().items() if name not in values}
    words = []
    for name, value in values.items():
        if value != defaults[name]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            # Snakemake reads single braces as placeholders
            argument = shlex.quote(text).replace("{", "{{").replace("}", "}}")
            words.append(f"--{flag(name)} {argument}")
    return words


def bytes_of(memory: str) -> float:
    """Return a memory quantity in bytes."""
    return quantity("steps_memory", memory)


def _entries(values: dict[str, str]) -> str:
    """Return the lines `name="value",` of a rule."""
    return "".join(f"        {name}={value!r},\n" for name, value in values.items())
