"""What the user named: data configuration, network, search space, data files.

Read and tried, never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common import storage
from common.choices import SPLITS
from common.config import RunConfig
from common.errors import InputError
from common.project import here
from components.prepare import SAMPLE
from operations.table import Line, error, not_seen, ok, warning
from training.network_options import check_builds, check_options
from training.search_space import Parameter, cautions, check_algorithm, for_network, load
from weaver.network.network_file import load_network


def check_inputs(config: RunConfig) -> Iterator[Line]:
    """Lines on the data configuration, the search space, the network built at both ends of it, and
    the data of each split.
    """
    from weaver.config.data_config import DataConfig

    data_config = None
    try:
        data_config = DataConfig.load(here(config.data_config))
        groups = ", ".join(
            f"{name} {tuple(shape)[1:]}" for name, shape in data_config.input_shapes.items()
        )
        yield ok(
            "data configuration",
            f"{config.data_config}: {len(data_config.branches)} branches; inputs {groups}",
        )
    except InputError as problem:
        yield error("data configuration", str(problem))
    space: list[Parameter] = []
    try:
        space = for_network(load(config.search_space), config.network_config)
        check_options(space, config.network_config, storage.read_text(here(config.network_config)))
        check_algorithm(space, config.algorithm)
        yield ok(
            "search space",
            f"{', '.join(parameter.name for parameter in space)}; {config.algorithm},"
            f" {config.max_trials} trials",
        )
        yield from (
            warning("search space", caution) for caution in cautions(space, config.algorithm)
        )
    except InputError as problem:
        yield error("search space", str(problem))
    if data_config is not None:
        yield _network(config, data_config, space)
        yield from _data(config, data_config)


def _network(config: RunConfig, data_config: Any, space: list[Parameter]) -> Line:
    """Build the network and its loss with the extremes of the search space, as prepare will."""
    try:
        built = check_builds(space, load_network(here(config.network_config)), data_config)
    except InputError as problem:
        return error("network", str(problem))
    if not built:
        return not_seen(
            "network",
            "torch is not installed here: it was read, not built",
            "the weaver image has it; or pip install torch",
        )
    return ok(
        "network",
        f"{config.network_config}: built for this data configuration with every extreme of the"
        " search space",
    )


def _data(config: RunConfig, data_config: Any) -> Iterator[Line]:
    """List the files of each split, fingerprint them, and look whether the trees and branches are
    there.
    """
    from weaver.read import files

    seen: dict[str, str] = {}
    for split in SPLITS:
        pattern, name = getattr(config, f"data_{split}"), f"{split} data"
        if pattern == SAMPLE:
            yield ok(
                name,
                f"generated ({config.sample_jets:,} training jets), kept in the storage for the"
                " next run",
            )
            continue
        try:
            found = files.find(pattern)
            size = sum(entry.size for entry in found)
            checked = files.check(
                found,
                data_config,
                for_training=split != "test",
                skip_bad_files=config.skip_bad_files,
            )
            jets = sum(file.num_entries for file in checked.files)
            yield from (
                warning(name, f"{skipped.entry.uri} is damaged and will be left out")
                for skipped in checked.skipped
            )
            yield ok(
                name,
                f"{len(found)} files, {size / 1e9:.2f} GB, {jets:,} jets, fingerprint"
                f" {storage.fingerprint(found)[:12]}",
            )
            for entry in found:
                if entry.uri in seen:
                    yield error(
                        name,
                        f"{entry.uri} is in --data-{seen[entry.uri]} as well; the sets must have no"
                        " file in common",
                    )
                    break
            seen |= {entry.uri: split for entry in found}
            if not all(storage.is_s3(entry.uri) for entry in found) and storage.is_s3(
                config.s3_bucket
            ):
                yield warning(
                    name, "lies on this machine; pods cannot read it", "copy it to S3 or to EOS"
                )
        except InputError as problem:
            yield error(name, str(problem))
