"""A trial's folder (a directory or an s3:// address) and what lies in it.

    checkpoint.pt   everything to go on after the last epoch, or after the step at which the trial
        was told to stop
    checkpoint.previous.pt   the checkpoint before it, for the case that checkpoint.pt is damaged
    best.pt         weights of the best epoch so far: {"model", "epoch", "metric",
        "network_options"}
    options.json    what was trained, with what, and the best epoch
    history.json    one record an epoch
    metrics.log     Katib's metrics, as collected
    failed          the reason, if training failed in a way that will repeat, and a digest of the
        settings and data of the command that would repeat it
    derived.json    what the training set gave to the data config (preprocess: auto), for
        predictions and exports
    tensorboard/

For weaver-core there are bare state_dicts as well, by the names that it gives them: its
--model-prefix, and --load-model-weights of both programs, take them.

    <model prefix>_best_epoch_state.pt      of the best epoch
    <model prefix>_epoch-<N>_state.pt       of every epoch, where no search made the trial

checkpoint.pt holds {"model", "average", "optimizer", "scheduler", "scaler", "precision", "random",
"configuration", "progressed"}.

Files are written whole or not at all, and .pt files with a checksum (weaver.fit.sealed). A resumed
run sees the same dropout as one that was never stopped because every step draws from generators
seeded by the run's seed and the step's number; the random states are stored for what draws in
between. history.json, options.json and metrics.log follow from checkpoint.pt and are rewritten from
it, so it does not matter at which of them a run was killed.
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
from weaver.fit import metrics_log, sealed
from weaver.fit.metrics_log import EpochRecord
from weaver.network.network_file import num_parameters
from weaver.read.files import find

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.fit.options import TrainOptions
    from weaver.network.network_file import NetworkFile

PREVIOUS = "checkpoint.previous.pt"
COMMAND = "command"  # before the digest in the file `failed`

State = dict[str, Any]
"""Content of a checkpoint.pt or best.pt, whose names are in the module's text."""
Weights = Mapping[str, "torch.Tensor"]
"""A state_dict: name of a parameter or buffer -> tensor."""
Settings = Mapping[str, object]
"""Settings of a training by name, as they are compared and as JSON holds them."""


class DamagedCheckpoint(InputError):
    """A .pt file whose bytes are not those that were written, or no .pt file at all."""


@dataclasses.dataclass
class Progressed:
    """How far a trial has come; kept in checkpoint.pt beside the weights."""

    epoch: int = 0
    """The epoch to go on in."""
    batch: int = 0
    """Its first batch not yet trained on."""
    loss_sum: float = 0.0
    """Sums over the jets of this epoch that were trained on: loss, jets, and seconds spent."""
    num_jets: float = 0.0
    seconds: float = 0.0
    best_epoch: int = -1
    best_metric: float = float("inf")
    history: list[EpochRecord] = dataclasses.field(default_factory=list)

    def next_epoch(self) -> None:
        """Begin the next epoch."""
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

    def check_not_failed(self, command: str) -> None:
        """Raise TrainingError if this command has failed before for a reason that will repeat.

        command: its digest (`command_digest`). The mark that another command left does not count.
        """
        marker = self.path("failed")
        if not storage.exists(marker):
            return
        reason, _, failed = storage.read_text(marker).strip().rpartition(f"\n{COMMAND} ")
        if failed == command:
            raise TrainingError(
                f"this trial failed before: {reason} (to try again nevertheless, delete {marker})"
            )

    def mark_failed(self, reason: str, command: str) -> None:
        """Note that this command fails whenever it is repeated, and why."""
        storage.write_text(self.path("failed"), f"{reason}\n{COMMAND} {command}\n")

    def save_derived(self, data_config: DataConfig) -> None:
        """Write derived.json."""
        storage.write_json(self.path("derived.json"), data_config.derived_parameters)

    def with_derived_parameters(self, data_config: DataConfig) -> DataConfig:
        """The data config with the numbers that this trial's training set gave it.

        As it is where it lacks none, or the trial has none for it.
        """
        uri = self.path("derived.json")
        if not data_config.missing_preprocess_params or not storage.exists(uri):
            return data_config
        return data_config.with_missing_parameters(storage.read_json(uri))

    def save(self, state: State, progressed: Progressed) -> None:
        """Write checkpoint.pt. `state` holds weights, optimizer and configuration."""
        # as a dict, so that torch.load takes the file with weights_only
        content = {**state, "progressed": dataclasses.asdict(progressed)}
        uri = self.path("checkpoint.pt")
        if storage.exists(uri):
            former = storage.read_bytes(uri)
            if not sealed.damage(former):  # else the previous one is the only good one
                storage.write_bytes(self.path(PREVIOUS), former)
        write_tensors(uri, content)

    def load(self, configuration: Settings) -> tuple[State, Progressed] | None:
        """Read what `save` stored; None where there is no checkpoint.

        In place of a damaged one the one before it is read, and a line on stderr says so. Raises
        DamagedCheckpoint if that is missing or damaged as well, and InputError if it was made with
        another configuration: to continue it would mix two trainings.
        """
        uri = self.path("checkpoint.pt")
        if not storage.exists(uri):
            return None
        try:
            state = read_tensors(uri)
        except DamagedCheckpoint as error:
            damaged, uri = uri, self.path(PREVIOUS)
            if not storage.exists(uri):
                raise DamagedCheckpoint(
                    f"{error}; no earlier checkpoint is kept: delete {damaged} to start over"
                ) from None
            state = read_tensors(uri)
            _note(f"{error}; going on from the checkpoint before it, {uri}")
        if "progressed" not in state or "configuration" not in state:
            raise InputError(f"{uri} is no checkpoint of weaver.train; remove it to start anew")
        check_same(uri, state["configuration"], configuration)
        return state, Progressed(**state.pop("progressed"))

    def save_best(
        self, weights: Weights, progressed: Progressed, network_options: Settings
    ) -> None:
        """Write best.pt."""
        best = {
            "model": dict(weights),
            "epoch": progressed.best_epoch,
            "metric": progressed.best_metric,
            "network_options": dict(network_options),
        }
        write_tensors(self.path("best.pt"), best)

    def write_results(self, progressed: Progressed, options: Settings) -> None:
        """Write history.json, options.json and metrics.log."""
        storage.write_json(self.path("history.json"), progressed.history)
        described = dict(options)
        if progressed.history:
            described["best_epoch"] = progressed.best_epoch
            described["best_metric"] = progressed.best_metric
        storage.write_json(self.path("options.json"), described)
        storage.write_text(self.path("metrics.log"), metrics_log.lines(progressed.history))


