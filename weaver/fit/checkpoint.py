"""The files in a trial's folder (a directory or an s3:// address), and how to read and write them.

    checkpoint.pt   the state of the training after its last epoch, or after the step at which a
        signal stopped it
    checkpoint.previous.pt   the checkpoint before it, in case checkpoint.pt is damaged
    best.pt         weights of the best epoch so far: {"model", "epoch", "metric",
        "network_options"}
    options.json    options of network and training, versions, seed, and the best epoch
    history.json    one record an epoch
    metrics.log     the metrics, in the format of Katib's collector
    failed          if training failed in a way that will repeat: the reason, and a digest of the
        command's settings and data
    derived.json    numbers of the data config that were derived from the training set (preprocess:
        auto), for predictions and exports
    tensorboard/

For weaver-core there are state_dicts as well, with its names. Its --model-prefix, and
--load-model-weights of both programs, accept them.

    <model prefix>_best_epoch_state.pt      of the best epoch
    <model prefix>_epoch-<N>_state.pt       of every epoch, unless the trial is one of a search

checkpoint.pt contains {"model", "average", "optimizer", "scheduler", "scaler", "precision",
"random", "configuration", "progressed"}.

Files are written atomically, and .pt files with a checksum (weaver.fit.checksum). A resumed run has
the same dropout as an uninterrupted one, because each step seeds the random generators with the
run's seed and the step's number. Their states are stored for random numbers drawn between steps.
history.json, options.json and metrics.log are computed from checkpoint.pt and rewritten from it on
resume, so that a run may be killed between any two files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from common import storage
from common.errors import InputError, TrainingError, unknown
from weaver.fit import checksum, metrics_log
from weaver.fit.metrics_log import EpochRecord
from weaver.network.network_file import num_parameters
from weaver.read.files import find

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.fit.options import TrainOptions
    from weaver.network.network_file import NetworkFile

PREVIOUS = "checkpoint.previous.pt"
COMMAND = "command"  # the word before the digest in the file `failed`

State = dict[str, Any]
"""Content of a checkpoint.pt or best.pt; the module's docstring lists its keys."""
Weights = Mapping[str, "torch.Tensor"]
"""A state_dict: name of a parameter or buffer -> tensor."""
Settings = Mapping[str, object]
"""Settings of a training: name -> value, of types that JSON has."""


class DamagedCheckpoint(InputError):
    """A file that is not a .pt file, or whose bytes have changed since it was written."""


@dataclasses.dataclass
class TrialProgress:
    """How many epochs and batches a trial has trained, and its history; part of checkpoint.pt."""

    epoch: int = 0
    """The current epoch, from 0: the one in which a resumed training continues."""
    batch: int = 0
    """The next batch of this epoch."""
    loss_sum: float = 0.0
    """Sums over the steps of this epoch so far: loss times jets, jets, and seconds."""
    num_jets: float = 0.0
    seconds: float = 0.0
    best_epoch: int = -1
    best_metric: float = float("inf")
    history: list[EpochRecord] = dataclasses.field(default_factory=list)

    def next_epoch(self) -> None:
        """Start the next epoch."""
        self.epoch += 1
        self.batch = 0
        self.loss_sum = self.num_jets = self.seconds = 0.0


