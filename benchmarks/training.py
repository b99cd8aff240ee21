"""Compare the whole training loop with weaver-core's.

Both have the same files, data config, network options, batch size and optimizer.

    python -m benchmarks.training [--peer-python .venv-peer/bin/python] [--only pfn,particle_net]
        [--rounds 5] [--device cpu|cuda]
    python -m benchmarks.training --only loss-pfn           # validation losses after equal steps,
        several seeds
    python -m benchmarks.training --device cuda --batch-size 4096

Each side runs its own command (`python -m weaver.train` here, `weaver` there), in turn, in
processes with the same C allocator settings. The result is the rate of the epochs after the first,
as each side reports it: loading, forward and backward pass, optimizer, bookkeeping. weaver-core
gets the flags that were measured to be fastest on a CPU: all jets are decoded in the first epoch,
kept in memory, and fed from the main process. (Its --use-amp is autocast for CUDA and does nothing
on a CPU.) On a GPU it gets --use-amp and --compile.

The networks are those of networks/ here, and there the same functions in the form in which they
were published (benchmarks/published.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Report,
    Spread,
    alternate,
    check_peer,
    has_fast_bf16,
    peak_flops,
    ratio,
    with_allocator,
    without_allocator,
)
from common import storage
from common.cli import run_main
from common.errors import JecError
from common.project import ROOT

PEER = Path(__file__).parent / "peer"
PEER_FLAGS = ["--fetch-step", "1", "--in-memory", "--num-workers", "0"]
EPOCHS = 3
SEEDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one data config."""

    ours: str
    peer: str
    data_config: str
    options: dict[str, int]
    steps: int
    """Steps of an epoch, enough for a rate that does not hang on a single step."""
    loss_steps: int
    """Steps of an epoch where losses are compared."""


