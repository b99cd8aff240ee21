"""The training loop: epochs of steps, validation, the best weights, and a checkpoint after each
epoch.

A run that is killed goes on at its last checkpoint and ends with the same weights, bit for bit on a
CPU, as one that was never killed: the order of jets, the learning rate and the random numbers of a
step depend on its number alone.

Nothing in a step waits for the device: losses stay there and are looked at every CHECK_STEPS steps
on a GPU.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from common.errors import InputError, InterruptedRun, TrainingError
from common.progress import Progress
from weaver.feed.dataset import Batch
from weaver.feed.loader import Loader
from weaver.fit import metrics_log, randomness
from weaver.fit.average import Average
from weaver.fit.checkpoint import Progressed, TrialFolder, load_weights
from weaver.fit.distributed import World, explained
from weaver.fit.optimizers import make_optimizer, set_rate
from weaver.fit.options import TrainOptions
from weaver.fit.schedulers import Schedule
from weaver.fit.stop import StopSignal
from weaver.fit.tensorboard import TensorBoard
from weaver.network.objective import Objective
from weaver.network.precision import Precision

# on a GPU, losses are looked at this often: asking after each step would make it wait for the
# answer
CHECK_STEPS = 20
SHOWN_JETS = 100_000  # validation jets, at most, of which a histogram of responses is made


class Fit:
    """One training, from its last checkpoint to its last epoch."""

    def __init__(
        self,
        *,
        network: torch.nn.Module,
        objective: Objective,
        train: Loader,
        val: Loader,
        options: TrainOptions,
        world: World,
        folder: TrialFolder,
        configuration: Mapping[str, Any],
        description: Mapping[str, Any],
    ) -> None:
        """`configuration` decides whether a checkpoint may be continued;

        `description` becomes options.json.
        """
        self.objective, self.train, self.val = objective, train, val
        self.options, self.world, self.folder = options, world, folder
        self.configuration, self.description = configuration, description
        self.model = world.wrap(network.to(world.device))
        # without the wrapper that sums gradients over ranks
        self.network = getattr(self.model, "module", self.model)
        self.average = Average(self.network, options.ema_decay) if options.ema_decay else None
        self.validated = self.average.network if self.average else self.network
        self.steps = options.steps(len(train))
        self.schedule = Schedule(
            name=options.lr_scheduler,
            num_epochs=options.num_epochs,
            steps_per_epoch=self.steps,
            warmup_steps=options.warmup_steps,
        )
        self.optimizer = make_optimizer(
            options.optimizer, self.network, options.start_lr, optimizer_options(options)
        )
        self.scaler = objective.precision.scaler(world.device)
        self.check_steps = CHECK_STEPS if world.device.type == "cuda" else 1
        self.progressed = Progressed()
        self.stop = StopSignal()
        if options.compile:
            with _compiling(True):
                for module in {self.network, self.validated}:
                    module.compile(**options.compiler_option)

    def run(self) -> Progressed:
        """Train to the last epoch.

        Raises TrainingError for a loss that is not finite, ClusterError for a rank that is gone,
        and InterruptedRun, with a checkpoint written, when told to stop.
        """
        self._resume()
        with (
            self.stop,
            _compiling(self.options.compile),
            TensorBoard(self._tensorboard_uri(), self.progressed.epoch) as board,
        ):
            while not has_ended(self.options, self.progressed):
                self._epoch(board)
            board.settings(
                {**self.options.settings(), **self.description["network_options"]},
                self.progressed.best_metric,
            )
        return self.progressed

    def _epoch(self, board: TensorBoard) -> None:
        started, spent = time.perf_counter(), self.progressed.seconds
        with self._progress() as progress:
            self._train(progress)
            metrics, responses = self._validate(progress)
            record = self._record(metrics, spent + time.perf_counter() - started)
            progress.advance(0, note=_summary(record, self.progressed))
        self.progressed.next_epoch()
        if self.world.is_main:
            self._store(record)
            board.epoch(record, responses)

    # ----------------------------------------------------------------------------------- training

    def _train(self, progress: Progress) -> None:
        """The steps of this epoch that are still to do."""
        self.model.train()
        watch, losses = _Watch(self.train, self.progressed), []
        with contextlib.closing(self.batches()) as batches:
            for batch, place in batches:
                losses.append(self._step(batch, place))
                watch.tick()
                # several ranks agree on it where they look at losses
                alone_and_told = self.world.size == 1 and self.stop.received
                if (
                    len(losses) >= self.check_steps
                    or self.progressed.batch == self.steps
                    or alone_and_told
                ):
                    stop = self._settle(losses)
                    progress.advance(0, note=watch.note())
                    if stop:
                        self._interrupt()
                progress.advance(self._jets(self.train, place))

    def batches(self) -> Iterator[tuple[Batch, int]]:
        """The batches still to do in this epoch, each with its place in its pass over the data.

        With --steps-per-epoch passes do not end with epochs: each goes on where the one before
        ended.
        """
        number, end = self._number, (self.progressed.epoch + 1) * self.steps
        while number < end:
            turn, first = divmod(number, len(self.train))
            with contextlib.closing(self.train.epoch(turn, first)) as batches:
                for place in range(first, min(len(self.train), first + end - number)):
                    yield next(batches), place
                    number += 1

    def step_at(self, batch: Batch, place: int, rate: float) -> float:
        """One step at a given learning rate; the mean loss before it, over all ranks."""
        loss_sum, count = self.world.sum([float(value) for value in self._step(batch, place, rate)])
        return loss_sum / count

    def _step(
        self, batch: Batch, place: int, rate: float | None = None
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """One step of the optimizer: the sum of this rank's losses before it, and the jets (or sum
        of weights) that it is over.
        """
        number, options = self._number, self.options
        randomness.seed_all(randomness.step_seed(options.seed, number, self.world.rank))
        self._set_rate(number, rate)
        self.optimizer.zero_grad()
        with explained(self.world):
            loss, count, _ = self.objective(
                self.model, batch, filled=self._filled(self.train, place)
            )
            self.scaler.scale(self._of_all_ranks(loss, count, place)).backward()
        if (limit := clip_norm(options)) is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network, number)
        self.progressed.batch += 1
        return loss.detach().double() * count, count

    def _set_rate(self, number: int, rate: float | None) -> None:
        start = self.options.start_lr
        if rate is None:
            flat = start if self.schedule.name == "flat+decay" else None
            set_rate(
                self.optimizer,
                start * self.schedule.factor(number),
                self.schedule.momentum(number),
                flat=flat,
            )
        else:
            set_rate(self.optimizer, rate)

    def _of_all_ranks(
        self, loss: torch.Tensor, count: float | torch.Tensor, place: int
    ) -> torch.Tensor:
        """The loss whose gradient, averaged over ranks as DDP does, is that of the mean over the
        jets of all ranks.
        """
        if self.world.size == 1:
            return loss
        if isinstance(count, torch.Tensor):  # a sum of weights, which only the ranks together know
            total = self.world.sum_on_device(count).clamp(min=torch.finfo(count.dtype).tiny)
        else:
            total = self._jets(self.train, place)
        return loss * (count * self.world.size / total)

    def _settle(self, losses: list[tuple[torch.Tensor, float | torch.Tensor]]) -> bool:
        """Add the newest steps' losses to the epoch's and forget them; True if any rank was told to
        stop.

        Raises TrainingError, on all ranks, for a loss that is not finite.
        """
        progressed, device = self.progressed, self.world.device
        pairs = [
            (loss, torch.as_tensor(count, dtype=torch.float64, device=device))
            for loss, count in losses
        ]
        told = torch.tensor(float(bool(self.stop.received)), dtype=torch.float64, device=device)
        *values, stops = self.world.sum(
            torch.stack([*(value.double() for pair in pairs for value in pair), told])
        )
        first = progressed.batch - len(losses)
        for batch, (loss_sum, num_jets) in enumerate(
            zip(values[::2], values[1::2], strict=True), start=first
        ):
            if not math.isfinite(loss_sum):
                where = f"{self._where()}, batch {batch + 1}/{self.steps}"
                raise TrainingError(
                    f"the loss became {loss_sum} in {where};"
                    f" {self._cause(progressed.epoch * self.steps + batch)}"
                )
            progressed.loss_sum += loss_sum
            progressed.num_jets += num_jets
        losses.clear()
        return stops > 0

    def _cause(self, number: int) -> str:
        """What this rank's batch of a step tells about a loss that is not finite: what to do, as
        the end of a sentence.
        """
        turn, place = divmod(number, len(self.train))
        with contextlib.closing(self.train.epoch(turn, place)) as batches:
            found = not_finite(next(batches), self.train.dataset.data_config.input_dicts)
        return (
            f"its jets hold values that are not finite: {found}"
            if found
            else "its jets are finite; a smaller --start-lr may help"
        )

    def _jets(self, loader: Loader, place: int) -> int:
        """Jets of all ranks in the batch at a place of a pass, without those that only
        fill it up.
        """
        whole = loader.batch_size * self.world.size
        return min(whole, loader.num_jets - place * whole)

    def _filled(self, loader: Loader, place: int) -> bool:
        """Only the last batch of several ranks is ever filled up with jets that do not count."""
        return self.world.size > 1 and place == len(loader) - 1

    @property
    def _number(self) -> int:
        """The number of the next step, over all epochs."""
        return self.progressed.epoch * self.steps + self.progressed.batch

    # --------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def _validate(self, progress: Progress) -> tuple[dict[str, float], torch.Tensor]:
        """Metrics over the validation jets of all ranks, and responses of (at most SHOWN_JETS of)
        this rank's, on the CPU.
        """
        self.validated.eval()
        names = self.objective.metrics
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        responses: list[torch.Tensor] = []
        with contextlib.closing(self.val.epoch(0)) as batches:
            for place, batch in enumerate(batches):
                loss, count, judged = self.objective(
                    self.validated, batch, filled=self._filled(self.val, place)
                )
                sums[0] += count
                sums[1] += loss.double() * count
                sums[2:] += self.objective.errors(*judged)
                if len(responses) * self.val.batch_size < SHOWN_JETS:
                    responses.append(self.objective.responses(*judged))
                progress.advance(self._jets(self.val, place))
                if self.stop.received and self.world.size == 1:
                    self._interrupt()
        *totals, stop = self.world.sum(
            torch.cat([sums, sums.new_tensor([float(bool(self.stop.received))])])
        )
        if stop:
            self._interrupt()
        metrics = {name: total / totals[0] for name, total in zip(names, totals[1:], strict=True)}
        if not math.isfinite(metrics["AvgLoss"]):
            raise TrainingError(
                f"the validation loss became {metrics['AvgLoss']} in {self._where()}; a smaller"
                " --start-lr may help"
            )
        return metrics, torch.cat(responses).cpu()

    def _record(self, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
        """The history's record of this epoch, also added to it."""
        progressed = self.progressed
        last_step = (progressed.epoch + 1) * self.steps - 1
        rate = {
            "learning_rate": self.options.start_lr * self.schedule.factor(last_step),
            "jets_per_second": progressed.num_jets / max(progressed.seconds, 1e-9),
        }
        record = {
            "epoch": progressed.epoch,
            "train_loss": progressed.loss_sum / max(progressed.num_jets, 1.0),
            "val_loss": metrics["AvgLoss"],
            **rate,
            "seconds": seconds,
            "time": metrics_log.now(),
            "metrics": {**metrics, **rate},
        }
        progressed.history.append(record)
        if metrics["AvgLoss"] < progressed.best_metric:
            progressed.best_epoch, progressed.best_metric = progressed.epoch, metrics["AvgLoss"]
        return record

    # ------------------------------------------------------------------------------------ storage

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one; on all ranks or on none."""
        if found := self.folder.load(self.configuration):
            self._restore(*found)
        if self.world.sum([self._number])[0] != self._number * self.world.size:
            raise InputError(
                f"the ranks found different checkpoints in {self.folder.uri}; --model-prefix must"
                " be a place that all share"
            )
        check_load_epoch(self.options, self.progressed, self.folder.uri)
        if self.world.is_main:
            print(f"precision: {self.objective.precision}", file=sys.stderr, flush=True)
            write_results(self.folder, self.options, self.progressed, self.description)

    def _restore(self, state: Mapping[str, Any], progressed: Progressed) -> None:
        self.progressed = progressed
        where = self.folder.path("checkpoint.pt")
        load_weights(self.network, state["model"], where)
        if self.average:
            load_weights(self.average.network, state["average"], where)
        self.optimizer.load_state_dict(state["optimizer"])
        # `auto` on another machine: go on as it began
        if state["precision"] != self.objective.precision.name:
            self.objective.precision = Precision(state["precision"], "as the trial began")
        self.scaler = self.objective.precision.scaler(self.world.device)
        self.scaler.load_state_dict(state["scaler"])
        randomness.restore(state["random"])

    def _store(self, record: Mapping[str, Any]) -> None:
        """Best weights first, then the checkpoint, then what follows from it: a kill in between
        repeats the epoch or loses nothing.
        """
        if record["epoch"] == self.progressed.best_epoch:
            self.folder.save_best(
                self.validated.state_dict(), self.progressed, self.description["network_options"]
            )
        self._checkpoint()
        write_results(self.folder, self.options, self.progressed, self.description)

    def _checkpoint(self) -> None:
        """Write everything that a training goes on from."""
        state = {
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {
                "name": self.schedule.name,
                "step": self._number,
                "factor": self.schedule.factor(self._number),
            },
            "scaler": self.scaler.state_dict(),
            "precision": self.objective.precision.name,
            "random": randomness.state(),
            "configuration": dict(self.configuration),
        }
        self.folder.save(state, self.progressed)

    def _interrupt(self) -> None:
        """Write a checkpoint and leave."""
        if self.world.is_main:
            self._checkpoint()
        steps = f"{self.progressed.batch} of {self.steps} steps"
        error = InterruptedRun(
            f"told to stop in {self._where()} after {steps}; the same command goes on from there"
        )
        error.exit_code = self.stop.exit_code
        raise error

    # -------------------------------------------------------------------------------------- words

    def _where(self) -> str:
        return f"epoch {self.progressed.epoch + 1}/{self.options.num_epochs}"

    def _progress(self) -> Progress:
        """The bar of an epoch, training and validation together; on other ranks than the main one
        it shows nothing.
        """
        whole = self.train.batch_size * self.world.size
        jets = self.train.num_jets if self.steps == len(self.train) else self.steps * whole
        bar = Progress(self._where(), total=jets + self.val.num_jets, unit="jets")
        bar.done = self.progressed.batch * whole
        return bar if self.world.is_main else _Silent(self._where(), total=0)

    def _tensorboard_uri(self) -> str:
        """Where TensorBoard's files go; empty for nowhere."""
        asked = self.options.tensorboard_log_dir
        if asked == "none" or not self.world.is_main:
            return ""
        return self.folder.path("tensorboard") if asked == "auto" else asked


