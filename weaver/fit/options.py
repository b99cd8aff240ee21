"""The command line of `python -m weaver.train`, with Weaver's flag names.

Flags, help texts and defaults come from the fields of the frozen dataclass TrainOptions. Flags of
weaver-core 0.5.3 without such a field are in WEAVER_ONLY_FLAGS: each is either accepted without
effect, with the reason, or rejected, with what to use instead. Imports no torch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from common.choices import OPSETS, PRECISIONS
from common.cli import is_number, is_whole
from common.errors import InputError, JecError, unknown
from common.storage.addresses import (
    absolute,
    check_text,
    is_local,
    refuse_secrets,
    scheme_of,
)
from common.storage.local import check_writable_file, check_writable_folder
from weaver.fit.schedulers import CURVES, WARMUP_CURVES

OPTIMIZERS: Mapping[str, str] = {
    "adam": "Adam",
    "adamW": "AdamW",
    "ranger": "RAdam",  # within Lookahead
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "RAdam": "RAdam",
    "NAdam": "NAdam",
    "SGD": "SGD",
    "Adamax": "Adamax",
    "Adadelta": "Adadelta",
    "ASGD": "ASGD",
    "Adafactor": "Adafactor",
}
"""Name of --optimizer, as in weaver-core -> class in torch.optim."""
MIXED_PRECISIONS = tuple(name for name in PRECISIONS if name not in ("auto", "float32"))
RUN_STEPS = ("train", "val", "test")
"""Values of --run-mode, separated by commas."""
TRAIN_FLAGS = frozenset(
    {
        "start-lr",
        "optimizer",
        "lr-scheduler",
        "warmup-steps",
        "weight-decay",
        "clip-grad-norm",
        "num-epochs",
        "batch-size",
        "data-fraction",
        "precision",
        "ema-decay",
        "patience",
        "steps-per-epoch",
        "samples-per-epoch",
    }
)
"""Flags that a search space may set: those that take one value and change the result.

Any other name in a search space is a network option.
"""

OWN_FLAGS = frozenset(
    {
        "metrics_log",
        "weight_decay",
        "clip_grad_norm",
        "patience",
        "ema_decay",
        "precision",
        "deterministic",
        "seed",
        "tensorboard_log_dir",
        "triton_config",
        "s3_model",
        "local_rank",
        "cache",
    }
)
"""Fields of TrainOptions that are not flags of weaver-core."""
MONITOR_FILE = "weaver_monitor_info.parquet"
"""The file that --io-test writes into the current folder, as in weaver-core."""
DEMO_FILES = 20
"""Files of each data set that --demo reads, as in weaver-core."""
DEMO_FRACTION = 0.1
"""Fraction of their jets that --demo uses, as in weaver-core."""
AUTO_NAME = "JEC_AUTO_NAME"
"""Environment variable with the value of {auto}, so that it is the same in all ranks."""

LARGEST_WHOLE = 2**53
"""A float holds all integers up to this one exactly."""

OptionValues = dict[str, Any]
"""Name of an option -> Python literal or text, as `pairs` parses them."""


# -------------------------------------------------------------------------------- values of flags


def choice(what: str, choices: Iterable[str]) -> Callable[[str], str]:
    """Make an argparse type for one of `choices`, in upper or lower case.

    The error for another word names the nearest choices; `what` is the kind of choice.
    """
    by_lower = {name.lower(): name for name in choices}

    def parse(text: str) -> str:
        if text.lower() not in by_lower:
            raise argparse.ArgumentTypeError(unknown(what, text, by_lower.values()))
        return by_lower[text.lower()]

    return parse


def number(
    kind: type, least: float, most: float = float("inf"), *, above: bool = False
) -> Callable[[str], Any]:
    """Make an argparse type for an int or a float from `least` to `most`.

    above: exclude `least` itself. An int may be written as a float ("500.0"). The type raises
    argparse.ArgumentTypeError for any other text.
    """
    bounds = f"{'above' if above else 'at least'} {least:g}"
    if most < float("inf"):
        bounds += f" and at most {most:g}"
    highest = min(most, LARGEST_WHOLE) if kind is int else most

    def parse(text: str) -> Any:
        value = float(text) if is_number(text) else math.nan
        fits = (
            least <= value <= highest
            and not (above and value == least)
            and (kind is float or value == int(value))
        )
        if not fits:
            raise argparse.ArgumentTypeError(
                f"must be a {'whole ' if kind is int else ''}number {bounds}, not '{text}'"
            )
        return kind(value)

    return parse


def literal(text: str) -> Any:
    """Parse the value of an option: true/false/none in any case, a Python literal, else text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def pairs(words: Sequence[str]) -> OptionValues:
    """Parse options from `k v` (weaver-core) or `k:v,k:v` (the original pipeline).

    Hyphens in a name become underscores. Raises argparse.ArgumentTypeError for any other form.
    """
    if len(words) == 2:
        return {words[0].replace("-", "_"): literal(words[1])}
    values: OptionValues = {}
    # Only a comma before `name:` is a separator, so that values may be lists.
    for part in re.split(r",(?=\s*[A-Za-z_][\w-]*:)", words[0] if len(words) == 1 else ""):
        name, colon, value = part.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise argparse.ArgumentTypeError(
                f"'{' '.join(words)}' is not an option; write 'name value' or name:value,name:value"
            )
        values[name.strip().replace("-", "_")] = literal(value.strip())
    return values


