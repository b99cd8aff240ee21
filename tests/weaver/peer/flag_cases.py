"""A case for every flag of weaver.train and of weaver-core: a small run that the flag changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.weaver.peer.commands import TEST, Command
from weaver.fit.options import TrainOptions

# Two batches an epoch, which the programs shuffle differently: their weights are not comparable.
HALVES = ("--batch-size", "40")
FOUR_STEPS = ("--num-epochs", "4", "--steps-per-epoch", "1")
CLASSES = ("-c", "classes.yaml", "-o", "outputs", "3")


@dataclasses.dataclass
class Run:
    """The result of one of our runs."""

    folder: Path
    code: int
    facts: dict[str, Any]
    messages: str
    """What it wrote to stderr."""
    stdout: str
    calls: dict[str, Any]
    """Calls of the functions that the test watches: name -> arguments."""
    options: TrainOptions | None


Look = Callable[[Run], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A run with the flag must differ from one without it."""

    flag: str
    words: tuple[str, ...]
    """The flag, with what it takes and what it needs."""
    more: str = ""
    """Distinguishes this case from others of the flag."""
    base: tuple[str, ...] = ()
    """Words that both runs have besides."""
    without: tuple[str, ...] = ()
    """Usual flags that neither run has."""
    before: tuple[tuple[str, ...], ...] = ()
    look: Look | None = None
    """What differs; by default the facts that weaver-core's runs have too."""
    peer: bool = True
    """Whether the facts equal those of weaver-core."""
    leave_out: tuple[str, ...] = ()
    """Facts that differ from weaver-core's: by chance, or as the table in the docs says."""
    says: str = ""
    """Where the flag has no effect: part of the line that says so."""

    @property
    def name(self) -> str:
        return f"{self.flag}{'.' if self.more else ''}{self.more}"

    @property
    def command(self) -> Command:
        words = (*self.base, *self.words)
        return Command(words=words, without=self.without, before=self.before)

    @property
    def command_without(self) -> Command:
        return Command(words=self.base, without=self.without, before=self.before)

    @property
    def is_of_peer(self) -> bool:
        """Whether weaver-core runs the same command, and its facts are stored."""
        return self.peer and self.look is None and not self.says


def no_effect(flag: str, *values: str, says: str = "", base: tuple[str, ...] = ()) -> Case:
    """A flag that is accepted, and of which a line says why it has no effect."""
    return Case(flag=flag, words=(f"--{flag}", *values), says=says or f"--{flag}", base=base)


def exists(name: str) -> Look:
    """Whether a run made a file of a name, anywhere in its folder."""
    return lambda run: bool(list(run.folder.rglob(name)))


def output_contains(text: str) -> Look:
    """Whether a run writes a text to stderr."""
    return lambda run: text in run.messages


def arguments_of(name: str) -> Look:
    """The arguments with which a run called a watched function."""
    return lambda run: run.calls.get(name)


def opset(run: Run) -> int:
    """The opset of the exported graph."""
    import onnx

    return onnx.load(run.folder / "models" / "m.onnx").opset_import[0].version


def metrics(run: Run) -> list[dict[str, Any]]:
    """The metrics of each epoch."""
    path = run.folder / "models" / "net" / "history.json"
    return [record["metrics"] for record in json.loads(path.read_text())]


def epochs(run: Run) -> int:
    return len(metrics(run))


