"""Speed of an exported model in ONNX Runtime on this machine, in jets per second.

The feature model is measured without preprocessing, on prepared inputs; the raw model includes it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.records import RateRecord

BATCHES = (32, 1000)
"""Batch sizes: typical requests for an event and for a file."""
SECONDS = 0.05  # duration of each of REPEATS measurements
REPEATS = 3
LONG = 0.3  # seconds; a longer execution is measured once, including its warm-up


def rates(
    onnx_path: Path, jets: Mapping[str, NDArray[np.generic]], max_batch_size: int
) -> list[RateRecord]:
    """Measure jets per second at each batch size, on all threads that this process may use.

    Args:
        onnx_path: The model.
        jets: Inputs of real jets, by name, (N, ...), which are repeated to fill a batch.
        max_batch_size: Largest batch of the model; 0 without a limit.
    """
    from weaver.onnx.runtime import feed_of, session

    threads = len(os.sched_getaffinity(0))
    runtime = session(onnx_path, threads=threads)
    num_jets = len(next(iter(jets.values())))
    records = []
    for batch in sorted({min(size, max_batch_size or size) for size in BATCHES}):
        index = np.arange(batch) % num_jets
        feed = feed_of(runtime, {name: array[index] for name, array in jets.items()})
        start = time.perf_counter()
        runtime.run(None, feed)
        seconds = time.perf_counter() - start
        measurements = [batch / seconds] if seconds > LONG else []
        for _ in range(0 if measurements else REPEATS):
            start = time.perf_counter()
            num_done = 0
            while time.perf_counter() - start < SECONDS:
                runtime.run(None, feed)
                num_done += batch
            measurements.append(num_done / (time.perf_counter() - start))
        records.append(
            RateRecord(
                batch_size=batch, threads=threads, jets_per_second=statistics.median(measurements)
            )
        )
    return records