class _Pairs(argparse.Action):
    """Add the options of a flag to those of earlier uses of the flag, which may be repeated."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            setattr(namespace, self.dest, {**getattr(namespace, self.dest), **pairs(values)})
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


# ------------------------------------------------------------------------------------ the options


def flag(default: Any, help: str, *names: str, **argparse_options: Any) -> Any:
    """Make a field of TrainOptions that is a flag.

    names: short names. argparse_options: further arguments of argparse's add_argument.
    """
    metadata = {"help": help, "names": names, "argparse": argparse_options}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `python -m weaver.train`."""

    run_mode: str = flag(
        "train,val,test",
        "train (which always validates), val and test, separated by commas; test alone is the same"
        " as --predict; train,test predicts after the training if --data-test is set",
    )
    data_train: tuple[str, ...] = flag(
        (),
        "training data: ROOT patterns, a prepared folder or its .json reference",
        "-i",
        nargs="*",
    )
    data_val: tuple[str, ...] = flag(
        (),
        "validation data, as --data-train (default: the last part of each training file, see"
        " --train-val-split)",
        "-l",
        nargs="*",
    )
    train_val_split: float = flag(
        0.8,
        "without --data-val: fraction of each file's jets, from its start, to train on",
        type=number(float, 0, 0.999999, above=True),
    )
    data_test: tuple[str, ...] = flag(
        (),
        "test data, for predictions only, never for training (NAME:PATTERN writes OUTPUT_NAME)",
        "-t",
        nargs="*",
    )
    data_config: str = flag("", "data config in Weaver's YAML", "-c")
    data_config_val: str = flag(
        "",
        "data config of the validation data, with the same inputs and labels (default:"
        " --data-config)",
    )
    data_config_test: str = flag("", "data config of the test data (default: --data-config)")
    extra_selection_train: str = flag(
        "", "condition on training jets, in addition to the data config's `selection`"
    )
    extra_selection_val: str = flag("", "the same for validation jets")
    extra_selection_test: str = flag(
        "", "condition on test jets, in addition to the data config's `test_time_selection`"
    )
    cross_validation: str = flag(
        "",
        "train K times, in folders that end in _fold0, ..., each time without the jets with"
        " VARIABLE % K == fold, which become the fold's test jets",
    )
    demo: bool = flag(
        False,
        "quick trial: the first 20 files of each data set, and a tenth of their jets",
        action=argparse.BooleanOptionalAction,
    )
    network_config: str = flag("", "network file with get_model and get_loss", "-n")
    network_option: Mapping[str, Any] = flag(
        {},
        "option of the network: 'name value' or name:value,name:value; may be repeated",
        "-o",
        nargs="+",
        action=_Pairs,
    )
    model_prefix: str = flag(
        "",
        "folder or s3:// address of this trial; {auto} in it is replaced by time, network and"
        " settings; for predictions and exports also a file of weights (.pt)",
        "-m",
    )
    load_model_weights: str = flag(
        "",
        "weights to start from: a best.pt, or a file of weaver-core; FILE:PREFIX takes those whose"
        " names begin with PREFIX",
    )
    exclude_model_weights: str = flag(
        "",
        "regular expressions, separated by commas: weights not to take from --load-model-weights",
    )
    freeze_model_weights: str = flag(
        "", "regular expressions, separated by commas: weights that are not trained"
    )
    load_epoch: int | None = flag(
        None,
        "resume after this epoch (from 0), if its weights are stored (default: where the trial"
        " was interrupted)",
        type=number(int, 0),
    )
    auto_clean: bool = flag(
        False,
        "keep only the weights of the last and the best epoch",
        action=argparse.BooleanOptionalAction,
    )
    metrics_log: str = flag(
        "", "file for Katib's metrics collector (plain 'name=value' lines, validation only)"
    )
    regression_mode: bool = flag(
        False, "regression; without it classification", action=argparse.BooleanOptionalAction
    )
    num_epochs: int = flag(
        20,
        "epochs: passes over the training data, or rounds of --steps-per-epoch",
        type=number(int, 1),
    )
    steps_per_epoch: int | None = flag(
        None,
        "steps per epoch; a pass over the data may then extend over several epochs",
        type=number(int, 1),
    )
    samples_per_epoch: int | None = flag(None, "the same in jets", type=number(int, 1))
    steps_per_epoch_val: int | None = flag(
        None,
        "steps of validation, on jets spread over all the data (default: all jets)",
        type=number(int, -1),
    )
    samples_per_epoch_val: int | None = flag(None, "the same in jets", type=number(int, 1))
    batch_size: int = flag(128, "jets per step, over all ranks together", type=number(int, 1))
    batch_size_val: int = flag(
        0, "jets per step of validation (default: --batch-size)", type=number(int, 1)
    )
    batch_size_test: int = flag(
        0, "jets per step of prediction (default: --batch-size)", type=number(int, 1)
    )
    data_fraction: float = flag(
        1.0, "fraction of the training jets to use", type=number(float, 0, 1, above=True)
    )
    data_fraction_val: float | None = flag(
        None,
        "fraction of the validation jets to use (default: --data-fraction)",
        type=number(float, 0, 1, above=True),
    )
    in_memory: bool | None = flag(
        None,
        "keep all training jets, padded, in memory (default: on a GPU where they fit)",
        action=argparse.BooleanOptionalAction,
    )
    in_memory_val: bool | None = flag(
        None,
        "the same for validation (default: --in-memory)",
        action=argparse.BooleanOptionalAction,
    )
    cache: bool = flag(
        True,
        "keep decoded jets, and copies of distant files, in this machine's cache (JEC_CACHE) for"
        " the next training; without it they are deleted after this one",
        action=argparse.BooleanOptionalAction,
    )
    copy_inputs: bool = flag(
        False,
        "copy the decoded jets to this machine first, if they are on a slow shared disk",
        action=argparse.BooleanOptionalAction,
    )
    start_lr: float = flag(
        5e-3,
        "learning rate at the start, or at the maximum of a schedule that rises",
        type=number(float, 0, above=True),
    )
    optimizer: str = flag(
        "ranger",
        ", ".join(OPTIMIZERS),
        type=choice("optimizer", OPTIMIZERS),
    )
    optimizer_option: Mapping[str, Any] = flag(
        {}, "option of the optimizer, as --network-option", "-p", nargs="+", action=_Pairs
    )
    weight_decay: float | None = flag(
        None, "weight decay (default: the optimizer's own)", type=number(float, 0)
    )
    clip_grad_norm: float | None = flag(
        None,
        "largest norm of the gradient (default: not clipped)",
        type=number(float, 0, above=True),
    )
    lr_scheduler: str = flag(
        "flat+decay", ", ".join(CURVES), type=choice("learning-rate scheduler", CURVES)
    )
    warmup_steps: float = flag(
        0.25,
        "steps (below 1: fraction of all steps) in which the rate rises, for schedules that rise",
        type=number(float, 0),
    )
    lr_finder: str = flag(
        "",
        "raise the learning rate from START to END in STEPS steps and write lr_finder.json, instead"
        " of training",
    )
    patience: int = flag(
        0,
        "stop after this many epochs without a better validation loss (default: never)",
        type=number(int, 0),
    )
    ema_decay: float = flag(
        0.0,
        "use the running mean of the weights with this decay, such as 0.999",
        type=number(float, 0, 0.999999),
    )
    precision: str | None = flag(
        None,
        "auto (bf16 where the device computes it natively, else float32), float32, bf16 or fp16"
        " (default: float32, or --amp-dtype with --use-amp)",
        type=choice("precision", PRECISIONS),
    )
    use_amp: bool = flag(
        False, "autocast in --amp-dtype, as in weaver-core", action=argparse.BooleanOptionalAction
    )
    amp_dtype: str = flag("bf16", "bf16 or fp16", type=choice("type", MIXED_PRECISIONS))
    compile: bool = flag(False, "torch.compile the network", action=argparse.BooleanOptionalAction)
    compiler_option: Mapping[str, Any] = flag(
        {}, "option of torch.compile, as --network-option", nargs="+", action=_Pairs
    )
    deterministic: bool = flag(
        False,
        "use only operations whose results are reproducible to the bit (slower on a GPU)",
        action=argparse.BooleanOptionalAction,
    )
    gpus: str = flag(
        "auto",
        "auto: a GPU if there is one; 0: that GPU; 0,1: those, one process each; '': the CPU",
    )
    predict_gpus: str | None = flag(None, "the same for predictions (default: --gpus)")
    backend: str = flag(
        "auto",
        "auto, gloo or nccl: library for the communication between ranks",
        type=choice("backend", ("auto", "gloo", "nccl")),
    )
    local_rank: int | None = flag(
        None,
        "number of this process on its machine, from its launcher",
        "--local_rank",
        type=number(int, 0),
    )
    seed: int = flag(1, "seed of weights, shuffling and dropout", type=number(int, 0))
    log_file: str = flag("", "file to write all messages to; {auto} as in --model-prefix")
    tensorboard: str = flag(
        "",
        "write TensorBoard's files to runs/<time>_<machine><COMMENT>, as weaver-core does",
    )
    tensorboard_log_dir: str = flag(
        "auto", "TensorBoard's files: auto (in the trial's folder), none, a folder or an address"
    )
    predict: bool = flag(
        False,
        "write predictions of the trial's best weights for --data-test",
        action=argparse.BooleanOptionalAction,
    )
    predict_output: str = flag("", "file for the predictions: .root, .parquet or .npz")
    export_onnx: str = flag(
        "",
        "write the network with the trial's best weights to this .onnx file, with preprocess.json"
        " beside it; do not train",
    )
    onnx_opset: int = flag(17, "opset of --export-onnx", type=number(int, *OPSETS))
    triton_config: str = flag("", "with --export-onnx: file for Triton's config.pbtxt")
    s3_model: str = flag(
        "",
        "with --export-onnx: write config.pbtxt and 1/model.onnx to this address, whose last part"
        " is the model's name",
    )
    io_test: bool = flag(
        False,
        "read one epoch of training data (with --predict: test data) without a network, print the"
        f" rate, and write the data config's monitor variables to {MONITOR_FILE}; do not train",
        action=argparse.BooleanOptionalAction,
    )
    profile: bool = flag(
        False,
        "print the times of the operations in the network's forward pass, by torch.profiler; do not"
        " train",
        action=argparse.BooleanOptionalAction,
    )
    print: bool = flag(
        False,
        "print the network, its number of parameters and its operations per jet; do not train",
        action=argparse.BooleanOptionalAction,
    )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the flags, without the leading dashes."""
        return tuple(field.name.replace("_", "-") for field in dataclasses.fields(cls))

    def settings(self) -> OptionValues:
        """Return the options that change the result of a training.

        A checkpoint may be resumed only with equal ones.
        """
        values: OptionValues = {}
        for name in SETTINGS:
            value = getattr(self, name)
            values[name] = dict(value) if isinstance(value, Mapping) else value
        # the effective value, so that the default equals the same value on the command line
        values["data_fraction_val"] = self.share_val
        return values

    @property
    def requested_precision(self) -> str:
        """One of PRECISIONS: --precision, else the meaning of --use-amp and --amp-dtype."""
        return self.precision or (self.amp_dtype if self.use_amp else "float32")

    def precision_on(self, device: str) -> str:
        """Return the precision on a device, "cpu" or "cuda".

        --use-amp has no effect on a CPU, as in weaver-core.
        """
        if self.use_amp and not self.precision and device == "cpu":
            return "float32"
        return self.requested_precision

    @property
    def weaver_options(self) -> dict[str, bool]:
        """Options that weaver-core's flags add to those of the network; only those that are set."""
        flags = {
            "for_inference": bool(self.export_onnx),
            "use_amp": self.use_amp,
            "compile_model": self.compile,
        }
        return {name: True for name, is_set in flags.items() if is_set}

    @property
    def trains(self) -> bool:
        """False if the command only uses a finished trial: to predict, export, or print."""
        only_looks = self.predict or self.export_onnx or self.print or self.profile
        return not only_looks and self.runs("train")

    def runs(self, step: str) -> bool:
        """Return whether --run-mode names a step, one of RUN_STEPS."""
        return step in self.run_mode.split(",")

    @property
    def size_test(self) -> int:
        """Jets per step of prediction."""
        return self.batch_size_test or self.batch_size

    @property
    def most_files(self) -> int | None:
        """Largest number of files of each data set; None for all."""
        return DEMO_FILES if self.demo else None

    @property
    def parts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Ranges of each file's jets, as fractions (start, end), for training and validation."""
        if self.data_val:
            return (0.0, 1.0), (0.0, 1.0)
        return (0.0, self.train_val_split), (self.train_val_split, 1.0)

    def steps(self, in_data: int) -> int:
        """Return the number of steps per epoch.

        `in_data` is the number of steps in a pass over the data.
        """
        return self.steps_per_epoch or (self.samples_per_epoch or 0) // self.batch_size or in_data

    @property
    def share_val(self) -> float:
        """--data-fraction-val; by default --data-fraction, as in weaver-core."""
        return self.data_fraction if self.data_fraction_val is None else self.data_fraction_val

    def fraction_val(self, num_jets: int) -> float:
        """Return the fraction of the `num_jets` validation jets to use."""
        size = self.batch_size_val or self.batch_size
        steps = max(self.steps_per_epoch_val or 0, 0)  # weaver-core's -1 means all
        jets = size * steps or self.samples_per_epoch_val or num_jets
        return min(self.share_val, jets / max(num_jets, 1))