OF_WEAVER_CORE = (
    # ------------------------------------------------------------------------------ what is run
    Case(
        flag="run-mode",
        words=("--run-mode", "train"),
        base=TEST,
        leave_out=("eval", "eval jets", "files"),  # it validates to know its best epoch
    ),
    Case(
        flag="run-mode",
        more="test",
        words=("--run-mode", "test"),
        base=(*TEST, "--num-epochs", "3"),
        before=((),),
    ),
    Case(flag="regression-mode", words=("--no-regression-mode", *CLASSES), base=TEST),
    Case(
        flag="predict",
        words=("--predict",),
        base=(*TEST, "--num-epochs", "3"),
        before=((),),
    ),
    Case(flag="print", words=("--print",), look=lambda run: "parameters" in run.stdout),
    Case(
        flag="profile",
        words=("--profile",),
        look=lambda run: ("addmm" in run.stdout, (run.folder / "trace.json").exists()),
    ),
    Case(
        flag="io-test",
        words=("--io-test",),
        base=("-c", "monitor.yaml"),
        leave_out=("options",),  # no network is built
    ),
    Case(flag="demo", words=("--demo",), base=("--batch-size", "8"), peer=False),
    Case(flag="lr-finder", words=("--lr-finder", "1e-4, 1e-1, 5"), look=exists("lr_finder.json")),
    Case(
        flag="cross-validation",
        words=("--cross-validation", "number%5"),
        base=(*TEST, "--batch-size", "64", "--batch-size-val", "24"),
    ),
    Case(
        flag="export-onnx",
        words=("--export-onnx", "m.onnx"),
        before=((),),
        look=exists("models/m.onnx"),
    ),
    Case(
        flag="onnx-opset",
        words=("--onnx-opset", "18"),
        base=("--export-onnx", "m.onnx"),
        before=((),),
        look=opset,
    ),
    # ------------------------------------------------------------------------------------- data
    Case(flag="data-config", words=("--data-config", "scaled.yaml")),
    Case(flag="data-config", more="auto", words=("--data-config", "auto.yaml"), base=TEST),
    Case(
        flag="data-config-val",
        words=("--data-config-val", "even.yaml"),
        base=("--batch-size-val", "15"),
    ),
    Case(flag="data-config-test", words=("--data-config-test", "even.yaml"), base=TEST),
    Case(
        flag="extra-selection-train",
        words=("--extra-selection-train", "(number % 2 == 0) | (number < 0)"),
        base=HALVES,
    ),
    Case(
        flag="extra-selection-val",
        words=("--extra-selection-val", "number % 2 == 0"),
        base=("--batch-size-val", "15"),
    ),
    Case(flag="extra-selection-test", words=("--extra-selection-test", "x > 0.5"), base=TEST),
    Case(flag="data-train", words=("--data-train", "train_b.root"), base=HALVES),
    Case(flag="data-val", words=("--data-val", "test.root"), base=("--batch-size-val", "10")),
    Case(flag="data-test", words=("--data-test", "a:test.root", "b:val.root"), base=TEST),
    Case(
        flag="data-test",
        more="split",
        words=("--data-test", "a%1:val.root", "a%1:test.root"),
        base=TEST,
    ),
    Case(
        flag="data-fraction",
        words=("--data-fraction", "0.5"),
        base=(*TEST, *HALVES, "--batch-size-val", "15"),
        leave_out=("train jets", "eval jets", "weights", "columns"),  # a window drawn anew
    ),
    Case(
        flag="data-fraction",
        more="test",
        words=("--data-fraction", "0.5"),
        base=(*TEST, "--predict"),
        before=((),),
    ),
    Case(
        flag="data-fraction-val",
        words=("--data-fraction-val", "0.5"),
        base=("--batch-size-val", "15"),
        leave_out=("eval jets", "weights"),  # another part decides on the best
    ),
    Case(
        flag="train-val-split",
        words=("--train-val-split", "0.75"),
        base=("--batch-size", "60", "--batch-size-val", "20"),
        without=("--data-val",),
    ),
    no_effect("fetch-by-files"),
    no_effect("fetch-step", "0.5"),
    no_effect("fetch-step-val", "0.5"),
    no_effect("data-split-num", "2"),
    no_effect("data-split-val", "2"),
    no_effect("num-workers", "2"),
    no_effect("prefetch-factor", "4"),
    no_effect("no-remake-weights"),
    Case(flag="in-memory", words=("--in-memory",), look=arguments_of("Resident")),
    Case(
        flag="in-memory-val",
        words=("--no-in-memory-val",),
        base=("--in-memory",),
        look=arguments_of("Resident"),
    ),
    Case(flag="copy-inputs", words=("--copy-inputs",), look=arguments_of("local_copy")),
    # ---------------------------------------------------------------------------------- network
    Case(flag="network-config", words=("--network-config", "other.py")),
    Case(flag="network-option", words=("--network-option", "start", "0.7")),
    Case(flag="model-prefix", words=("--model-prefix", "models/other")),
    Case(flag="load-model-weights", words=("--load-model-weights", "start.pt")),
    Case(
        flag="exclude-model-weights",
        words=("--exclude-model-weights", "first.w.*,none"),
        base=("--load-model-weights", "start.pt"),
    ),
    Case(flag="freeze-model-weights", words=("--freeze-model-weights", "first.*")),
    # --------------------------------------------------------------------------------- training
    Case(flag="num-epochs", words=("--num-epochs", "4")),
    Case(
        flag="steps-per-epoch",
        words=("--steps-per-epoch", "3"),
        base=HALVES,
        leave_out=("weights",),
    ),
    Case(
        flag="samples-per-epoch",
        words=("--samples-per-epoch", "130"),
        base=HALVES,
        leave_out=("weights",),
    ),
    Case(
        flag="steps-per-epoch-val",
        words=("--steps-per-epoch-val", "2"),
        base=("--batch-size-val", "10"),
        leave_out=("eval jets", "weights"),  # another part decides on the best
    ),
    Case(
        flag="samples-per-epoch-val",
        words=("--samples-per-epoch-val", "20"),
        base=("--batch-size-val", "10"),
        leave_out=("eval jets", "weights"),  # another part decides on the best
    ),
    Case(flag="optimizer", words=("--optimizer", "SGD")),
    Case(flag="optimizer", more="adamW", words=("--optimizer", "adamW")),
    Case(flag="optimizer", more="radam", words=("--optimizer", "radam"), base=FOUR_STEPS),
    Case(flag="optimizer", more="ranger", words=("--optimizer", "ranger"), base=FOUR_STEPS),
    Case(flag="optimizer", more="NAdam", words=("--optimizer", "NAdam")),
    Case(flag="optimizer-option", words=("--optimizer-option", "weight_decay", "0.1")),
    Case(
        flag="optimizer-option",
        more="ranger",
        words=("--optimizer-option", "weight_decay", "0.1"),
        base=("--optimizer", "ranger", "--num-epochs", "8"),
    ),
    Case(
        flag="optimizer-option",
        more="betas",
        words=("--optimizer-option", "betas", "(0.5, 0.9)"),
        base=("--num-epochs", "4"),
    ),
    Case(
        flag="optimizer-option",
        more="lr-mult",
        words=("--optimizer-option", "lr_mult", "('first.*', 3)"),
        base=("--lr-scheduler", "none"),
    ),
    Case(
        flag="optimizer-option",
        more="clip",
        words=("--optimizer-option", "clip_grad_norm", "0.01"),
        base=("--optimizer", "SGD"),
    ),
    Case(flag="lr-scheduler", words=("--lr-scheduler", "none"), base=FOUR_STEPS),
    Case(flag="lr-scheduler", more="steps", words=("--lr-scheduler", "steps"), base=FOUR_STEPS),
    Case(
        flag="lr-scheduler",
        more="one-cycle",
        words=("--lr-scheduler", "one-cycle"),
        base=FOUR_STEPS,
    ),
    Case(
        flag="lr-scheduler",
        more="warmup-cos",
        words=("--lr-scheduler", "warmup+cos"),
        base=FOUR_STEPS,
    ),
    Case(
        flag="warmup-steps",
        words=("--warmup-steps", "3"),
        base=(*FOUR_STEPS, "--lr-scheduler", "flat+linear"),
    ),
    Case(
        flag="warmup-steps",
        more="share",
        words=("--warmup-steps", "0.5"),
        base=(*FOUR_STEPS, "--lr-scheduler", "flat+cos"),
    ),
    Case(flag="start-lr", words=("--start-lr", "0.01")),
    Case(
        flag="load-epoch",
        words=("--load-epoch", "0"),
        base=("--optimizer", "SGD", "--num-epochs", "3", "--lr-scheduler", "none"),
        before=(("--optimizer", "SGD", "--num-epochs", "3", "--lr-scheduler", "none"),),
    ),
    Case(flag="batch-size", words=HALVES, leave_out=("weights",)),
    Case(flag="batch-size-val", words=("--batch-size-val", "10")),
    Case(flag="batch-size-val", more="test", words=("--batch-size-val", "10"), base=TEST),
    Case(flag="batch-size-test", words=("--batch-size-test", "5"), base=TEST),
    Case(flag="use-amp", words=("--use-amp",)),
    Case(
        flag="amp-dtype",
        words=("--amp-dtype", "fp16"),
        base=("--use-amp",),
        look=lambda run: run.options and run.options.precision_on("cuda"),
    ),
    Case(flag="compile", words=("--compile",), look=arguments_of("compile")),
    Case(
        flag="compiler-option",
        words=("--compiler-option", "dynamic", "False"),
        base=("--compile",),
        look=arguments_of("compile"),
    ),
    Case(flag="gpus", words=("--gpus", "0"), look=output_contains("--gpus 0")),
    Case(
        flag="predict-gpus",
        words=("--predict-gpus", "0"),
        base=TEST,
        look=output_contains("--gpus 0"),
    ),
    no_effect("backend", "gloo"),
    # ------------------------------------------------------------------------------ what it writes
    Case(flag="predict-output", words=("--predict-output", "p.parquet"), base=TEST),
    Case(flag="auto-clean", words=("--auto-clean",), base=("--num-epochs", "4")),
    Case(flag="log-file", words=("--log-file", "logs/a.log"), look=exists("a.log")),
    Case(flag="tensorboard", words=("--tensorboard", "_mine"), look=exists("runs/*_mine/events*")),
)
"""The flags that both programs have."""