CASES = {
    "pfn": Case(
        ours="networks/pfn_regressor_open.py",
        peer="pfn.py",
        data_config="data/jec_pfn_open.yaml",
        options={"num_conv_layers": 3, "conv_dim": 100, "num_fc_layers": 3, "fc_dim": 100},
        steps=24,
        loss_steps=38,
    ),
    "particle_net": Case(
        ours="networks/particle_net_regressor_open.py",
        peer="particle_net.py",
        data_config="data/jec_particle_net_open.yaml",
        options={
            "num_edge_conv_blocks": 3,
            "k": 16,
            "num_conv_layers": 3,
            "conv_dim": 50,
            "num_fc_layers": 3,
            "fc_dim": 200,
        },
        steps=2,
        loss_steps=4,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run reports: jets/s of each epoch's training, and each epoch's validation loss."""

    rates: list[float]
    losses: list[float]

    @property
    def rate(self) -> float:
        """Of the epochs after the first, in which files are decoded and memory is taken."""
        return statistics.median(self.rates[1:])


class Bench:
    """Starts trainings of both sides on the same files."""

    def __init__(self, arguments: argparse.Namespace, scratch: str) -> None:
        """Generate the jets that are missing."""
        from data.generator.sample import ensure_sample

        self.peer_python = os.path.abspath(arguments.peer_python)
        self.device = arguments.device
        self.scratch = Path(scratch)
        self.batch_size = arguments.batch_size
        self.peer_extra = arguments.peer_flags.split() if arguments.peer_flags else PEER_FLAGS
        patterns = ensure_sample(arguments.storage)
        self.files = {
            part: [entry.uri for entry in storage.glob(patterns[part])] for part in ("train", "val")
        }
        self._number = 0

    def ours(
        self,
        case: Case,
        precision: str,
        *,
        steps: int,
        epochs: int = EPOCHS,
        seed: int = 1,
        extra: tuple[str, ...] = (),
    ) -> TrainingResult:
        """Train with this project in a process of its own; return what it measured."""
        folder = self._folder()
        command = [
            sys.executable,
            "-m",
            "weaver.train",
            "--network-config",
            str(ROOT / case.ours),
            "--precision",
            precision,
            *extra,
        ]
        command += [
            "--seed",
            str(seed),
            "--gpus",
            "0" if self.device == "cuda" else "",
            "--tensorboard-log-dir",
            "none",
        ]
        command += self._common(case, steps, epochs, folder, self._prepared(case))
        command += [
            word
            for name, value in case.options.items()
            for word in ("--network-option", name, str(value))
        ]
        _run(command, ROOT, with_allocator())
        history = json.loads((folder / "history.json").read_text())
        return TrainingResult(
            rates=[epoch["jets_per_second"] for epoch in history],
            losses=[epoch["val_loss"] for epoch in history],
        )

    def peer(
        self,
        case: Case,
        *,
        steps: int,
        epochs: int = EPOCHS,
        allocator: bool = True,
        extra: tuple[str, ...] = (),
    ) -> TrainingResult:
        """Train with weaver-core in a process of its own; return what it measured."""
        folder, environment = self._folder(), with_allocator() if allocator else without_allocator()
        environment.pop("PYTHONPATH", None)
        command = [
            str(Path(self.peer_python).parent / "weaver"),
            "--network-config",
            str(PEER / case.peer),
            *self.peer_extra,
            *extra,
        ]
        command += ["--gpus", "0" if self.device == "cuda" else ""]
        command += self._common(case, steps, epochs, folder, self.files)
        command += [
            word
            for name, value in case.options.items()
            for word in ("--network-option", name, str(value))
        ]
        log = _run(command, self.scratch, environment)
        speeds = [float(text) for text in re.findall(r"avg\. speed ([\d.]+) entries/s", log)]
        losses = [float(text) for text in re.findall(r"Current validation metric: ([\d.]+)", log)]
        # training and validation take turns in the log
        return TrainingResult(rates=speeds[::2], losses=losses)

    def _common(
        self, case: Case, steps: int, epochs: int, folder: Path, data: dict[str, list[str]]
    ) -> list[str]:
        flags = {
            "--data-config": str(self._config(case)),
            "--model-prefix": f"{folder}/net",
            "--num-epochs": str(epochs),
            "--steps-per-epoch": str(steps),
            "--steps-per-epoch-val": str(max(steps // 4, 1)),
            "--batch-size": str(self.batch_size),
            "--start-lr": "1e-3",
            "--optimizer": "ranger",
            "--lr-scheduler": "flat+decay",
        }
        if data is not self.files:
            flags["--model-prefix"] = str(folder)
        words = [word for pair in flags.items() for word in pair]
        return [
            *words,
            "--regression-mode",
            "--data-train",
            *data["train"],
            "--data-val",
            *data["val"],
        ]

    def _prepared(self, case: Case) -> dict[str, list[str]]:
        from weaver.config.data_config import DataConfig
        from weaver.prepared.prepare import prepare

        config, paths = DataConfig.load(str(ROOT / case.data_config)), {}
        for part in ("train", "val"):
            files = self.files[part]
            options = {
                "for_training": True,
                "validation": part == "val",
                "report": lambda line: None,
            }
            paths[part] = [prepare(files, config, str(self.scratch / "storage"), **options).uri]
        return paths

    def _config(self, case: Case) -> Path:
        copy = self.scratch / Path(case.data_config).name  # weaver-core may write a file beside it
        if not copy.exists():
            copy.write_text((ROOT / case.data_config).read_text())
        return copy

    def _folder(self) -> Path:
        self._number += 1
        folder = self.scratch / f"run{self._number}"
        folder.mkdir()
        return folder


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> str:
    process = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    if process.returncode:
        raise JecError(
            f"{' '.join(command[:3])} ended with {process.returncode}:\n"
            + "\n".join(process.stdout.splitlines()[-5:])
        )
    return process.stdout


# --------------------------------------------------------------------------------------- sections


def speed(bench: Bench, name: str, report: Report, rounds: int) -> None:
    """Rates of both sides, taken in turn."""
    case, device = CASES[name], bench.device
    steps = case.steps if device == "cpu" else 20 * case.steps
    bf16 = device == "cuda" or has_fast_bf16()
    contenders: dict[str, Callable[[], float]] = {
        "ours, float32": lambda: bench.ours(case, "float32", steps=steps).rate
    }
    if bf16:
        contenders["ours, bf16"] = lambda: bench.ours(case, "bf16", steps=steps).rate
    best: tuple[str, ...] = ()
    if device == "cuda":
        best = ("--use-amp", "--compile")
        contenders["ours, bf16, --compile"] = lambda: (
            bench.ours(case, "bf16", steps=steps, extra=("--compile",)).rate
        )
    contenders["weaver-core"] = lambda: bench.peer(case, steps=steps, extra=best).rate
    runs = alternate(contenders, rounds)
    what = {"name": name, "steps": steps, "rounds": rounds, "best": best}
    _tell_speed(bench, report, runs, **what)
    if device == "cpu":
        report.save()  # what follows takes its time
        runs |= alternate(
            {
                "weaver-core as installed": (
                    lambda: bench.peer(case, steps=steps, allocator=False).rate
                )
            },
            1,
        )
        _tell_speed(bench, report, runs, **what)


def _tell_speed(
    bench: Bench,
    report: Report,
    runs: dict[str, list[float]],
    *,
    name: str,
    steps: int,
    rounds: int,
    best: tuple[str, ...],
) -> None:
    """The section of one network, with the floor that arithmetic sets."""
    case, device, bf16 = CASES[name], bench.device, any("bf16" in contender for contender in runs)
    flops = flops_per_jet(case)
    peaks = {
        "float32": peak_flops(_dtype("float32"), device),
        **({"bf16": peak_flops(_dtype("bf16"), device)} if bf16 else {}),
    }
    rows = []
    for contender, rates in runs.items():
        precision = "bf16" if "bf16" in contender else "float32"
        near = f"{100 * statistics.median(rates) * flops / peaks[precision]:.0f} %"
        factor = (
            ratio(rates, runs["weaver-core"]).text(".2f", "x")
            if len(rates) == rounds and contender != "weaver-core"
            else ""
        )
        rows.append([contender, Spread.of(rates).text(), factor, near])
    notes = [
        (
            f"{case.options}, batch {bench.batch_size}, {steps} steps an epoch, epochs 2 to"
            f" {EPOCHS} count; as installed: once."
        ),
        (
            f"weaver-core with {' '.join([*bench.peer_extra, *best])}; as installed: the same"
            " without the allocator's settings."
        ),
        f"A training step takes {flops / 1e6:.1f} MFLOP a jet in our form of the network (counted"
        " by PyTorch, matrix products alone). A large matrix product reaches "
        + ", ".join(
            f"{peak / 1e9:,.0f} GFLOP/s in {kind} (floor {peak / flops:,.0f} jets/s)"
            for kind, peak in peaks.items()
        )
        + ".",
    ]
    if not bf16:
        notes.append("bf16 is left out: this CPU has neither avx512_bf16 nor AMX.")
    columns = [
        "training",
        "jets/s: median (least - most)",
        "faster than weaver-core by",
        "of the floating-point floor",
    ]
    report.section(
        f"{name}, {device}, batch {bench.batch_size}: whole training loop",
        columns=columns,
        rows=rows,
        notes=notes,
        runs=runs,
        flops=flops,
        peaks=peaks,
    )


def loss(bench: Bench, name: str, report: Report, rounds: int) -> None:
    """Validation losses after the same number of steps, for several seeds.

    bf16 and weaver-core must lie within float32's spread.
    """
    case = CASES[name]
    losses: dict[str, list[list[float]]] = {
        "ours, float32": [],
        "ours, bf16": [],
        "weaver-core": [],
    }
    for seed in range(1, SEEDS + 1):
        for precision in ("float32", "bf16"):
            result = bench.ours(
                case, precision, steps=case.loss_steps, epochs=EPOCHS + 1, seed=seed
            )
            losses[f"ours, {precision}"].append(result.losses)
        # it seeds nothing: each run differs
        losses["weaver-core"].append(
            bench.peer(case, steps=case.loss_steps, epochs=EPOCHS + 1).losses
        )
    columns = [
        "training",
        *(f"epoch {number + 1}" for number in range(EPOCHS + 1)),
        "last epoch by seed",
    ]
    rows = []
    for side, curves in losses.items():
        means = [
            f"{statistics.mean(curve[epoch] for curve in curves):.4f}"
            for epoch in range(EPOCHS + 1)
        ]
        rows.append([side, *means, ", ".join(f"{curve[-1]:.4f}" for curve in curves)])
    notes = [
        f"Mean validation loss of {SEEDS} seeds, {case.loss_steps} steps of {bench.batch_size} jets"
        f" an epoch, validated on {max(case.loss_steps // 4, 1) * bench.batch_size} jets."
        " weaver-core shuffles which jets it validates on."
    ]
    report.section(
        f"{name}: validation loss", columns=columns, rows=rows, notes=notes, losses=losses
    )


def flops_per_jet(case: Case) -> float:
    """Floating-point operations of one training step for one jet, in our form of the network.

    Forward and backward.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from weaver.config.data_config import DataConfig
    from weaver.network.network_file import load_network

    config, jets = DataConfig.load(str(ROOT / case.data_config)), 8
    model, _ = load_network(str(ROOT / case.ours)).build(config, case.options)
    inputs = [torch.rand(jets, *config.input_shapes[group][1:]) for group in config.input_names]
    with FlopCounterMode(display=False) as counter:
        model.train()(*inputs).sum().backward()
    return counter.get_total_flops() / jets


def _dtype(name: str) -> Any:
    import torch

    return {"float32": torch.float32, "bf16": torch.bfloat16}[name]


def main(argv: list[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--peer-python",
        default=str(ROOT / ".venv-peer" / "bin" / "python"),
        help="interpreter that has weaver-core",
    )
    parser.add_argument(
        "--peer-flags", help=f"flags of weaver-core's loader (default: {' '.join(PEER_FLAGS)})"
    )
    parser.add_argument(
        "--storage", default=str(ROOT / "runs"), help="where the generated sample lies or will lie"
    )
    parser.add_argument(
        "--only", default="pfn,particle_net", help="pfn, particle_net, loss-pfn, loss-particle_net"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(argv)

    def body() -> int | None:
        import torch

        if arguments.device == "cuda" and not torch.cuda.is_available():
            print("skipped: this machine has no CUDA GPU, so nothing was measured", file=sys.stderr)
            return 0
        check_peer(arguments.peer_python)
        report = Report("training", "Training: the whole loop beside weaver-core's")
        with tempfile.TemporaryDirectory(prefix="bench-training-") as scratch:
            bench = Bench(arguments, scratch)
            for part in arguments.only.split(","):
                measure, name = (
                    (loss, part.removeprefix("loss-"))
                    if part.startswith("loss-")
                    else (speed, part)
                )
                measure(bench, name, report, arguments.rounds)
                report.save()
        return None

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