@dataclasses.dataclass(frozen=True)
class TrialFolder:
    """Reads and writes the files of one trial."""

    uri: str

    def path(self, *parts: str) -> str:
        """Return the address of a file of the folder."""
        return storage.join(self.uri, *parts)

    def check_no_failure_marker(self, command: str) -> None:
        """Raise TrainingError if this command has failed before for a reason that will repeat.

        command: its digest (`command_digest`). The marker of another command does not count.
        """
        marker = self.path("failed")
        if not storage.exists(marker):
            return
        reason, _, failed_command = storage.read_text(marker).strip().rpartition(f"\n{COMMAND} ")
        if failed_command == command:
            raise TrainingError(
                f"this trial failed before: {reason} (to try again nevertheless, delete {marker})"
            )

    def write_failure_marker(self, reason: str, command: str) -> None:
        """Record that this command will fail whenever it is repeated, and why."""
        storage.write_text(self.path("failed"), f"{reason}\n{COMMAND} {command}\n")

    def save_derived_parameters(self, data_config: DataConfig) -> None:
        """Write derived.json."""
        storage.write_json(self.path("derived.json"), data_config.derived_parameters)

    def with_derived_parameters(self, data_config: DataConfig) -> DataConfig:
        """Fill in the missing numbers of a data config from the trial's derived.json.

        Returns it unchanged where no number is missing, or the trial has no derived.json. Raises
        InputError where the trial's numbers are for another data config.
        """
        uri = self.path("derived.json")
        if not data_config.missing_preprocess_params or not storage.exists(uri):
            return data_config
        return data_config.with_missing_parameters(storage.read_object(uri))

    def save(self, state: State, trial: TrialProgress) -> None:
        """Write checkpoint.pt. `state` holds weights, optimizer and configuration."""
        # as a dict, so that torch.load takes the file with weights_only
        content = {**state, "progressed": dataclasses.asdict(trial)}
        uri = self.path("checkpoint.pt")
        if storage.exists(uri):
            previous = storage.read_bytes(uri)
            if not checksum.damage(previous):  # else checkpoint.previous.pt is the only good one
                storage.write_bytes(self.path(PREVIOUS), previous)
        write_tensors(uri, content)

    def load(self, configuration: Settings) -> tuple[State, TrialProgress] | None:
        """Read (state, progress) as `save` stored them; None without a checkpoint.

        If the checkpoint is damaged, the one before it is read, and a line on stderr says so.
        Raises DamagedCheckpoint if that is missing or damaged as well, and InputError if the
        checkpoint has another configuration: to continue it would mix two trainings.
        """
        uri = self.path("checkpoint.pt")
        if not storage.exists(uri):
            return None
        try:
            state = read_tensors(uri)
        except DamagedCheckpoint as error:
            damaged_uri, uri = uri, self.path(PREVIOUS)
            if not storage.exists(uri):
                raise DamagedCheckpoint(
                    f"{error}; no earlier checkpoint is kept: delete {damaged_uri} to start over"
                ) from None
            state = read_tensors(uri)
            _note(f"{error}; going on from the checkpoint before it, {uri}")
        if "progressed" not in state or "configuration" not in state:
            raise InputError(f"{uri} is not a checkpoint of weaver.train; delete it to start over")
        check_same(uri, state["configuration"], configuration)
        return state, TrialProgress(**state.pop("progressed"))

    def save_best(self, weights: Weights, trial: TrialProgress, network_options: Settings) -> None:
        """Write best.pt."""
        best = {
            "model": dict(weights),
            "epoch": trial.best_epoch,
            "metric": trial.best_metric,
            "network_options": dict(network_options),
        }
        write_tensors(self.path("best.pt"), best)

    def write_results(self, trial: TrialProgress, options: Settings) -> None:
        """Write history.json, options.json and metrics.log."""
        storage.write_json(self.path("history.json"), trial.history)
        content = dict(options)
        if trial.history:
            content["best_epoch"] = trial.best_epoch
            content["best_metric"] = trial.best_metric
        storage.write_json(self.path("options.json"), content)
        storage.write_text(self.path("metrics.log"), metrics_log.lines(trial.history))


