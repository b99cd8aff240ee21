"""Check what the user names: data configuration, search space, network, data files.

Each check exists once, as a function that reads, tries and never writes. prepare runs all of them
before it writes anything, `--check` makes a line of its table of each, and submit runs those that
need no data, which may lie where only the pods can read them. A check raises InputError, or returns
what it has seen as a Result.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from clusters import service_name
from clusters.katib import check_experiment
from clusters.pod_namespace import own_namespace
from common import card, storage
from common.choices import SPLITS
from common.config import AUTO, NONE, SERVED, RunConfig
from common.errors import InputError
from common.layout import RunFolder
from common.project import here, is_own
from common.records import RunRecord
from common.run import Run, make_run_id
from training.experiment import experiment
from training.network_options import check_builds, check_options
from training.search_space import Parameter, check_algorithm, for_network, load

if TYPE_CHECKING:
    from weaver.config.data_config import DataConfig
    from weaver.network.network_file import NetworkFile
    from weaver.read.files import CheckResult

COPIES = frozenset({"data.yaml", "network.py", "search_space.json"})
"""Files of a run's folder `config`, into which a network file's siblings go too."""
SAMPLE = "sample"
"""Stands for data that prepare generates, so that there are no files to check before."""


class Inputs:
    """What a configuration names, as far as the checks have read it."""

    def __init__(self, config: RunConfig, kept: str = NONE) -> None:
        """Name the inputs of a configuration; the checks read them.

        `kept` is the folder of copies (`config/`) of a run that exists: its copy of a file of this
        project is what the run goes on with, because a later version of the project may have
        changed the file. A user's own file is read anew.
        """
        self.config = config
        self.kept = kept
        self.space: list[Parameter] = []
        self.data_config: DataConfig | None = None
        self.parameters: int | None = None
        """Of the largest network of the search space; None before it was built."""
        self.patterns = {split: str(getattr(config, f"data_{split}")) for split in SPLITS}
        self.files: dict[str, list[storage.Entry]] = {}
        self.checked: dict[str, CheckResult] = {}

    @functools.cached_property
    def data_config_text(self) -> bytes:
        """Content of the data config."""
        return storage.read_bytes(self.place(self.config.data_config, "data.yaml"))

    @functools.cached_property
    def network(self) -> NetworkFile:
        """The network file, loaded. Raises InputError."""
        from weaver.network.network_file import NetworkFile

        place = self.place(self.config.network_config, "network.py")
        # Errors name the file as the user does, not the copy that was read.
        return NetworkFile.read(self.config.network_config, place)

    @property
    def known_data_config(self) -> DataConfig:
        """The data configuration. Raises InputError where its check has not passed."""
        if self.data_config is None:
            raise InputError(f"the data configuration {self.config.data_config} was not read")
        return self.data_config

    def place(self, path: str, copy: str) -> str:
        """Return the file to read for a configuration that was named as `path`."""
        if self.kept == NONE or not is_own(path):
            return here(path)
        return storage.join(self.kept, copy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a check that passed has seen."""

    text: str
    warning: str = ""
    seen: bool = True
    """False where this machine cannot look, and `text` says why."""
    cure: str = ""


def check_data_config(inputs: Inputs) -> Result:
    """Read the data configuration."""
    from weaver.config.data_config import DataConfig

    config = DataConfig.load(inputs.place(inputs.config.data_config, "data.yaml"))
    inputs.data_config = config
    groups = ", ".join(f"{name} {tuple(shape)[1:]}" for name, shape in config.input_shapes.items())
    return Result(
        text=f"{inputs.config.data_config}: {len(config.branches)} branches; inputs {groups}"
    )