SETTINGS = (
    "regression_mode",
    "num_epochs",
    "steps_per_epoch",
    "samples_per_epoch",
    "batch_size",
    "data_fraction",
    "start_lr",
    "optimizer",
    "optimizer_option",
    "weight_decay",
    "clip_grad_norm",
    "lr_scheduler",
    "warmup_steps",
    "patience",
    "ema_decay",
    "precision",
    "use_amp",
    "amp_dtype",
    "compile",
    "compiler_option",
    "deterministic",
    "seed",
    "load_model_weights",
    "exclude_model_weights",
    "freeze_model_weights",
    "data_fraction_val",
    "steps_per_epoch_val",
    "samples_per_epoch_val",
)


# ---------------------------------------------------- flags of weaver-core that do not exist here


@dataclasses.dataclass(frozen=True)
class WeaverOnlyFlag:
    """A flag of weaver-core that is not an option here."""

    words: str
    """Why it needs no effect, or, if it is rejected, what to do instead."""
    is_rejected: bool = True
    takes_value: bool = True


def _without_effect(words: str, *, takes_value: bool = True) -> WeaverOnlyFlag:
    return WeaverOnlyFlag(words, is_rejected=False, takes_value=takes_value)


_SHUFFLE_REASON = (
    "jets are decoded once, and each epoch is shuffled over all files (data above 4 GiB in blocks"
    " of 4 MiB, 256 at a time)"
)
_MEMORY_REASON = "decoded jets are mapped into memory, which all processes of a machine share"
_THREAD_REASON = "a thread prepares batches in advance, without worker processes"

