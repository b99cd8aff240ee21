"""Compare our networks with the form in which they were published.

It measures the time of a training step, and the fraction of the machine's peak rate.

    python -m benchmarks.networks                      # batch 256, length 100, k 16; about two
        minutes
    python -m benchmarks.networks --rounds 9 --threads 4

Both forms have the same weights and the same random jets, and run in turn in one process with the
same settings of the C allocator. A step is forward, the published loss, and backward. bf16 is
autocast, and is left out if the CPU has no bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import (
    Report,
    Spread,
    alternate,
    has_fast_bf16,
    peak_flops,
    ratio,
    with_allocator,
)
from benchmarks.published import plain_form
from networks import particle_net_regressor_open, pfn_regressor_open
from networks.losses import MaskedL1
from weaver.fit.allocator import ENVIRONMENT

GROUPS = {"pf_points": 2, "pf_features": 6, "pf_mask": 1, "jet_features": 8}
NETWORKS = {
    # The study's best trial, and the width that the network file starts from.
    "ParticleNet 3 x 50": (
        particle_net_regressor_open,
        tuple(GROUPS),
        {"conv_dim": 50, "fc_dim": 200},
    ),
    "ParticleNet 3 x 100": (
        particle_net_regressor_open,
        tuple(GROUPS),
        {"conv_dim": 100, "fc_dim": 100},
    ),
    "PFN 3 x 100": (pfn_regressor_open, tuple(GROUPS)[1:], {}),
}
BF16 = torch.bfloat16


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    args = arguments().parse_args(argv)
    # glibc reads its settings when a process starts, so that a new one is needed for others.
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        command = [sys.executable, "-m", "benchmarks.networks", *(argv or sys.argv[1:])]
        return subprocess.run(command, env=with_allocator(args.threads), check=False).returncode
    torch.set_num_threads(args.threads)
    report = Report("networks", "Networks beside their published form")
    dtypes = [torch.float32, *([BF16] if has_fast_bf16() else [])]
    peaks = {dtype: peak(dtype) for dtype in dtypes}
    for name in NETWORKS:
        measure(report, name, args, peaks)
        report.save()
    return 0


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="steps of each form that are timed (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of torch (default %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, help="jets a step (default %(default)s)"
    )
    parser.add_argument(
        "--length", type=int, default=100, help="particles a jet, padded (default %(default)s)"
    )
    return parser


def measure(
    report: Report, name: str, args: argparse.Namespace, peaks: dict[torch.dtype, float]
) -> None:
    """Time both forms of one network in training and evaluation and add the table to the report."""
    file, groups, options = NETWORKS[name]
    batch, target = jets(args.batch_size, args.length, groups)
    shapes = {group: (-1, *batch[group].shape[1:]) for group in groups}
    torch.manual_seed(0)
    ours, _ = file.get_model(
        types.SimpleNamespace(input_names=groups, input_shapes=shapes), **options
    )
    forms = {"ours": ours, "published": plain_form(ours)}
    rows, data = [], {}
    for mode, run in (("training step", train), ("evaluation", evaluate)):
        steps = {
            (form, dtype): step(run, model, batch, target, dtype)
            for form, model in forms.items()
            for dtype in peaks
        }
        floors = {key: flops(run_step) / peaks[key[1]] for key, run_step in steps.items()}
        # by then the heap has grown to what a step needs
        for run_step in (*steps.values(), *steps.values()):
            run_step()
        contenders = {
            label(*key): rate(run_step, args.batch_size) for key, run_step in steps.items()
        }
        runs = alternate(contenders, args.rounds)
        rows += [
            row(mode, form, dtype, runs, floors[form, dtype], args.batch_size)
            for form, dtype in steps
        ]
        data[mode] = {
            "runs": runs,
            "floor_seconds": {label(*key): floor for key, floor in floors.items()},
        }
    columns = [
        "",
        "form",
        "jets/s (least - most)",
        "ratio to published float32",
        "ratio to published, same type",
        "floor",
        "of the floor",
    ]
    notes = [
        (
            f"Batch {args.batch_size}, length {args.length}; ratios are those of steps next to each"
            " other: median (least - most)."
        ),
        "floor: the step's multiplications and additions at the speed of a large matrix product, "
        + ", ".join(
            f"{dtype_name(dtype)} {value / 1e9:,.0f} GFLOP/s" for dtype, value in peaks.items()
        )
        + "; of the floor: floor / time taken.",
    ]
    report.section(
        name,
        columns=columns,
        rows=rows,
        notes=notes,
        peaks={dtype_name(d): p for d, p in peaks.items()},
        **data,
    )


def jets(
    number: int, length: int, groups: Sequence[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random jets of 20 particles up to the full length, and their targets (N,)."""
    generator = torch.Generator().manual_seed(1)
    multiplicity = torch.randint(min(20, length), length + 1, (number, 1), generator=generator)
    mask = (torch.arange(length) < multiplicity).float()[:, None]  # (N, 1, P)
    batch = {
        group: torch.randn(number, GROUPS[group], length, generator=generator) * mask
        for group in groups
        if group.startswith("pf_")
    }
    return {
        **batch,
        "pf_mask": mask,
        "jet_features": torch.randn(number, 8, generator=generator),
    }, torch.randn(number) * 0.1


