"""The command line of `python -m weaver.train`: Weaver's flag names, parsed into one frozen value. Imports no torch.

Flags, help texts and defaults all come from the fields of TrainOptions.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from common.errors import InputError, unknown

OPTIMIZERS = ("adam", "adamW", "ranger", "rmsprop", "adagrad")
SCHEDULERS = ("none", "steps", "flat+decay", "flat+linear", "flat+cos", "warmup+cos", "one-cycle")
TRAIN_FLAGS = frozenset(
    {"start-lr", "optimizer", "lr-scheduler", "warmup-steps", "weight-decay", "clip-grad-norm", "num-epochs", "batch-size", "data-fraction"}
)
"""Flags that a search space may set: those that take one value and change the result. Anything else is a network option."""


# ------------------------------------------------------------------------------------------------------------- values of flags


def choice(what: str, choices: Sequence[str]) -> Callable[[str], str]:
    """An argparse type for one of several words, in any case; the error lists the nearest."""

    def parse(text: str) -> str:
        by_lower = {name.lower(): name for name in choices}
        if text.lower() not in by_lower:
            raise argparse.ArgumentTypeError(unknown(what, text, choices))
        return by_lower[text.lower()]

    return parse


def number(kind: type, least: float, most: float = float("inf"), *, above: bool = False) -> Callable[[str], Any]:
    """An argparse type for an int or a float with bounds; `above` leaves the lower one out. Whole floats pass as int ("500.0")."""

    def parse(text: str) -> Any:
        words = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most < float("inf") else "")
        try:
            value = float(text)
            fits = least <= value <= most and not (above and value == least) and (kind is float or value == int(value))
        except (ValueError, OverflowError):
            fits = False
        if not fits:
            raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number {words}, not '{text}'")
        return kind(value)

    return parse


def literal(text: str) -> Any:
    """What an option's text means: a Python literal where it is one, true/false/none in any case, else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def pairs(words: Sequence[str]) -> dict[str, Any]:
    """Options from `k v` (weaver-core) or `k:v,k:v` (the original pipeline). Hyphens in a name become underscores.

    Raises argparse.ArgumentTypeError for anything else.
    """
    if len(words) == 2:
        return {words[0].replace("-", "_"): literal(words[1])}
    found = {}
    # Only a comma in front of `name:` separates, so that lists may be values.
    for part in re.split(r",(?=\s*[A-Za-z_][\w-]*:)", words[0] if len(words) == 1 else ""):
        name, colon, value = part.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise argparse.ArgumentTypeError(f"'{' '.join(words)}' is no option; write 'name value' or name:value,name:value")
        found[name.strip().replace("-", "_")] = literal(value.strip())
    return found


