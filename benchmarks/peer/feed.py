"""Time weaver-core's own loader.

Run it with the interpreter of an environment that has weaver-core, never with ours.

    .venv-peer/bin/python benchmarks/peer/feed.py '{"files": [...], "config": "...", "batch_size":
        500, "epochs": 2, ...}'

Built as weaver.train (0.5.3) builds it. Prints one line of JSON: {"rates": jets/s of each epoch,
"jets": of the last one}.
"""

import json
import sys
import time

import torch
from weaver.utils.dataset import SimpleIterDataset


def main(options):
    """Time the epochs that were asked for, and print them as JSON."""
    endless = bool(options.get("in_memory"))  # as --in-memory asks for, with --steps-per-epoch
    data = SimpleIterDataset(
        {"_": options["files"]},
        options["config"],
        batch_size=options["batch_size"],
        for_training=True,
        load_range_and_fraction=((0, 1), 1, 1),
        fetch_by_files=options.get("fetch_by_files", False),
        fetch_step=options.get("fetch_step", 0.01),
        infinity_mode=endless,
        in_memory=endless,
        name="train",
    )
    workers = min(options.get("num_workers", 1), len(options["files"]))
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=options["batch_size"],
        drop_last=True,
        pin_memory=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    rates = []
    for _ in range(options["epochs"]):
        rate, jets = epoch(loader, options)
        rates.append(rate)
    print(json.dumps({"rates": rates, "jets": jets}), flush=True)


def epoch(loader, options):
    """Jets a second of one epoch, and how many jets that was.

    A time limit may leave a part of the epoch.
    """
    start, jets = time.perf_counter(), 0
    for _, label, _ in loader:
        jets += len(next(iter(label.values())))
        if jets >= options.get("most_jets", 2**62) or time.perf_counter() - start > options.get(
            "most_seconds", 3600
        ):
            break
    return jets / (time.perf_counter() - start), jets


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