WEAVER_ONLY_FLAGS: dict[str, WeaverOnlyFlag] = {
    # Accepted without effect.
    "fetch-by-files": _without_effect(_SHUFFLE_REASON, takes_value=False),
    "fetch-step": _without_effect(_SHUFFLE_REASON),
    "fetch-step-val": _without_effect(_SHUFFLE_REASON),
    "data-split-num": _without_effect(_MEMORY_REASON),
    "data-split-val": _without_effect(_MEMORY_REASON),
    "num-workers": _without_effect(_THREAD_REASON),
    "prefetch-factor": _without_effect(_THREAD_REASON),
    "no-remake-weights": _without_effect(
        "weights are computed again only for other data or another config", takes_value=False
    ),
    # Rejected.
    "file-fraction": WeaverOnlyFlag("use --data-fraction, which takes jets of all files"),
    "tensorboard-custom-fn": WeaverOnlyFlag(
        "losses, rates and response histograms are written by default; add others in"
        " weaver/fit/tensorboard.py"
    ),
    "custom-functions": WeaverOnlyFlag(
        "no code runs while data are read; write an expression in `new_variables`, or add the"
        " column to the files"
    ),
    "compile-optimizer": WeaverOnlyFlag(
        "the optimizers' steps are fused where PyTorch supports it; use --compile for the network",
        takes_value=False,
    ),
}
"""Flags of weaver-core 0.5.3 that are not fields of TrainOptions."""