def check_search_space(inputs: Inputs) -> Result:
    """Hold the search space against the network's options, the algorithm and Katib's own rules."""
    config = inputs.config
    # Kept before its own checks: --check builds the network with it even if they refuse.
    inputs.space = for_network(load(config.search_space), config.network_config)
    check_options(inputs.space, config.network_config, inputs.network.source)
    check_algorithm(inputs.space, config.algorithm)
    # The id of a run to come is as long as this one, and names of objects are made of it.
    run_id = config.run_id
    if run_id == AUTO:
        run_id = make_run_id(config.network_config, "checked")
    check_experiment(experiment(Run(config=config.replace(run_id=run_id))))
    names = ", ".join(parameter.name for parameter in inputs.space)
    return Result(text=f"{names}; {config.algorithm}, {config.max_trials} trials")


def check_gate(inputs: Inputs) -> Result:
    """Say before any training why the gate will refuse the model, or the correction be missing."""
    # submit and --help need no physics
    from components.gate_inputs import missing_of_config

    missing = missing_of_config(inputs.known_data_config, inputs.config.gate)
    if missing:
        return Result(text="looks at the exported model", warning="; ".join(missing))
    return Result(text="can judge a model of this label, by the observers listed")


def check_service_name(inputs: Inputs) -> Result:
    """Refuse a name of which KServe would never make a service.

    Where --namespace is auto, the namespace is known in a pod alone.
    """
    config = inputs.config
    run = Run(config=config)
    if not storage.is_s3(config.s3_bucket):  # pods need S3
        return Result(text=f"{run.model_name}, served on this machine")
    namespace = own_namespace() if config.namespace == AUTO else config.namespace
    if not namespace:
        return Result(
            text=f"{run.model_name}: its length is looked at in the namespace of the steps",
            seen=False,
            cure="give --namespace",
        )
    service_name.check(run.model_name, namespace)
    return Result(text=f"{run.model_name} in namespace {namespace}")


def check_network(inputs: Inputs) -> Result:
    """Build the network and its loss with the extremes of the search space; it takes jets."""
    if taken := COPIES & set(inputs.network.siblings):
        raise InputError(
            f"{inputs.config.network_config} needs the file {min(taken)} beside it, a name that the"
            " run's own copies have; rename it"
        )
    try:
        inputs.parameters = check_builds(inputs.space, inputs.network, inputs.known_data_config)
    except InputError as error:
        other = network_for(inputs.known_data_config)
        if other is None or other == inputs.config.network_config:
            raise
        raise InputError(
            f"{error}; the network of these inputs: --network-config {other}"
        ) from None
    if inputs.parameters is None:
        return Result(
            text="torch is not installed here: it was read, not built",
            seen=False,
            cure="the weaver image has it; or pip install torch",
        )
    return Result(
        text=f"{inputs.config.network_config}: built for this data configuration with every extreme"
        " of the search space, and takes its inputs"
    )


def network_for(data_config: DataConfig) -> str | None:
    """The network of this project that takes the input groups of a data config; None without one.

    torch is installed.
    """
    groups = set(data_config.input_names)
    for name in ("pfn_regressor_open", "particle_net_regressor_open"):
        network = importlib.import_module(f"networks.{name}")
        if set(network.INPUTS) <= groups <= {*network.INPUTS, *network.OPTIONAL_INPUTS}:
            return f"networks/{name}.py"
    return None


def check_files(inputs: Inputs, split: str) -> Result:
    """List the files of a split and hold each against the data configuration."""
    # submit and --help need neither uproot nor awkward
    from weaver.read import files

    pattern = inputs.patterns[split]
    if pattern == SAMPLE:
        return Result(
            text=f"generated ({inputs.config.sample_jets:,} training jets), kept in the storage for"
            " the next run"
        )
    warnings: list[str] = []
    entries = files.find(pattern, warnings.append)
    checked = files.check(
        entries,
        inputs.known_data_config,
        # the test set needs no weights, and has a selection of its own
        for_training=split != "test",
        skip_bad_files=inputs.config.skip_bad_files,
    )
    inputs.files[split] = entries
    inputs.checked[split] = checked
    size = sum(entry.size for entry in entries)
    jets = sum(file.num_entries for file in checked.files)
    return Result(
        text=f"{len(entries)} files, {size / 1e9:.2f} GB, {jets:,} jets, fingerprint"
        f" {storage.fingerprint(entries)[:12]}",
        warning="; ".join(f"--data-{split}: {text}" for text in warnings),
    )