class _Silent(Progress):
    def _show(self, final: bool = False) -> None:
        pass


class _Watch:
    """Time that the steps of an epoch take, and the part of it spent waiting for data."""

    def __init__(self, loader: Loader, progressed: Progressed) -> None:
        self.loader, self.progressed = loader, progressed
        self.before, self.waited, self.started = (
            progressed.seconds,
            loader.wait_seconds,
            time.perf_counter(),
        )

    def tick(self) -> None:
        self.progressed.seconds = self.before + time.perf_counter() - self.started

    def note(self) -> str:
        share = (self.loader.wait_seconds - self.waited) / max(
            time.perf_counter() - self.started, 1e-9
        )
        loss = self.progressed.loss_sum / max(self.progressed.num_jets, 1.0)
        return f"loss {loss:.5f}, {100 * share:.0f} % waiting for data"


def write_results(
    folder: TrialFolder,
    options: TrainOptions,
    progressed: Progressed,
    description: Mapping[str, Any],
) -> None:
    """Everything that follows from the checkpoint: history.json, options.json, metrics.log, and the
    collector's metrics file.
    """
    folder.write_results(progressed, description)
    if options.metrics_log:
        metrics_log.write(options.metrics_log, progressed.history)


def not_finite(batch: Batch, input_dicts: Mapping[str, list[str]]) -> str:
    """Which variables and labels of a batch hold NaN or infinity, and in how many jets; empty if
    none does.
    """
    found = []
    for group, values in batch.inputs.items():
        # (N, C)
        bad = ~values.isfinite().reshape(len(batch), len(input_dicts[group]), -1).all(dim=2)
        found += [
            f"{name} in {int(count)}"
            for name, count in zip(input_dicts[group], bad.sum(dim=0), strict=True)
            if count
        ]
    found += [
        f"{name} in {int(count)}"
        for name, values in batch.labels.items()
        if (count := (~values.isfinite()).sum())
    ]
    return ", ".join(found) + " jets" if found else ""