REFUSED = ("file-fraction", "tensorboard-custom-fn", "custom-functions", "compile-optimizer")
"""Flags of weaver-core that end the program with a line that says what to do instead."""

OWN = (
    Case(flag="metrics-log", words=("--metrics-log", "m.log"), look=exists("m.log")),
    Case(flag="weight-decay", words=("--weight-decay", "0.1")),
    Case(flag="clip-grad-norm", words=("--clip-grad-norm", "0.01"), base=("--optimizer", "SGD")),
    Case(
        flag="patience",
        words=("--patience", "1"),
        base=("--num-epochs", "8", "--optimizer", "SGD", "--start-lr", "30"),
        look=epochs,
    ),
    Case(flag="ema-decay", words=("--ema-decay", "0.5"), look=metrics),
    Case(flag="precision", words=("--precision", "bf16"), look=metrics),
    Case(flag="deterministic", words=("--deterministic",), look=arguments_of("deterministic")),
    Case(flag="seed", words=("--seed", "2"), base=HALVES, look=metrics),
    Case(
        flag="tensorboard-log-dir",
        words=("--tensorboard-log-dir", "tb"),
        look=exists("tb/events*"),
    ),
    Case(
        flag="triton-config",
        words=("--triton-config", "jets/config.pbtxt"),
        base=("--export-onnx", "m.onnx"),
        before=((),),
        look=exists("jets/config.pbtxt"),
    ),
    Case(
        flag="s3-model",
        words=("--s3-model", "repository/jets"),
        base=("--export-onnx", "m.onnx"),
        before=((),),
        look=exists("repository/jets/1/model.onnx"),
    ),
    Case(flag="local-rank", words=("--local-rank", "0"), look=arguments_of("LOCAL_RANK")),
    Case(flag="cache", words=("--no-cache",), look=exists("cache/*")),
)
"""The flags that only weaver.train has."""