def read_best(trial_uri: str) -> State:
    """Read a trial's best.pt; it contains at least "model" (weights) and "network_options".

    If it is damaged, the same weights are read from the state_dict for weaver-core, and a line on
    stderr says so. Raises InputError if best.pt is missing or another file, and DamagedCheckpoint
    if both files cannot be read.
    """
    uri = storage.join(trial_uri, "best.pt")
    if not storage.exists(uri):
        raise InputError(f"there is no {uri}: the trial has not finished an epoch")
    try:
        best = read_tensors(uri)
    except DamagedCheckpoint as error:
        copy = state_uri(trial_uri)
        options = storage.join(trial_uri, "options.json")
        if not storage.exists(copy) or not storage.exists(options):
            raise
        best = {
            "model": read_weights(copy),
            "network_options": storage.read_object(options).get("network_options"),
        }
        _note(f"{error}; taking the weights of {copy}, which is written with it")
    if "model" not in best or not isinstance(best.get("network_options"), Mapping):
        raise InputError(f"{uri} is not a best.pt of weaver.train; give one")
    return best


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def state_uri(model_prefix: str, epoch: int | None = None) -> str:
    """Return the address of the state_dict of an epoch, or of the best, by weaver-core's name."""
    which = "best_epoch" if epoch is None else f"epoch-{epoch}"
    prefix = storage.absolute(model_prefix) + ("/" if model_prefix.endswith("/") else "")
    return f"{prefix}_{which}_state.pt"


def write_state_dicts(
    weights: Weights, options: TrainOptions, epoch: int, *, is_best: bool
) -> None:
    """Write an epoch's weights as state_dicts for weaver-core (see the module's docstring).

    Of a search's trial only the best epoch is written, because a search has many trials. With
    --auto-clean the weights of the epoch before are deleted.
    """
    uris = [state_uri(options.model_prefix)] if is_best else []
    is_of_search = bool(options.metrics_log)
    if not is_of_search:
        uris.append(state_uri(options.model_prefix, epoch))
    for uri in uris:
        write_tensors(uri, dict(weights))
    if options.auto_clean and not is_of_search and epoch:
        storage.delete(state_uri(options.model_prefix, epoch - 1))


def without_wrappers(weights: Weights, own: AbstractSet[str], where: str) -> Weights:
    """Remove the prefixes of wrapper modules from the names of weights.

    DistributedDataParallel adds `module.` in front of all names, torch.compile adds `_orig_mod.`
    to those of a compiled module. If any are removed, a line on stderr says so. own: the names of
    the network's own weights. where: the file of the weights, for messages.
    """
    bare = {}
    for name, value in weights.items():
        inner = name.replace("_orig_mod.", "")
        # a network may have a part that it calls `module` itself
        while inner not in own and inner.startswith("module."):
            inner = inner.removeprefix("module.")
        bare[inner] = value
    if len(own & bare.keys()) <= len(own & weights.keys()):
        return weights
    _note(
        f"{where}: 'module.' and '_orig_mod.' are taken off the names of the weights, which"
        " DistributedDataParallel and torch.compile add"
    )
    return bare


def load_weights(network: torch.nn.Module, weights: Weights, where: str) -> None:
    """Load weights into a network; `where` names their file in errors.

    Raises InputError, with the first difference, if they are the weights of another network.
    """
    try:
        network.load_state_dict(without_wrappers(weights, network.state_dict().keys(), where))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{where} holds the weights of another network: {reason}") from None


def read_weights(uri: str) -> dict[str, torch.Tensor]:
    """Read the weights in a best.pt, a checkpoint.pt, or a state_dict file of weaver-core.

    `FILE:PREFIX` selects the weights whose names begin with `PREFIX.`, and removes it. Raises
    InputError for any other file, and DamagedCheckpoint.
    """
    import torch

    path, prefix = uri, ""
    if re.search(r"\.pt:[\w.]+$", uri):
        path, _, prefix = uri.rpartition(":")
    content = read_tensors(path)
    weights = content.get("model", content)
    is_state = isinstance(weights, dict) and bool(weights)
    if not is_state or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path} holds no weights of a network")
    if not prefix:
        return dict(weights)

    part = {}
    for name, value in weights.items():
        if name.startswith(f"{prefix}."):
            part[name.removeprefix(f"{prefix}.")] = value
    if not part:
        beginnings = {name.split(".")[0] for name in weights}
        raise InputError(
            f"{path}: {unknown('beginning of the names of weights', prefix, beginnings)}"
        )
    return part