def has_ended(options: TrainOptions, progressed: Progressed) -> bool:
    """True after the last epoch, or where the last --patience epochs brought no better validation
    loss.
    """
    waited = progressed.epoch - 1 - progressed.best_epoch
    return progressed.epoch >= options.num_epochs or bool(
        options.patience and progressed.history and waited >= options.patience
    )


def check_load_epoch(options: TrainOptions, progressed: Progressed, where: str) -> None:
    """Raise InputError where --load-epoch asks for another epoch than the checkpoint's: only the
    last one is kept.
    """
    if options.load_epoch is not None and progressed.epoch != options.load_epoch + 1:
        held = (
            f"has finished epoch {progressed.epoch - 1}"
            if progressed.epoch
            else "has finished no epoch"
        )
        raise InputError(
            f"--load-epoch {options.load_epoch}: the checkpoint in {where} {held}; leave it out: a"
            " trial goes on from its last checkpoint"
        )


@contextlib.contextmanager
def _compiling(used: bool) -> Iterator[None]:
    """Turn what torch.compile raises into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not used or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the network cannot be compiled ({reason}); leave out --compile"
        ) from error


def optimizer_options(options: TrainOptions) -> dict[str, Any]:
    """--optimizer-option and --weight-decay together, without the clipping of gradients, which is
    not the optimizer's.
    """
    given = {
        name: value for name, value in options.optimizer_option.items() if name != "clip_grad_norm"
    }
    return (
        given if options.weight_decay is None else {**given, "weight_decay": options.weight_decay}
    )


def clip_norm(options: TrainOptions) -> float | None:
    """The largest norm of the gradient: --clip-grad-norm, or Weaver's --optimizer-option
    clip_grad_norm.
    """
    return options.optimizer_option.get("clip_grad_norm", options.clip_grad_norm)


def _summary(record: Mapping[str, Any], progressed: Progressed) -> str:
    best = " (best)" if record["epoch"] == progressed.best_epoch else ""
    text = f"loss {record['train_loss']:.5f}, validation {record['val_loss']:.5f}{best}"
    return f"{text}, {record['jets_per_second']:,.0f} jets/s in training"
