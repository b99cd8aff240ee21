"""How many jets a second an exported model answers in ONNX Runtime, here.

The feature model is measured without its preprocessing, on inputs that are decoded and prepared
before; the raw model does all of it.
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
"""Jets of an event's and of a file's requests."""
SECONDS = 0.05  # of each of REPEATS measurements
REPEATS = 3
LONG = 0.3  # seconds: an execution that takes longer is measured once, with its warm-up


def rates(
    onnx_path: Path, jets: Mapping[str, NDArray[np.generic]], max_batch_size: int
) -> list[RateRecord]:
    """The rate at each batch size, on as many threads as this process may use.

    jets: inputs of real jets, name -> (N, ...), which are repeated to fill a batch.
    max_batch_size: that of the model, which no batch exceeds; 0 without a limit.
    """
    from weaver.onnx.runtime import feed_of, session

    threads = len(os.sched_getaffinity(0))
    runtime = session(onnx_path, threads=threads)
    num_jets = len(next(iter(jets.values())))
    measured = []
    for batch in sorted({min(size, max_batch_size or size) for size in BATCHES}):
        index = np.arange(batch) % num_jets
        feed = feed_of(runtime, {name: array[index] for name, array in jets.items()})
        started = time.perf_counter()
        runtime.run(None, feed)
        seconds = time.perf_counter() - started
        of_batch = [batch / seconds] if seconds > LONG else []
        for _ in range(0 if of_batch else REPEATS):
            started = time.perf_counter()
            done = 0
            while time.perf_counter() - started < SECONDS:
                runtime.run(None, feed)
                done += batch
            of_batch.append(done / (time.perf_counter() - started))
        measured.append(
            RateRecord(
                batch_size=batch, threads=threads, jets_per_second=statistics.median(of_batch)
            )
        )
    return measured