class _Pairs(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            setattr(namespace, self.dest, {**getattr(namespace, self.dest), **pairs(values)})
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


# ----------------------------------------------------------------------------------------------------------------- the options


def flag(default: Any, help: str, *names: str, **argparse_options: Any) -> Any:
    """A field of TrainOptions that is a flag: default, help text, short names, and what argparse is to know about it."""
    metadata = {"help": help, "names": names, "argparse": argparse_options}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything that `python -m weaver.train` was told."""

    data_train: tuple[str, ...] = flag((), "training data: ROOT patterns, a prepared folder or its .json reference", "-i", nargs="*")
    data_val: tuple[str, ...] = flag((), "validation data, in the same forms", "-l", nargs="*")
    data_test: tuple[str, ...] = flag((), "test data, for --predict only: it never takes part in training", "-t", nargs="*")
    data_config: str = flag("", "data config in Weaver's YAML", "-c")
    network_config: str = flag("", "network file with get_model and get_loss", "-n")
    network_option: Mapping[str, Any] = flag(
        {}, "option of the network: 'name value' or name:value,name:value; may be repeated", "-o", nargs="+", action=_Pairs
    )
    model_prefix: str = flag("", "folder or s3:// address of this trial: checkpoints, metrics, TensorBoard", "-m")
    metrics_log: str = flag("", "file for Katib's metrics collector (plain 'name=value' lines, validation only)")
    regression_mode: bool = flag(False, "regression; without it classification", action=argparse.BooleanOptionalAction)
    num_epochs: int = flag(20, "passes over the training data", type=number(int, 1))
    batch_size: int = flag(128, "jets a step, over all ranks together", type=number(int, 1))
    batch_size_val: int = flag(0, "jets a step of validation or prediction (default: as --batch-size)", type=number(int, 1))
    data_fraction: float = flag(1.0, "share of the training jets to use", type=number(float, 0, 1, above=True))
    start_lr: float = flag(5e-3, "learning rate at the start, or at the top of a schedule that rises", type=number(float, 0, above=True))
    optimizer: str = flag("ranger", ", ".join(OPTIMIZERS), type=choice("optimizer", OPTIMIZERS))
    optimizer_option: Mapping[str, Any] = flag({}, "option of the optimizer, as --network-option", "-p", nargs="+", action=_Pairs)
    weight_decay: float | None = flag(None, "weight decay (default: the optimizer's own)", type=number(float, 0))
    clip_grad_norm: float | None = flag(None, "largest norm of the gradient (default: not clipped)", type=number(float, 0, above=True))
    lr_scheduler: str = flag("flat+decay", ", ".join(SCHEDULERS), type=choice("learning-rate scheduler", SCHEDULERS))
    warmup_steps: float = flag(0.25, "steps (below 1: share of all steps) in which the rate rises, where it does", type=number(float, 0))
    use_amp: bool = flag(False, "bfloat16 autocast", action=argparse.BooleanOptionalAction)
    gpus: str = flag("auto", "auto: a GPU if there is one; 0: that GPU; 0,1: those, one process each; '': the CPU")
    backend: str = flag("auto", "auto, gloo or nccl: how ranks talk", type=choice("backend", ("auto", "gloo", "nccl")))
    seed: int = flag(1, "seed of weights, shuffling and dropout", type=number(int, 0))
    tensorboard_log_dir: str = flag("auto", "auto: inside the trial's folder; a folder or s3:// address; none")
    predict: bool = flag(False, "write predictions of the trial's best checkpoint on --data-test", action=argparse.BooleanOptionalAction)
    predict_output: str = flag("", "where --predict writes: .npz or .root")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The flags, without dashes in front."""
        return tuple(field.name.replace("_", "-") for field in dataclasses.fields(cls))

    def settings(self) -> dict[str, Any]:
        """Options that change what comes out of training. A checkpoint may only be continued with equal ones."""
        kept = ("regression_mode", "num_epochs", "batch_size", "data_fraction", "start_lr", "optimizer", "optimizer_option")
        kept += ("weight_decay", "clip_grad_norm", "lr_scheduler", "warmup_steps", "use_amp", "seed")
        return {name: dict(value) if isinstance(value := getattr(self, name), Mapping) else value for name in kept}


class _Parser(argparse.ArgumentParser):
    """argparse, with the nearest flag named where one is unknown."""

    def parse_args(self, args=None, namespace=None):
        known, rest = self.parse_known_args(args, namespace)
        wrong = next((word for word in rest if word.startswith("-")), None)
        if wrong:
            self.error(unknown("option", wrong.partition("=")[0], [name for name in self._option_string_actions if name.startswith("--")]))
        if rest:
            self.error(f"unexpected argument '{rest[0]}'")
        return known

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"error: {message}\nsee {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The argparse parser made of TrainOptions."""
    made = _Parser(prog="python -m weaver.train", description="Train a network on jets.", allow_abbrev=False)
    for field in dataclasses.fields(TrainOptions):
        default = {} if field.default is dataclasses.MISSING else field.default
        names = [*field.metadata["names"], "--" + field.name.replace("_", "-")]
        shown = "" if default in ("", (), {}, None, 0, False) or field.name.startswith("batch_size_") else f" (default: {default})"
        text = (field.metadata["help"] + shown).replace("%", "%%")
        made.add_argument(*names, default=default, help=text, **{"metavar": _metavar(field)} | dict(field.metadata["argparse"]))
    return made


def _metavar(field: dataclasses.Field) -> Any:
    return None if field.metadata["argparse"].get("action") is argparse.BooleanOptionalAction else field.name.rsplit("_", 1)[-1].upper()


def parse(argv: Sequence[str] | None = None) -> TrainOptions:
    """Parse a command line. Leaves the process with exit code 2 and one clear line where it makes no sense."""
    made = parser()
    given = vars(made.parse_args(argv))
    options = TrainOptions(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    if problem := _problem(options):
        made.error(problem)
    return options


def _problem(options: TrainOptions) -> str | None:
    """What is missing or does not go together."""
    needed = ["data_config", "network_config", "model_prefix"]
    needed += ["data_test", "predict_output"] if options.predict else ["data_train", "data_val"]
    missing = [name for name in needed if not getattr(options, name)]
    if missing:
        return "missing " + ", ".join("--" + name.replace("_", "-") for name in missing)
    if options.data_test and not options.predict:
        return "--data-test goes with --predict: the test set takes no part in training"
    if options.predict and not options.predict_output.endswith((".npz", ".root")):
        return f"--predict-output must end in .npz or .root, not '{options.predict_output}'"
    if not re.fullmatch(r"auto|(\d+(,\d+)*)?", options.gpus):
        return f"--gpus must be auto, numbers as 0 or 0,1, or '' for the CPU, not '{options.gpus}'"
    return None
