"""The PyTorchJob that exports the best checkpoint of a search.

It runs in the image of the training, because it needs its libraries, and on one node without a GPU:
the gate compares the answers of CPU kernels.
"""

from __future__ import annotations

from clusters import run_pods
from clusters.protocol import Manifest
from common.run import Run
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR

DEADLINE = 6 * 3600.0  # seconds; generous, for a slow network and few cores


def export_job(run: Run, trial: str) -> Manifest:
    """Return the job that exports `<run>/trials/<trial>/best.pt` to `<run>/model`."""
    return run_pods.job(
        run,
        step="export",
        module="exporting.export",
        args=["--trial", trial, f"--raw-model={run.config.raw_model}"],
        env=run_pods.environment(run, ALLOCATOR),
        deadline=DEADLINE,
    )