def write_tensors(uri: str, content: State) -> None:
    """Write a .pt file with torch.save and a checksum, atomically, to a path or an address."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    storage.write_bytes(uri, checksum.add_checksum(buffer.getvalue()))


def read_tensors(uri: str) -> State:
    """Read a .pt file onto the CPU with torch.load and weights_only, so that it cannot run code.

    Raises DamagedCheckpoint for a damaged file, and for one that is not a .pt file.
    """
    import torch

    content = storage.read_bytes(uri)
    if damage := checksum.damage(content):
        raise DamagedCheckpoint(f"{uri} is not a checkpoint that can be read: {damage}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedCheckpoint(f"{uri} is not a checkpoint that can be read: {reason}") from None


def command_digest(configuration: Settings, patterns: Sequence[str]) -> str:
    """Return the digest of a training's settings and the present state of its data, in hexadecimal.

    patterns: those of --data-train and --data-val. If a command has failed, one with the same
    digest will fail too.
    """
    data: list[str] = []
    for pattern in patterns:
        if pattern.endswith(".json") and storage.exists(pattern):
            data.append(storage.read_text(pattern))
            continue
        try:
            data.append(storage.fingerprint(find(pattern)))
        except InputError:  # a prepared folder, whose name is a digest; or no such data
            data.append(pattern)
    meaning = json.dumps([_plain(configuration), data], sort_keys=True, default=str)
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def resume_configuration(
    options: TrainOptions,
    data_config: DataConfig,
    val_config: DataConfig,
    network: NetworkFile,
) -> dict[str, object]:
    """Return the settings that must be equal for a checkpoint to be resumed.

    data_config, val_config: those of the training and of the validation set.
    """
    others: dict[str, object] = {}
    # only if in use, so that checkpoints of earlier versions can still be resumed
    if not options.data_val:
        others["train_val_split"] = options.train_val_split
    if val_config.digest() != data_config.digest():
        others["data_config_val"] = val_config.digest()[:16]
    if options.most_files:
        others["demo"] = True
    return {
        **options.settings(),
        "network_option": dict(options.network_option),
        # of the file's content, so that the file may be moved
        "network_config": network.digest()[:16],
        "data_config": data_config.digest()[:16],
        "data_train": " ".join(options.data_train),
        "data_val": " ".join(options.data_val),
        **others,
    }


def trial_description(options: TrainOptions, model: torch.nn.Module) -> dict[str, object]:
    """Return the content of options.json without the results."""
    import numpy
    import torch

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    return {
        "network_options": dict(options.network_option),
        "train_options": options.settings(),
        "network_config": storage.absolute(options.network_config),
        "data_config": storage.absolute(options.data_config),
        "num_parameters": num_parameters(model),
        "seed": options.seed,
        "versions": versions,
    }


def is_moved_reference(before: str, now: str) -> bool:
    """Return whether two addresses differ only because a run was moved with its reference.

    >>> is_moved_reference("/runs/pfn-0a1b2c3d/data/train.json", "/b/pfn-0a1b2c3d/data/train.json")
    True
    """
    tails = [address.split("/")[-3:] for address in (before, now)]
    return before.endswith(".json") and len(tails[0]) == 3 and tails[0] == tails[1]


def check_same(uri: str, earlier: Settings, current: Settings) -> None:
    """Compare the configuration of a checkpoint with the current one.

    uri: that of the checkpoint, for the error. Raises InputError with all settings that differ.
    """
    differences = []
    for name in {**earlier, **current}:
        if name == "num_epochs":  # a training may be extended by more epochs, as in weaver-core
            continue
        before = earlier.get(name)
        now = current.get(name)
        if name in ("data_train", "data_val") and is_moved_reference(str(before), str(now)):
            continue
        if _plain(before) != _plain(now):
            differences.append(f"{name} {before!r}, now {now!r}")
    if differences:
        raise InputError(
            f"{uri} was made with other settings ({'; '.join(differences)}); give another"
            " --model-prefix, or delete it to start over"
        )


def _plain(value: object) -> object:
    """Convert tuples to lists, so that a value from a JSON file equals one from memory."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