class _WeaverOnlyAction(argparse.Action):
    """Collect accepted flags in `ignored`, and errors for rejected ones in `errors`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        name = self.option_strings[0].removeprefix("--")
        if option_string == f"--no-{name}":
            return  # the flag is switched off, which is the only behaviour here
        if WEAVER_ONLY_FLAGS[name].is_rejected:
            words = WEAVER_ONLY_FLAGS[name].words
            text = f"{option_string} of weaver-core is not an option here: {words}"
            namespace.errors = (*namespace.errors, text)
            return
        namespace.ignored = (*namespace.ignored, name)


GROUPS = {
    "run_mode": "what to do, and the data",
    "network_config": "the network and the trial's folder",
    "num_epochs": "length of the training, and jets",
    "start_lr": "optimisation and precision",
    "gpus": "devices and processes",
    "seed": "seed, messages and logs",
    "predict": "results",
    "io_test": "tests, in place of a training",
}
"""First option of each group in --help -> the group's title."""
METAVARS = {
    "run_mode": "STEPS",
    "data_train": "PATTERN",
    "data_val": "PATTERN",
    "data_test": "PATTERN",
    "data_config": "FILE",
    "data_config_val": "FILE",
    "data_config_test": "FILE",
    "extra_selection_train": "EXPRESSION",
    "extra_selection_val": "EXPRESSION",
    "extra_selection_test": "EXPRESSION",
    "cross_validation": "VARIABLE%K",
    "network_config": "FILE",
    "network_option": "OPTION",
    "optimizer_option": "OPTION",
    "compiler_option": "OPTION",
    "model_prefix": "DIR",
    "load_model_weights": "FILE",
    "exclude_model_weights": "REGEX",
    "freeze_model_weights": "REGEX",
    "metrics_log": "FILE",
    "optimizer": "NAME",
    "lr_scheduler": "NAME",
    "precision": "NAME",
    "amp_dtype": "NAME",
    "backend": "NAME",
    "lr_finder": "START,END,STEPS",
    "gpus": "NUMBERS",
    "predict_gpus": "NUMBER",
    "log_file": "FILE",
    "tensorboard": "COMMENT",
    "tensorboard_log_dir": "DIR",
    "predict_output": "FILE",
    "export_onnx": "FILE",
    "triton_config": "FILE",
    "s3_model": "URI",
}
"""Option of text -> what --help shows for its value; numbers are N (whole) or X."""


