"""The PyTorchJob that measures an exported model on the test set.

It runs in the image of the training, on one node without a GPU, with ONNX Runtime.
"""

from __future__ import annotations

from clusters import run_pods
from clusters.protocol import Manifest
from common.run import Run
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR

DEADLINE = 6 * 3600.0  # seconds; generous, for a large test set on few cores


def evaluate_job(run: Run, trial: str) -> Manifest:
    """Return the job that measures the exported model and writes metrics.json and report.html."""
    config = run.config
    gates = [
        f"--gate={config.gate}",
        f"--min-improvement={config.min_improvement}",
        f"--max-closure={config.max_closure}",
        f"--max-resolution-ratio={config.max_resolution_ratio}",
        f"--max-tail-ratio={config.max_tail_ratio}",
        f"--max-flavour-ratio={config.max_flavour_ratio}",
        f"--max-coverage-points={config.max_coverage_points}",
        f"--gate-regions={config.gate_regions}",
        f"--seed={config.seed_number}",
    ]
    return run_pods.job(
        run,
        step="evaluate",
        module="evaluating.evaluate",
        args=["--trial", trial, f"--baseline={config.baseline}", *gates],
        env=run_pods.environment(run, ALLOCATOR) + run_pods.tracking_environment(run),
        deadline=DEADLINE,
    )