def step(
    run: Callable, model: nn.Module, batch: dict, target: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a call that runs one step on these inputs by group, (N, ...) each; target: (N,)."""
    inputs = tuple(batch[group] for group in GROUPS if group in batch)
    return lambda: run(model, inputs, target, dtype)


def train(model: nn.Module, inputs: tuple, target: torch.Tensor, dtype: torch.dtype) -> None:
    """Run a forward and a backward pass; inputs: (N, ...) each, target: (N,)."""
    model.train()
    with torch.autocast("cpu", BF16, enabled=dtype == BF16):
        output = model(*inputs)
    MaskedL1()(output, target).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def evaluate(model: nn.Module, inputs: tuple, target: torch.Tensor, dtype: torch.dtype) -> None:
    """Run a forward pass in evaluation mode; inputs: (N, ...) each. The target is not used."""
    model.eval()
    with torch.autocast("cpu", BF16, enabled=dtype == BF16):
        model(*inputs)


def rate(step: Callable[[], None], batch_size: int) -> Callable[[], float]:
    """A contender: jets a second of the quicker of two steps.

    So a hiccup of the machine is not taken for the network's.
    """

    def time_step() -> float:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return batch_size / min(seconds)

    return time_step


def row(
    mode: str,
    form: str,
    dtype: torch.dtype,
    runs: dict[str, list[float]],
    floor: float,
    batch_size: int,
) -> list[str]:
    """Return a row of the table: rates, ratios to the published form, share of the peak."""
    speed = runs[label(form, dtype)]
    ratios = [
        ratio(speed, runs[label("published", other)]).text(".2f")
        for other in (torch.float32, dtype)
    ]
    share = floor * Spread.of(speed).median / batch_size
    return [
        mode,
        label(form, dtype),
        Spread.of(speed).text(),
        *ratios,
        f"{floor * 1e3:,.0f} ms",
        f"{100 * share:.0f} %",
    ]


def flops(step: Callable[[], None]) -> int:
    """Multiplications and additions of the matrix products and convolutions of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large matrix product by the quicker of torch's two libraries."""
    image, weight = torch.randn(1, size, size, 1).to(dtype), torch.randn(size, size, 1, 1).to(dtype)
    image, best = image.contiguous(memory_format=torch.channels_last), float("inf")
    for _ in range(8):
        start = time.perf_counter()
        nn.functional.conv2d(image, weight)
        best = min(best, time.perf_counter() - start)
    return max(peak_flops(dtype, size=size), 2 * size**3 / best)


def label(form: str, dtype: torch.dtype) -> str:
    """Name a form and a precision."""
    return f"{form}, {dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """Name a precision."""
    return "bf16" if dtype == BF16 else "float32"


if __name__ == "__main__":
    sys.exit(main())