def _metavar(field: dataclasses.Field[Any]) -> str:
    """Return what --help shows for the value of an option."""
    if field.name in METAVARS:
        return METAVARS[field.name]
    return "N" if "int" in str(field.type) else "X"


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports all rejected and unknown flags at once, with nearest names."""

    def parse_args(self, args=None, namespace=None):
        values, rest = self.parse_known_args(args, namespace)
        problems = list(values.errors)
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        are_flags = [word for word in rest if word.startswith("-")]
        for word in are_flags:
            problems.append(unknown("option", word.partition("=")[0], flags))
        if rest and not are_flags:
            problems.append(f"unexpected argument '{rest[0]}'")
        if problems:
            self.error("\n  ".join(problems))
        del values.errors
        return values

    def _get_option_tuples(self, option_string):
        """Return the flags that an abbreviation may mean.

        Flags of weaver-core come before others.
        """
        matches = super()._get_option_tuples(option_string)
        weaver_matches = [match for match in matches if match[0].dest not in OWN_FLAGS]
        return weaver_matches if len(weaver_matches) == 1 else matches

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"error: {message}\nsee {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Make the argparse parser of TrainOptions and WEAVER_ONLY_FLAGS."""
    command_line = _Parser(
        prog="python -m weaver.train",
        usage="python -m weaver.train -i PATTERN ... -c FILE -n FILE -m DIR [flags]",
        description="Train a network on jets.",
    )
    command_line.set_defaults(ignored=(), errors=())
    group: argparse._ArgumentGroup | argparse.ArgumentParser = command_line
    for field in dataclasses.fields(TrainOptions):
        if field.name in GROUPS:
            group = command_line.add_argument_group(GROUPS[field.name])
        default = {} if field.default is dataclasses.MISSING else field.default
        text = field.metadata["help"]
        # the help texts of these sizes say what 0 means
        if default not in ("", (), {}, None, 0) and not field.name.startswith("batch_size_"):
            text += f" (default: {default})"
        more = dict(field.metadata["argparse"])
        if more.get("action") is not argparse.BooleanOptionalAction:
            more.setdefault("metavar", _metavar(field))
        group.add_argument(
            *field.metadata["names"],
            "--" + field.name.replace("_", "-"),
            default=default,
            help=text.replace("%", "%%"),  # argparse formats help texts with %
            dest=field.name,
            **more,
        )

    others = command_line.add_argument_group(
        "flags of weaver-core without effect here, and rejected ones"
    )
    for name, entry in WEAVER_ONLY_FLAGS.items():
        names = [f"--{name}"]
        if not entry.takes_value and not name.startswith("no-"):
            names.append(f"--no-{name}")
        others.add_argument(
            *names,
            dest="ignored",
            action=_WeaverOnlyAction,
            help=("rejected: " if entry.is_rejected else "no effect: ") + entry.words,
            nargs=1 if entry.takes_value else 0,
            metavar="X",
        )
    return command_line


def parse(argv: Sequence[str] | None = None) -> TrainOptions:
    """Parse a command line, by default that of the process.

    Ends the process with exit code 2 and a message if options are wrong or contradict each other.
    """
    command_line = parser()
    values = vars(command_line.parse_args(argv))
    ignored = values.pop("ignored")
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value  # cannot be changed
    options = TrainOptions(**values)
    has_auto = "{auto}" in options.model_prefix + options.log_file
    if has_auto and AUTO_NAME not in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        command_line.error(
            "{auto} would be a different name in each process; write a name, or let --gpus 0,1"
            " start the processes"
        )
    options = with_names(options)
    problem = (
        _wrong_run_mode(options)
        or _unusable_address(options)
        or _missing_flags(options)
        or _contradiction(options)
        or _wrong_form(options)
        or _unwritable_output(options)
    )
    if problem:
        command_line.error(problem)
    if os.environ.get("RANK", "0") == "0":
        for name in ignored:
            print(
                f"note: --{name} has no effect: {WEAVER_ONLY_FLAGS[name].words}",
                file=sys.stderr,
                flush=True,
            )
        for line in notes(options):
            print(f"note: {line}", file=sys.stderr, flush=True)
    only_tests = options.runs("test") and not options.runs("train")
    return dataclasses.replace(
        options,
        predict=options.predict or only_tests,
        data_fraction=DEMO_FRACTION if options.demo else options.data_fraction,
    )


def folds(options: TrainOptions) -> list[TrainOptions]:
    """Return the options of each training of --cross-validation, as in weaver-core.

    The condition on the fold is added to the extra selections.
    """
    variable, _, count = options.cross_validation.rpartition("%")
    folder, name = os.path.split(options.model_prefix)
    output, extension = os.path.splitext(options.predict_output)
    trainings = []
    for fold in range(int(count)):
        outside = f"{variable}%{count}!={fold}"
        inside = f"{variable}%{count}=={fold}"
        trainings.append(
            dataclasses.replace(
                options,
                cross_validation="",
                model_prefix=os.path.join(f"{folder}_fold{fold}", name),
                predict_output=f"{output}_fold{fold}{extension}" if output else "",
                extra_selection_train=_both(options.extra_selection_train, outside),
                extra_selection_val=_both(options.extra_selection_val, outside),
                extra_selection_test=_both(options.extra_selection_test, inside),
                load_model_weights=options.load_model_weights.replace("{fold}", f"fold{fold}"),
            )
        )
    return trainings


def _both(selection: str, other: str) -> str:
    """Combine two conditions with `and`; `selection` may be empty."""
    return f"({selection}) & ({other})" if selection else other


def with_names(options: TrainOptions) -> TrainOptions:
    """Replace {auto} and --tensorboard by names, as weaver-core does."""
    changes: dict[str, Any] = {}
    if "{auto}" in options.model_prefix + options.log_file:
        # all ranks of a training need the same name
        name = auto_name(options)
        for field in ("model_prefix", "log_file"):
            changes[field] = getattr(options, field).replace("{auto}", name)
    if options.tensorboard and options.tensorboard_log_dir == "auto":
        moment = time.strftime("%b%d_%H-%M-%S")
        folder = f"runs/{moment}_{socket.gethostname()}{options.tensorboard}"
        changes["tensorboard_log_dir"] = folder
    return dataclasses.replace(options, **changes)


