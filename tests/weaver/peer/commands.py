"""Commands that weaver-core 0.5.3 and weaver.train both run, and the facts of each run.

Both programs run the same words on the same small files. The network file records the jets that
it is given, so that the facts of both programs' runs come from the same place. weaver-core's are
stored in commands.json, written by `make parity WRITE=1`; tests/weaver/test_flags.py compares ours.

Choices that make the trained weights comparable: the network starts from fixed numbers, and a batch
holds all jets where weights are compared, because the programs shuffle differently.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import torch
import uproot

HERE = Path(__file__).parent
STORED = HERE / "commands.json"
PEER_SECONDS = 900

TRAIN_JETS, VAL_JETS, TEST_JETS = 80, 30, 20
SEEN = "seen.jsonl"
NETWORK = """
import json
import torch

PROBE = 4  # so many jets are no batch: a look at the network before training


def note(**values):
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps(values) + "\\n")


class Net(torch.nn.Module):
    def __init__(self, outputs, start):
        super().__init__()
        self.first = torch.nn.Linear(2, 4)
        self.second = torch.nn.Linear(4, outputs)
        for number, values in enumerate(self.parameters(), 1):
            numbers = torch.linspace(-start, start / number, values.numel())
            values.data = numbers.reshape(values.shape)

    def forward(self, flat):
        if not torch.jit.is_tracing() and len(flat) > PROBE:
            jets = [round(number) for number in flat[:, 0].tolist()]
            note(training=self.training, jets=jets)
        return self.second(torch.tanh(self.first(flat[:, 1:])))


def get_model(data_config, outputs=1, start=0.5, **kwargs):
    note(options=sorted(kwargs))
    axes = {"flat": {0: "N"}, "out": {0: "N"}}
    info = {"input_names": ["flat"], "input_shapes": {"flat": (1, 3)}, "output_names": ["out"]}
    return Net(outputs, start), {**info, "dynamic_axes": axes}


def get_loss(data_config, outputs=1, **kwargs):
    return torch.nn.MSELoss() if outputs == 1 else torch.nn.CrossEntropyLoss()
"""
CONFIG = """
treename: jets
selection: {selection}
preprocess: {{method: {method}, data_fraction: 1.0}}
inputs:
  flat: {{length: null, vars: [[number, null], [x, {center}], [z, {center}]]}}