def read_best(trial_uri: str) -> State:
    """The content of a trial's best.pt: "model" (weights) and "network_options" at least.

    Where that is damaged, the same weights are taken from the file that is written beside it for
    weaver-core, and a line on stderr says so. Raises InputError where there is none, or it is
    another file, and DamagedCheckpoint.
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
            "network_options": storage.read_json(options).get("network_options"),
        }
        _note(f"{error}; taking the weights of {copy}, which is written with it")
    if "model" not in best or not isinstance(best.get("network_options"), Mapping):
        raise InputError(f"{uri} is no best.pt of weaver.train; give one")
    return best


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def state_uri(model_prefix: str, epoch: int | None = None) -> str:
    """Where weaver-core keeps the weights of an epoch, or of the best one."""
    which = "best_epoch" if epoch is None else f"epoch-{epoch}"
    prefix = storage.absolute(model_prefix) + ("/" if model_prefix.endswith("/") else "")
    return f"{prefix}_{which}_state.pt"


def write_states(weights: Weights, options: TrainOptions, epoch: int, *, is_best: bool) -> None:
    """Write an epoch's weights as bare state_dicts, as the module's text says.

    A search keeps the best ones only: it has as many trials as others have epochs. With
    --auto-clean the epoch before goes.
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
    """The weights by the names that a network has itself, without those of what was around it.

    DistributedDataParallel adds `module.` in front, torch.compile `_orig_mod.` to what it compiled.
    Where that has been taken off, a line on stderr says so. own: the network's names.
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
    """Load weights into a network.

    Raises InputError that names what differs where they are another network's.
    """
    try:
        network.load_state_dict(without_wrappers(weights, network.state_dict().keys(), where))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{where} holds the weights of another network: {reason}") from None


def read_weights(uri: str) -> dict[str, torch.Tensor]:
    """Read the weights in a best.pt or checkpoint.pt, or in a file of weaver-core.

    The latter is nothing but a state_dict. `uri:PREFIX` takes those whose names begin with
    `PREFIX.`, without it. Raises InputError for any other file.
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
    """Write a file with torch.save and a checksum to a URI, atomically."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    storage.write_bytes(uri, sealed.sealed(buffer.getvalue()))


def read_tensors(uri: str) -> State:
    """Read a file with torch.load from a URI onto the CPU, weights only: it cannot run code.

    Raises DamagedCheckpoint for a file that is damaged, or anything else.
    """
    import torch

    content = storage.read_bytes(uri)
    if damage := sealed.damage(content):
        raise DamagedCheckpoint(f"{uri} is no checkpoint that can be read: {damage}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedCheckpoint(f"{uri} is no checkpoint that can be read: {reason}") from None


def command_digest(configuration: Settings, patterns: Sequence[str]) -> str:
    """A digest of a training's settings and of its data as they are now.

    patterns: --data-train and --data-val. A command with the same digest would fail again.
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
    """The settings that must be equal for a checkpoint to be resumed.

    The data configs are those of training and validation.
    """
    others: dict[str, object] = {}
    # only where given, so that checkpoints of earlier versions still fit
    if not options.data_val:
        others["train_val_split"] = options.train_val_split
    if val_config.digest() != data_config.digest():
        others["data_config_val"] = val_config.digest()[:16]
    if options.most_files:
        others["demo"] = True
    return {
        **options.settings(),
        "network_option": dict(options.network_option),
        # the file's content: where it lies makes no difference
        "network_config": network.digest()[:16],
        "data_config": data_config.digest()[:16],
        "data_train": " ".join(options.data_train),
        "data_val": " ".join(options.data_val),
        **others,
    }


def trial_description(options: TrainOptions, model: torch.nn.Module) -> dict[str, object]:
    """The part of options.json that is known before training."""
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
    """Whether two addresses are of one run's reference to its data, before and after it was moved.

    >>> is_moved_reference("/runs/pfn-0a1b2c3d/data/train.json", "/b/pfn-0a1b2c3d/data/train.json")
    True
    """
    tails = [address.split("/")[-3:] for address in (before, now)]
    return before.endswith(".json") and len(tails[0]) == 3 and tails[0] == tails[1]


def check_same(uri: str, stored: Settings, current: Settings) -> None:
    """Raise InputError that names the settings in which two configurations differ."""
    differences = []
    for name in {**stored, **current}:
        if name == "num_epochs":  # a training may go on for more epochs, as in weaver-core
            continue
        before = stored.get(name)
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
    """Tuples as lists, so that a value that went through a file equals the one that did not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