def auto_name(options: TrainOptions) -> str:
    """Return the value of {auto}: that of JEC_AUTO_NAME, else a new one in weaver-core's form."""
    if AUTO_NAME in os.environ:
        return os.environ[AUTO_NAME]
    name = time.strftime("%Y%m%d-%H%M%S")
    name += "_" + os.path.basename(options.network_config).replace(".py", "")
    if options.network_option:
        text = str(sorted(options.network_option.items()))
        digest = hashlib.md5(text.encode(), usedforsecurity=False)
        name += "_" + digest.hexdigest()
    return name + f"_{options.optimizer}_lr{options.start_lr}_batch{options.batch_size}"


def notes(options: TrainOptions) -> list[str]:
    """Return notes for the user: flags without effect, and differences from weaver-core."""
    lines: list[str] = []
    for name, (needs, reason) in NEEDS.items():
        default = getattr(TrainOptions, name, {})
        if getattr(options, name) != default and not needs(options):
            lines.append(f"--{name.replace('_', '-')} has no effect: {reason}")
    if options.demo:
        lines.append(
            f"--demo: only the first {DEMO_FILES} files, and --data-fraction {DEMO_FRACTION:g}"
        )
    if not options.trains:
        return lines
    if "{auto}" not in options.model_prefix and options.tensorboard_log_dir.startswith("runs/"):
        lines.append(f"TensorBoard's files go to {options.tensorboard_log_dir}")
    if not options.data_val:
        lines.append(
            f"validation takes the last {1 - options.train_val_split:.4g} of each training file"
            " (--train-val-split); the best epoch is then chosen with jets of the same files"
        )
    elif options.train_val_split != TrainOptions.train_val_split:
        lines.append("--train-val-split has no effect: the validation data are those of --data-val")
    if not options.runs("val"):
        lines.append("--run-mode train validates too, to find the best epoch")
    if (options.steps_per_epoch or options.samples_per_epoch) and not (
        options.steps_per_epoch_val or options.samples_per_epoch_val
    ):
        lines.append(
            "each validation takes all its jets; in weaver-core their number would follow from"
            " --steps-per-epoch; --steps-per-epoch-val limits it"
        )
    if not options.regression_mode:
        lines.append("the best epoch is the one with the highest accuracy, AvgAcc")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        lines.append(
            f"--batch-size {options.batch_size} is the total of all {size} processes, so that"
            " their number does not change the result; in weaver-core it is that of each process"
        )
    return lines


_ONLY_TEST = "there are no test data (--data-test)"
NEEDS: dict[str, tuple[Callable[[TrainOptions], object], str]] = {
    "warmup_steps": (
        lambda options: options.lr_scheduler in WARMUP_CURVES,
        f"the rate rises with --lr-scheduler {', '.join(WARMUP_CURVES)} only",
    ),
    "amp_dtype": (lambda options: options.use_amp, "it needs --use-amp"),
    "compiler_option": (lambda options: options.compile, "it needs --compile"),
    "onnx_opset": (lambda options: options.export_onnx, "it needs --export-onnx"),
    "backend": (
        lambda _: int(os.environ.get("WORLD_SIZE", "1")) > 1,
        "there is only one process",
    ),
    "data_config_test": (lambda options: options.data_test, _ONLY_TEST),
    "extra_selection_test": (lambda options: options.data_test, _ONLY_TEST),
    "batch_size_test": (lambda options: options.data_test, _ONLY_TEST),
    "predict_gpus": (lambda options: options.data_test, _ONLY_TEST),
    "predict_output": (lambda options: options.data_test, _ONLY_TEST),
}
"""Field -> (function that says whether it has an effect, reason in the note if it has none)."""


def _wrong_run_mode(options: TrainOptions) -> str | None:
    """Return the error for a wrong --run-mode; None if it is right."""
    for step in options.run_mode.split(","):
        if step not in RUN_STEPS:
            return f"--run-mode: {unknown('step', step, RUN_STEPS)}"
    if options.runs("val") and not options.runs("train"):
        return (
            "--run-mode val without train does not exist: history.json in the trial's folder has"
            " the validation of every epoch; write train,val or test"
        )
    return None


def _unusable_address(options: TrainOptions) -> str | None:
    """Return the error for an address with an unknown scheme or a secret, before the training."""
    for name in (
        *("data_config", "network_config", "model_prefix", "load_model_weights", "metrics_log"),
        *("log_file", "tensorboard_log_dir", "predict_output", "export_onnx", "triton_config"),
    ):
        text = getattr(options, name)
        try:
            if text:
                check_text(text)
            scheme_of(text)
        except InputError as error:
            return f"--{name.replace('_', '-')}: {error}"
    for name in ("data_train", "data_val", "data_test"):
        try:
            for text in getattr(options, name):
                refuse_secrets(text)
        except InputError as error:
            return f"--{name.replace('_', '-')}: {error}"
    return None


