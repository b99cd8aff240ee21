"""--io-test: measure how fast jets are read, and write the data config's monitor variables."""

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
from weaver.predict import open_test_set, test_groups, with_standardisation, write_columns


def read_an_epoch(options: TrainOptions) -> None:
    """Read each batch of an epoch once, and write MONITOR_FILE, as weaver-core's --io-test does.

    The epoch is one of the training data, or, if nothing is to be trained, of the first group of
    test data. The file contains the monitor variables of the jets in the order of the batches, and
    for test data the observers. It is not written if the data config has none of them.
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
        names = config.monitor_variables
    else:
        config = with_test_selection(options, with_standardisation(options, of_test_set(options)))
        source = next(iter(test_groups(options.data_test).values()))
        dataset = open_test_set(source, config, options)
        loader = Loader(dataset, options.size_test, shuffle=False, seed=options.seed)
        names = (*config.observer_names, *config.monitor_variables)
    _read_epoch(loader, names)


def _read_epoch(loader: Loader, names: tuple[str, ...]) -> None:
    """Read an epoch, print the rate, and write the observers and monitor variables `names`."""
    import awkward as ak

    parts: dict[str, list[Any]] = {name: [] for name in names}
    start_time = time.perf_counter()
    with Progress("reading", total=loader.num_jets, unit="jets") as progress:
        for batch in loader.epoch(0):
            for name, values in parts.items():
                values.append(batch.observers[name])
            progress.advance(len(batch))
    seconds = time.perf_counter() - start_time
    rate = loader.num_jets / max(seconds, 1e-9)
    print(
        f"{loader.num_jets:,} jets in {len(loader):,} batches, {seconds:.2f} s: {rate:,.0f} jets/s"
    )
    if not names:
        return
    columns: dict[str, Any] = {}
    for name, values in parts.items():
        is_lists = isinstance(values[0], ak.Array)
        columns[name] = ak.concatenate(values) if is_lists else np.concatenate(values)
    write_columns(MONITOR_FILE, columns)
    print(f"{', '.join(names)} are in {MONITOR_FILE}", file=sys.stderr, flush=True)