def check_sets_apart(inputs: Inputs) -> Result:
    """Refuse a file that is in two of the sets: it would make a model look better than it is."""
    split_of: dict[str, str] = {}
    for split, entries in inputs.files.items():
        uris = {entry.uri for entry in entries}
        if both := uris & split_of.keys():
            uri = min(both)
            raise InputError(
                f"{uri} is in --data-{split_of[uri]} and in --data-{split}; the sets must have no"
                " file in common"
            )
        split_of |= dict.fromkeys(uris, split)
    return Result(text="no file is in two of them")


def check_raw_model(inputs: Inputs) -> Result:
    """Say before any training whether a model can take the files' own columns.

    The validation set is the one that export takes its jets from.
    """
    from weaver.onnx.raw_jets import raw_columns
    from weaver.onnx.raw_program import check_raw

    if inputs.config.raw_model == NONE:
        return Result(text="none is to be exported")
    if "val" not in inputs.checked:
        return Result(text="looked at when the validation jets are there")
    entry = inputs.checked["val"].files[0].entry
    config = inputs.known_data_config
    try:
        check_raw(config, raw_columns(entry, config))
    except InputError as error:
        if inputs.config.raw_model != AUTO:
            raise InputError(f"{error}; or leave --raw-model out") from None
        caution = f"no model that takes raw jets will be exported: {error}"
        return Result(text="the other model is exported alone", warning=caution)
    return Result(text="a model that takes the files' own columns can be exported")


def check_card(inputs: Inputs) -> Result:
    """Check the file of --card. Raises InputError."""
    if inputs.config.card == NONE:
        return Result(text="nothing of the user's own (--card)")
    facts, notes = card.read(inputs.config.card)
    return Result(text=", ".join(facts) if facts else f"{len(notes):,} characters of text")


def check_baseline(inputs: Inputs) -> Result:
    """Look for the earlier run, which evaluation would miss after all training."""
    baseline = inputs.config.baseline
    if baseline == NONE:
        return Result(text="no earlier run is compared")
    if baseline == SERVED:
        return Result(
            text="the run that was deployed last under this service's name; prepare looks for it"
        )
    if not storage.exists(storage.join(storage.absolute(baseline), "metrics.json")):
        raise InputError(
            f"--baseline {baseline} has no metrics.json; give the folder of a run that was"
            " evaluated"
        )
    warning = ""
    record = RunRecord.find(RunFolder(storage.absolute(baseline)).run)
    theirs = record.data.get("test") if record else None
    ours = inputs.files.get("test")
    if theirs and ours and theirs.fingerprint != storage.fingerprint(ours):
        warning = (
            f"--baseline {baseline} was tested on other files than --data-test; the step evaluate"
            " refuses a baseline that was tested on other jets"
        )
    return Result(text=f"{baseline} was evaluated", warning=warning)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A check and its name in the table of `--check`."""

    name: str
    run: Callable[[Inputs], Result]
    reads_data_config: bool = False
    """It cannot run where the data configuration could not be read."""


OF_CONFIGURATION = (
    Check(name="data configuration", run=check_data_config),
    Check(name="search space", run=check_search_space),
    Check(name="network", run=check_network, reads_data_config=True),
    Check(name="gate", run=check_gate, reads_data_config=True),
    Check(name="service name", run=check_service_name),
    Check(name="model card", run=check_card),
)
"""The checks that read nothing but the configurations, in their order."""

OF_DATA = (
    *(
        Check(
            name=f"{split} data",
            run=functools.partial(check_files, split=split),
            reads_data_config=True,
        )
        for split in SPLITS
    ),
    Check(name="sets", run=check_sets_apart, reads_data_config=True),
    Check(name="raw model", run=check_raw_model, reads_data_config=True),
    Check(name="baseline", run=check_baseline),
)
"""The checks that open the data files or look for an earlier run, in their order."""