def _unwritable_output(options: TrainOptions) -> str | None:
    """Return the error for a local output that cannot be written, before the training starts."""
    files = {"metrics_log": options.metrics_log, "log_file": options.log_file}
    files |= {"export_onnx": options.export_onnx, "triton_config": options.triton_config}
    if "/" in options.predict_output:  # else it is written beside the model
        files["predict_output"] = options.predict_output
    folders = {}
    if options.tensorboard_log_dir not in ("auto", "none"):
        folders["tensorboard_log_dir"] = options.tensorboard_log_dir
    if options.trains:
        folders["model_prefix"] = options.model_prefix
    outputs = [(name, path, check_writable_file) for name, path in files.items()]
    outputs += [(name, path, check_writable_folder) for name, path in folders.items()]
    for name, path, check in outputs:
        if not path:
            continue
        try:
            check_text(path)
            if is_local(path):
                check(absolute(path))
        except JecError as error:
            return f"--{name.replace('_', '-')}: {error}"
    return None


def _missing_flags(options: TrainOptions) -> str | None:
    """Return the error for flags that the other flags require; None if there are all."""
    required = ["data_config", "network_config"]
    predicts = options.predict or not options.runs("train")
    if predicts and options.data_config_test:
        required.remove("data_config")
    if options.io_test:
        required.remove("network_config")
        required += ["data_test" if predicts else "data_train"]
    elif options.profile or options.print:
        pass
    elif predicts:
        required += ["model_prefix", "data_test", "predict_output"]
    elif options.export_onnx:
        required += ["model_prefix"]
    elif options.trains:
        required += ["model_prefix", "data_train"]
    missing = ["--" + name.replace("_", "-") for name in required if not getattr(options, name)]
    return f"missing {', '.join(missing)}" if missing else None


def _contradiction(options: TrainOptions) -> str | None:
    """Return the error for flags that contradict each other; None if there are none."""
    if options.cross_validation and (options.export_onnx or options.metrics_log):
        return (
            "--cross-validation trains several networks, but --export-onnx and --metrics-log are"
            " for one; leave them out, then export a fold with its own --model-prefix"
        )
    if options.data_test and not options.predict_output and not options.io_test:
        return (
            "--data-test needs --predict-output, because the test set is used only for"
            " predictions, not for training"
        )
    if (
        options.precision
        and options.use_amp
        and options.precision not in ("auto", options.amp_dtype)
    ):
        return (
            f"--use-amp means {options.amp_dtype}, --precision means {options.precision}; leave"
            " one out"
        )
    if options.steps_per_epoch and options.samples_per_epoch:
        return "give --steps-per-epoch or --samples-per-epoch, not both"
    if (options.samples_per_epoch or options.batch_size) < options.batch_size:
        return (
            f"--samples-per-epoch {options.samples_per_epoch} is less than one batch of"
            f" {options.batch_size}"
        )
    if options.steps_per_epoch_val and options.samples_per_epoch_val:
        return "give --steps-per-epoch-val or --samples-per-epoch-val, not both"
    for name, other in (
        ("exclude_model_weights", "load_model_weights"),
        ("triton_config", "export_onnx"),
        ("s3_model", "export_onnx"),
    ):
        if getattr(options, name) and not getattr(options, other):
            return f"--{name.replace('_', '-')} needs --{other.replace('_', '-')}"
    return None


def _wrong_form(options: TrainOptions) -> str | None:
    """Return the error for a flag whose value has the wrong form; None if there is none."""
    folds = options.cross_validation
    if folds and not re.fullmatch(r".+%\s*[1-9][0-9]{0,3}", folds):
        return f"--cross-validation must be VARIABLE%K as in event%5, not '{folds}'"
    if options.predict_output and not options.predict_output.endswith(
        (".npz", ".root", ".parquet")
    ):
        return (
            f"--predict-output must end in .root, .parquet or .npz, not '{options.predict_output}'"
        )
    if options.export_onnx and not options.export_onnx.endswith(".onnx"):
        return f"--export-onnx must end in .onnx, not '{options.export_onnx}'"
    for flag_name, gpus in (("gpus", options.gpus), ("predict-gpus", options.predict_gpus)):
        if not re.fullmatch(r"auto|([0-9]+(,[0-9]+)*)?", gpus or ""):
            return (
                f"--{flag_name} must be auto, numbers such as 0 or 0,1, or '' for the CPU, not"
                f" '{gpus}'"
            )
    if options.lr_finder:
        try:
            lr_range(options.lr_finder)
        except InputError as error:
            return str(error)
    return None


def lr_range(words: str) -> tuple[float, float, int]:
    """Return the first and the last rate, and the number of steps, of --lr-finder START,END,STEPS.

    Raises InputError for numbers that make no sense.
    """
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 3 or not all(map(is_number, parts)) or not is_whole(parts[2]):
        raise InputError(f"--lr-finder must be START,END,STEPS as in 1e-5,1,100, not '{words}'")
    first, last, steps = float(parts[0]), float(parts[1]), int(parts[2])
    if not 0 < first < last or not 2 <= steps <= LARGEST_WHOLE:
        raise InputError(
            f"--lr-finder {words}: START must be above 0 and below END, STEPS at least 2"
        )
    return first, last, steps
