"""--io-test: how fast jets are read, without a network, and what the data config monitors."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from common.progress import Progress
from weaver.feed.dataset import Dataset
from weaver.feed.loader import Loader
from weaver.fit.data_configs import of_test_set, training_configs, with_test_selection
from weaver.fit.options import MONITOR_FILE, TrainOptions
from weaver.predict import described, open_test_set, test_groups, write_columns


def read_an_epoch(options: TrainOptions) -> None:
    """Read each batch of an epoch once, and write MONITOR_FILE, as weaver-core's --io-test.

    That is of the training data; where nothing is to be trained, of the first group of test data.
    The file holds the monitor variables of the jets in the order of the batches; of test data also
    the observers. Without any of them there is no file.
    """
    if options.runs("train") and not options.predict:
        config, _ = training_configs(options)
        dataset = Dataset.open(
            " ".join(options.data_train),
            config,
            part=options.parts[0],
            copy=options.copy_inputs,
            most_files=options.most_files,
        )
        loader = Loader(
            dataset,
            options.batch_size,
            shuffle=True,
            seed=options.seed,
            fraction=options.data_fraction,
            in_memory=options.in_memory,
            drop_last=True,
        )
        monitored = config.monitor_variables
    else:
        config = with_test_selection(options, described(options, of_test_set(options)))
        source = next(iter(test_groups(options.data_test).values()))
        dataset = open_test_set(source, config, options)
        loader = Loader(dataset, options.size_test, shuffle=False, seed=options.seed)
        monitored = (*config.observer_names, *config.monitor_variables)
    _read(loader, monitored)


def _read(loader: Loader, monitored: tuple[str, ...]) -> None:
    """Read an epoch, say how fast, and write what is monitored."""
    import awkward as ak

    parts: dict[str, list[Any]] = {name: [] for name in monitored}
    started = time.perf_counter()
    with Progress("reading", total=loader.num_jets, unit="jets") as progress:
        for batch in loader.epoch(0):
            for name, values in parts.items():
                values.append(batch.observers[name])
            progress.advance(len(batch))
    seconds = time.perf_counter() - started
    rate = loader.num_jets / max(seconds, 1e-9)
    print(
        f"{loader.num_jets:,} jets in {len(loader):,} batches, {seconds:.2f} s: {rate:,.0f} jets/s"
    )
    if not monitored:
        return
    columns: dict[str, Any] = {}
    for name, values in parts.items():
        is_lists = isinstance(values[0], ak.Array)
        columns[name] = ak.concatenate(values) if is_lists else np.concatenate(values)
    write_columns(MONITOR_FILE, columns)
    print(f"{', '.join(monitored)} are in {MONITOR_FILE}", file=sys.stderr, flush=True)