labels: {{type: custom, value: {{t: {label}}}}}
{kept}: [number, x]
"""
USUAL = {
    "selection": "number >= 0",
    "method": "manual",
    "center": "null",
    "label": "y",
    "kept": "observers",
}
CONFIGS: Mapping[str, Mapping[str, str]] = {
    "c.yaml": {},
    "scaled.yaml": {"center": "0.5, 2"},
    "even.yaml": {"selection": "number % 2 == 0"},
    "classes.yaml": {"label": "kind"},
    "auto.yaml": {"method": "auto", "center": "auto"},
    "monitor.yaml": {"kept": "monitor_variables"},
}

WORDS = {
    "--data-train": ["train_a.root", "train_b.root"],
    "--data-val": ["val.root"],
    "-c": ["c.yaml"],
    "-n": ["net.py"],
    "-m": ["models/net"],
    "--regression-mode": [],
    "--num-epochs": ["2"],
    "--batch-size": [str(TRAIN_JETS)],
    "--batch-size-val": [str(VAL_JETS)],
    "--gpus": [""],
    "--num-workers": ["0"],
    # weaver-core reads a jet more than once where a step is smaller than a jet of a file
    "--fetch-step": ["1"],
    "--optimizer": ["adam"],
    "--start-lr": ["0.05"],
}
TEST = ("--data-test", "test.root", "--predict-output", "p.root")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Words that are added to the usual ones, in a fresh folder."""

    words: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Usual flags to leave out."""
    before: tuple[tuple[str, ...], ...] = ()
    """Words of commands that run first, in the same folder."""

    def lines(self, *own: str) -> list[list[str]]:
        """All commands; own: words that only one program takes."""
        usual: list[str] = []
        for flag, values in WORDS.items():
            if flag not in self.without:
                usual += [flag, *values]
        return [[*usual, *own, *more] for more in (*self.before, self.words)]


def write_files(folder: Path) -> None:
    """Write the jets, the data configs, the network files and weights to start from."""
    rng = np.random.default_rng(7)
    half = TRAIN_JETS // 2
    counts = {"train_a": half, "train_b": half, "val": VAL_JETS, "test": TEST_JETS}
    first = 0
    for name, count in counts.items():
        columns = {
            "number": np.arange(first, first + count, dtype="f4"),
            "x": rng.uniform(0, 1, count).astype("f4"),
            "z": rng.uniform(0, 1, count).astype("f4"),
            "kind": rng.integers(0, 3, count).astype("i4"),
        }
        columns["y"] = columns["x"] * 2 - columns["z"]
        first += count
        with uproot.recreate(folder / f"{name}.root") as file:
            file.mktree("jets", {key: values.dtype for key, values in columns.items()})
            file["jets"].extend(columns)
    for name, changes in CONFIGS.items():
        (folder / name).write_text(CONFIG.format(**{**USUAL, **changes}))
    (folder / "net.py").write_text(NETWORK)
    (folder / "other.py").write_text(NETWORK.replace("tanh", "sigmoid"))
    shapes = {"first.weight": (4, 2), "first.bias": (4,), "second.weight": (1, 4)}
    state = {}
    for name, shape in {**shapes, "second.bias": (1,)}.items():
        state[name] = torch.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape)
    torch.save(state, folder / "start.pt")


# ------------------------------------------------------------------------------------------- facts


def facts(folder: Path) -> dict[str, Any]:
    """Facts of a run, from the files in its folder, as plain JSON values.

    train, eval: sizes of the batches that the network saw in training and otherwise (validation and
    prediction), and "... jets" the numbers of these jets. weights: file -> name -> numbers.
    columns: file -> column -> numbers of predictions and of monitored variables, ordered by jet.
    """
    lines = []
    if (folder / SEEN).exists():
        lines = [json.loads(line) for line in (folder / SEEN).read_text().splitlines()]
    result: dict[str, Any] = {
        "options": [line["options"] for line in lines if "options" in line][:1]
    }
    for name, training in (("train", True), ("eval", False)):
        batches = [line["jets"] for line in lines if line.get("training") is training]
        result[name] = [len(batch) for batch in batches]
        result[f"{name} jets"] = sorted({jet for batch in batches for jet in batch})
    result["weights"] = {}
    result["columns"] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.endswith("_state.pt"):
            state = torch.load(path, weights_only=True)
            result["weights"][name] = {key: value.tolist() for key, value in state.items()}
        elif "predict_output/" in name or name == "weaver_monitor_info.parquet":
            result["columns"][name] = _columns(path)
    result["files"] = sorted([*result["weights"], *result["columns"]])
    return result


def _columns(path: Path) -> dict[str, Any]:
    """The columns of a file, in the order of the jets' numbers."""
    if path.suffix == ".parquet":
        table = ak.from_parquet(path)
    else:
        with uproot.open(path) as file:
            table = file["Events"].arrays()
    order = np.argsort(np.asarray(table["number"]))
    return {name: np.asarray(table[name])[order].tolist() for name in table.fields}


def differences(
    ours: Mapping[str, Any], peer: Mapping[str, Any], leave_out: Sequence[str] = ()
) -> list[str]:
    """Facts that differ; of numbers by more than rounding. Files of one side alone are `files`."""
    names = []
    for name in peer:
        if name in leave_out:
            continue
        if name in ("weights", "columns"):
            for file in ours[name].keys() & peer[name].keys():
                if not _close(ours[name][file], peer[name][file]):
                    names.append(f"{name} of {file}")
        elif ours[name] != peer[name]:
            names.append(f"{name}: {ours[name]}, in weaver-core {peer[name]}")
    return names


def _close(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return list(first) == list(second) and all(
        np.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first
    )


def store(facts_of_commands: Mapping[str, Any]) -> None:
    """Write commands.json, a line for each fact."""
    rounded = {}
    for name, values in facts_of_commands.items():
        rounded[name] = {key: _rounded(value) for key, value in values.items()}
    lines = []
    for name, values in rounded.items():
        items = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
        lines.append(f"{json.dumps(name)}: {{\n" + ",\n".join(items) + "\n}")
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _rounded(value: Any) -> Any:
    """With seven digits in place of all that float32 prints."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def of_peer(commands: Mapping[str, Command], folder: Path, python: str) -> dict[str, Any]:
    """weaver-core's facts of each command: name -> facts."""
    jobs = []
    for name, command in commands.items():
        place = folder / name
        place.mkdir()
        write_files(place)
        jobs.append({"folder": str(place), "commands": command.lines()})
    # By its path, not as a module: this project has a package `weaver` too.
    process = subprocess.run(
        [python, str(HERE / "run_commands.py")],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        timeout=PEER_SECONDS,
        cwd=folder,
    )
    if process.returncode:
        raise SystemExit(f"error: weaver-core in {python} failed:\n{process.stderr[-3000:]}")
    return {name: facts(folder / name) for name in commands}
