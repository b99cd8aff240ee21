"""Check the inputs of a run: data configuration, search space, network, data files.

Each check is one function that reads files and never writes. prepare runs all of them before it
writes anything, and `--check` prints a line for each. submit runs only those that need no data,
because maybe only the pods can read the data. A check raises InputError, or returns a Result.
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
"""Files in a run's folder `config`; the files that a network file imports are copied there too."""
PROJECT_NETWORKS = (
    "networks/pfn_regressor_open.py",
    "networks/particle_net_regressor_open.py",
)
"""Networks whose input groups are known (INPUTS), so that one can be named in place of another."""
SAMPLE = "sample"
"""Value of --data-train, --data-val and --data-test for jets that prepare generates."""


class Inputs:
    """The inputs of a configuration; each check stores here what it has read."""

    def __init__(self, config: RunConfig, copies_folder: str = NONE) -> None:
        """Store the configuration; nothing is read yet.

        `copies_folder` is the folder `config/` of an existing run. From it come the project's own
        files, because a later version of the project may have changed them. A user's own file is
        read again.
        """
        self.config = config
        self.copies_folder = copies_folder
        self.space: list[Parameter] = []
        self.data_config: DataConfig | None = None
        self.parameters: int | None = None
        """Of the largest network of the search space; None before it was built."""
        self.patterns = {split: str(getattr(config, f"data_{split}")) for split in SPLITS}
        self.files: dict[str, list[storage.Entry]] = {}
        self.file_checks: dict[str, CheckResult] = {}

    @functools.cached_property
    def data_config_text(self) -> bytes:
        """Content of the data config."""
        return storage.read_bytes(self.file_to_read(self.config.data_config, "data.yaml"))

    @functools.cached_property
    def network(self) -> NetworkFile:
        """The loaded network file. Raises InputError if it cannot be read."""
        from weaver.network.network_file import NetworkFile

        file = self.file_to_read(self.config.network_config, "network.py")
        # Error messages name the user's path, not the copy's.
        return NetworkFile.read(self.config.network_config, file)

    @property
    def known_data_config(self) -> DataConfig:
        """The data configuration. Raises InputError if its check has not passed."""
        if self.data_config is None:
            raise InputError(f"the data configuration {self.config.data_config} was not read")
        return self.data_config

    def file_to_read(self, path: str, copy: str) -> str:
        """Return the file to read for the path in a flag: the file itself, or the run's copy."""
        if self.copies_folder == NONE or not is_own(path):
            return here(path)
        return storage.join(self.copies_folder, copy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a check that passed."""

    text: str
    """What was checked, or why it could not be."""
    warning: str = ""
    is_checked: bool = True
    """False if it cannot be checked on this machine."""
    cure: str = ""
    """How to have it checked."""


def check_data_config(inputs: Inputs) -> Result:
    """Read the data configuration. Raises InputError if it is invalid."""
    from weaver.config.data_config import DataConfig

    config = DataConfig.load(inputs.file_to_read(inputs.config.data_config, "data.yaml"))
    inputs.data_config = config
    groups = ", ".join(f"{name} {tuple(shape)[1:]}" for name, shape in config.input_shapes.items())
    return Result(
        text=f"{inputs.config.data_config}: {len(config.branches)} branches; inputs {groups}"
    )


def check_search_space(inputs: Inputs) -> Result:
    """Check the search space against the network's options, the algorithm and Katib's rules.

    Raises InputError if one of them refuses it.
    """
    config = inputs.config
    # Stored before its checks, because --check builds the network with it even if they fail.
    inputs.space = for_network(load(config.search_space), config.network_config)
    check_options(inputs.space, config.network_config, inputs.network.source)
    check_algorithm(inputs.space, config.algorithm)
    # A placeholder as long as a real run id, because Katib limits names that contain it.
    run_id = config.run_id
    if run_id == AUTO:
        run_id = make_run_id(config.network_config, "checked")
    check_experiment(experiment(Run(config=config.replace(run_id=run_id))))
    names = ", ".join(parameter.name for parameter in inputs.space)
    return Result(text=f"{names}; {config.algorithm}, {config.max_trials} trials")


def check_gate(inputs: Inputs) -> Result:
    """Warn before the training if the gate will refuse the model or it will have no correction.

    Raises InputError if an observer is missing that the evaluation needs.
    """
    # Imported here, because submit and --help do not need the physics.
    from components.gate_inputs import warnings_about_config

    warnings = warnings_about_config(inputs.known_data_config, inputs.config.gate)
    if warnings:
        return Result(text="the gate judges the exported model", warning="; ".join(warnings))
    return Result(text="the label and the observers are suitable for the gate")


def check_service_name(inputs: Inputs) -> Result:
    """Raise InputError for a name from which KServe cannot make a service.

    With --namespace auto, only a pod knows the namespace, and with it the length of the host name.
    """
    config = inputs.config
    run = Run(config=config)
    if not storage.is_s3(config.s3_bucket):  # pods need S3
        return Result(text=f"{run.model_name}, served on this machine")
    namespace = own_namespace() if config.namespace == AUTO else config.namespace
    if not namespace:
        return Result(
            text=f"{run.model_name}: its length is checked when the steps know their namespace",
            is_checked=False,
            cure="give --namespace",
        )
    service_name.check(run.model_name, namespace)
    return Result(text=f"{run.model_name} in namespace {namespace}")


def check_network(inputs: Inputs) -> Result:
    """Build the network and its loss with the extremes of the search space, and run it on jets.

    Raises InputError if that fails, or if a file beside the network file has a reserved name.
    """
    if conflicts := COPIES & set(inputs.network.siblings):
        raise InputError(
            f"{inputs.config.network_config} imports the file {min(conflicts)} beside it; the run's"
            " own files have the same name; rename it"
        )
    try:
        inputs.parameters = check_builds(inputs.space, inputs.network, inputs.known_data_config)
    except InputError as error:
        network_file = inputs.config.network_config
        other = network_for(inputs.known_data_config)
        # A user who gives a network of their own wants to use that one.
        if network_file not in PROJECT_NETWORKS or other in (None, network_file):
            raise
        raise InputError(
            f"{error}; the network for these inputs is --network-config {other}"
        ) from None
    if inputs.parameters is None:
        return Result(
            text="torch is not installed: the network file was read, but the network not built",
            is_checked=False,
            cure="run it in the weaver image, or pip install torch",
        )
    return Result(
        text=f"{inputs.config.network_config}: built and run for this data configuration with every"
        " extreme of the search space"
    )


def network_for(data_config: DataConfig) -> str | None:
    """Return the project's network for the input groups of a data config; None if there is none.

    It needs torch.
    """
    groups = set(data_config.input_names)
    for path in PROJECT_NETWORKS:
        network = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        if set(network.INPUTS) <= groups <= {*network.INPUTS, *network.OPTIONAL_INPUTS}:
            return path
    return None


def check_files(inputs: Inputs, split: str) -> Result:
    """List the files of a split and check each against the data configuration.

    Raises InputError for a missing, damaged or unsuitable file, StorageError if a server fails.
    """
    # Imported here, because submit and --help need neither uproot nor awkward.
    from weaver.read import files

    pattern = inputs.patterns[split]
    if pattern == SAMPLE:
        jets = inputs.config.sample_sizes[SPLITS.index(split)]
        return Result(text=f"prepare generates {jets:,} jets and stores them for later runs")
    warnings: list[str] = []
    entries = files.find(pattern, warnings.append)
    file_check = files.check(
        entries,
        inputs.known_data_config,
        # the test set has no weights and its own selection
        for_training=split != "test",
        skip_bad_files=inputs.config.skip_bad_files,
    )
    inputs.files[split] = entries
    inputs.file_checks[split] = file_check
    size = sum(entry.size for entry in entries)
    jets = sum(file.num_entries for file in file_check.files)
    return Result(
        text=f"{len(entries)} file{'' if len(entries) == 1 else 's'}, {size / 1e9:.2f} GB,"
        f" {jets:,} jets, fingerprint {storage.fingerprint(entries)[:12]}",
        warning="; ".join(f"--data-{split}: {text}" for text in warnings),
    )


def check_sets_apart(inputs: Inputs) -> Result:
    """Raise InputError for a file that is in two sets.

    A model that is tested on its training jets looks better than it is.
    """
    split_of: dict[str, str] = {}
    for split, entries in inputs.files.items():
        uris = {entry.uri for entry in entries}
        if common := uris & split_of.keys():
            uri = min(common)
            raise InputError(
                f"{uri} is in --data-{split_of[uri]} and in --data-{split}; the sets must have no"
                " file in common"
            )
        split_of |= dict.fromkeys(uris, split)
    unread = [
        split
        for split, pattern in inputs.patterns.items()
        if pattern != SAMPLE and split not in inputs.files
    ]
    if unread:
        return Result(
            text=f"not compared: the files of {' and '.join(unread)} could not be read",
            is_checked=False,
            cure=f"correct --data-{unread[0]}",
        )
    return Result(text="no file is in two of them")


def check_raw_model(inputs: Inputs) -> Result:
    """Check before the training whether a model of the files' own columns can be exported.

    It reads a file of the validation set, from which export takes its jets. Raises InputError if
    --raw-model is 'required' and it cannot be exported.
    """
    from weaver.onnx.raw_jets import raw_columns
    from weaver.onnx.raw_program import check_raw

    if inputs.config.raw_model == NONE:
        return Result(text="--raw-model none: it is not exported")
    if inputs.patterns["val"] == SAMPLE:
        return Result(text="checked when the validation jets have been generated")
    if "val" not in inputs.file_checks:
        return Result(
            text="not checked: the validation files could not be read",
            is_checked=False,
            cure="correct --data-val",
        )
    entry = inputs.file_checks["val"].files[0].entry
    config = inputs.known_data_config
    try:
        check_raw(config, raw_columns(entry, config))
    except InputError as error:
        if inputs.config.raw_model != AUTO:
            raise InputError(f"{error}; or leave --raw-model out") from None
        caution = f"the model of the files' own columns will not be exported: {error}"
        return Result(text="only the model of features is exported", warning=caution)
    return Result(text="the model of the files' own columns can be exported")


def check_card(inputs: Inputs) -> Result:
    """Read the file of --card. Raises InputError if it is invalid."""
    if inputs.config.card == NONE:
        return Result(text="no facts of the user's own (--card none)")
    facts, notes = card.read(inputs.config.card)
    return Result(text=", ".join(facts) if facts else f"{len(notes):,} characters of text")


def check_baseline(inputs: Inputs) -> Result:
    """Check that the run of --baseline exists; evaluate needs it only after the training.

    Raises InputError if it was not evaluated.
    """
    baseline = inputs.config.baseline
    if baseline == NONE:
        return Result(text="no earlier run is compared")
    if baseline == SERVED:
        return Result(
            text="the last run that was deployed under this service's name; prepare looks for it"
        )
    if not storage.exists(storage.join(storage.absolute(baseline), "metrics.json")):
        raise InputError(
            f"--baseline {baseline} has no metrics.json; give the folder of a run that was"
            " evaluated (python pipeline.py --list shows the gain of those)"
        )
    warning = ""
    record = RunRecord.find(RunFolder(storage.absolute(baseline)).run)
    baseline_files = record.data.get("test") if record else None
    test_files = inputs.files.get("test")
    if (
        baseline_files
        and test_files
        and baseline_files.fingerprint != storage.fingerprint(test_files)
    ):
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
    """Whether it needs the data configuration, and is skipped if that cannot be read."""


CONFIGURATION_CHECKS = (
    Check(name="data configuration", run=check_data_config),
    Check(name="search space", run=check_search_space),
    Check(name="network", run=check_network, reads_data_config=True),
    Check(name="gate", run=check_gate, reads_data_config=True),
    Check(name="service name", run=check_service_name),
    Check(name="model card", run=check_card),
)
"""The checks that need no data files, in the order in which they run."""

DATA_CHECKS = (
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
"""The checks that open data files or look for an earlier run, in the order in which they run."""
