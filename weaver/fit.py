"""The training loop: epochs of steps, validation, the best weights, and a checkpoint after each epoch.

A run that is killed goes on at its last checkpoint and ends with the same weights, bit for bit on a CPU, as one that was never
killed: the order of jets, the learning rate and the random numbers of a step depend on its number alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from common.errors import InputError, InterruptedRun, TrainingError
from common.progress import Progress
from weaver import metrics_log
from weaver.checkpoint import Progressed, TrialFolder
from weaver.distributed import World, explained
from weaver.loader import Loader
from weaver.objective import Objective
from weaver.optimizers import make_optimizer, set_rate
from weaver.options import TrainOptions
from weaver.schedulers import Schedule
from weaver.stop import StopSignal
from weaver.tensorboard import TensorBoard

CHECK_STEPS = 20  # on a GPU, losses are looked at this often: asking after each step would make it wait for the answer


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
        """`configuration` decides whether a checkpoint may be continued; `description` becomes options.json."""
        self.objective, self.train, self.val = objective, train, val
        self.options, self.world, self.folder = options, world, folder
        self.configuration, self.description = configuration, description
        self.model = world.wrap(network.to(world.device))
        self.network = getattr(self.model, "module", self.model)  # without the wrapper that sums gradients over ranks
        self.optimizer = make_optimizer(options.optimizer, self.network, options.start_lr, optimizer_options(options))
        self.schedule = Schedule(
            name=options.lr_scheduler, num_epochs=options.num_epochs, steps_per_epoch=len(train), warmup_steps=options.warmup_steps
        )
        self.progressed = Progressed()
        self.stop = StopSignal()

    def run(self) -> Progressed:
        """Train to the last epoch.

        Raises TrainingError for a loss that is not finite, ClusterError for a rank that is gone, and InterruptedRun, with a
        checkpoint written, when told to stop.
        """
        self._resume()
        with self.stop, TensorBoard(self._tensorboard_uri(), self.progressed.epoch) as board:
            while self.progressed.epoch < self.options.num_epochs:
                self._epoch(board)
            board.settings({**self.options.settings(), **self.description["network_options"]}, self.progressed.best_metric)
        return self.progressed

    def _epoch(self, board: TensorBoard) -> None:
        started, spent = time.perf_counter(), self.progressed.seconds
        with self._progress() as progress:
            self._train(progress)
            metrics = self._validate(progress)
            record = self._record(metrics, spent + time.perf_counter() - started)
            progress.advance(0, note=_summary(record, self.progressed))
        self.progressed.next_epoch()
        if self.world.is_main:
            self._store(record)
            board.epoch(record)

    # ------------------------------------------------------------------------------------------------------------ training

    def _train(self, progress: Progress) -> None:
        """The steps of this epoch that are still to do."""
        self.model.train()
        watch = _Watch(self.train, self.progressed)
        every = CHECK_STEPS if self.world.device.type == "cuda" else 1
        losses: list[tuple[torch.Tensor | float, float]] = []
        with contextlib.closing(self.train.epoch(self.progressed.epoch, self.progressed.batch)) as batches:
            for batch in batches:
                loss_sum, num_jets, stop = self._step(batch)
                losses.append((loss_sum, num_jets))
                watch.tick()
                if len(losses) >= every or stop or self.progressed.batch == len(self.train):
                    self._add(losses)
                progress.advance(len(batch) * self.world.size, note=watch.note())
                if stop:
                    self._interrupt()

    def _step(self, batch) -> tuple[torch.Tensor | float, float, bool]:
        """One step of the optimizer. Sum of the losses before it and number of jets, over all ranks, and whether one has to stop."""
        progressed, options = self.progressed, self.options
        number = progressed.epoch * len(self.train) + progressed.batch
        torch.manual_seed(step_seed(options.seed, number, self.world.rank))
        set_rate(self.optimizer, options.start_lr * self.schedule.factor(number), self.schedule.momentum(number))
        self.optimizer.zero_grad()
        with explained(self.world):
            loss, num_jets, _ = self.objective(self.model, batch, filled=self._filled(self.train, progressed.batch))
            loss_sum, total, stop = self._over_ranks(loss.detach() * num_jets, num_jets)
            if self.world.size > 1:  # gradients are averaged over ranks; this makes it the mean over jets
                loss = loss * (num_jets * self.world.size / total)
            loss.backward()
        if (limit := clip_norm(options)) is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimizer.step()
        progressed.batch += 1
        return loss_sum, total, stop

    def _over_ranks(self, loss_sum: torch.Tensor, num_jets: float) -> tuple[torch.Tensor | float, float, bool]:
        """Sums over ranks, and True if any was told to stop: so all stop after the same step."""
        stop = bool(self.stop.received)
        if self.world.size == 1:
            return loss_sum, num_jets, stop
        loss_sum, total, stops = self.world.sum([loss_sum.item(), num_jets, stop])
        return loss_sum, total, stops > 0

    def _add(self, losses: list[tuple[torch.Tensor | float, float]]) -> None:
        """Add the losses of the newest steps to the epoch's, and forget them. Raises TrainingError where one is not finite."""
        progressed = self.progressed
        first = progressed.batch - len(losses)
        for batch, (value, num_jets) in enumerate(losses, start=first):
            loss_sum = float(value)
            if not math.isfinite(loss_sum):
                raise TrainingError(
                    f"the loss became {loss_sum} in {self._where()}, batch {batch + 1}/{len(self.train)}; "
                    "a smaller --start-lr may help, or look for values that are not finite in the data"
                )
            progressed.loss_sum += loss_sum
            progressed.num_jets += num_jets
        losses.clear()

    def _filled(self, loader: Loader, batch: int) -> bool:
        """Only the last batch of several ranks is ever filled up with jets that do not count."""
        return self.world.size > 1 and batch == len(loader) - 1

    # ---------------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def _validate(self, progress: Progress) -> dict[str, float]:
        """Metrics over the validation jets of all ranks."""
        self.network.eval()
        names = self.objective.metrics
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        with contextlib.closing(self.val.epoch(0)) as batches:
            for number, batch in enumerate(batches):
                loss, num_jets, errors = self.objective(self.network, batch, filled=self._filled(self.val, number))
                sums[0] += num_jets
                sums[1] += loss.double() * num_jets
                sums[2:] += errors
                progress.advance(len(batch) * self.world.size)
                if self.stop.received and self.world.size == 1:
                    self._interrupt()
        num_jets, *totals, stop = self.world.sum([*sums.tolist(), bool(self.stop.received)])
        if stop:
            self._interrupt()
        metrics = {name: total / num_jets for name, total in zip(names, totals, strict=True)}
        if not math.isfinite(metrics["AvgLoss"]):
            raise TrainingError(f"the validation loss became {metrics['AvgLoss']} in {self._where()}; a smaller --start-lr may help")
        return metrics

    def _record(self, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
        """The history's record of this epoch, also added to it."""
        progressed = self.progressed
        last_step = (progressed.epoch + 1) * len(self.train) - 1
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

    # ------------------------------------------------------------------------------------------------------------- storage

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one; on all ranks or on none."""
        if found := self.folder.load(self.configuration):
            state, self.progressed = found
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        done = self.progressed.epoch * len(self.train) + self.progressed.batch
        if self.world.sum([done])[0] != done * self.world.size:
            raise InputError(f"the ranks found different checkpoints in {self.folder.uri}; --model-prefix must be a place that all share")
        if self.world.is_main:
            write_results(self.folder, self.options, self.progressed, self.description)

    def _store(self, record: Mapping[str, Any]) -> None:
        """Best weights first, then the checkpoint, then what follows from it: a kill in between repeats the epoch or loses nothing."""
        if record["epoch"] == self.progressed.best_epoch:
            self.folder.save_best(self.network.state_dict(), self.progressed, self.description["network_options"])
        self._checkpoint()
        write_results(self.folder, self.options, self.progressed, self.description)

    def _checkpoint(self) -> None:
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.folder.save({**state, "configuration": dict(self.configuration)}, self.progressed)

    def _interrupt(self) -> None:
        """Write a checkpoint and leave."""
        if self.world.is_main:
            self._checkpoint()
        steps = f"{self.progressed.batch} of {len(self.train)} steps"
        error = InterruptedRun(f"told to stop in {self._where()} after {steps}; the same command goes on from there")
        error.exit_code = self.stop.exit_code
        raise error

    # --------------------------------------------------------------------------------------------------------------- words

    def _where(self) -> str:
        return f"epoch {self.progressed.epoch + 1}/{self.options.num_epochs}"

    def _progress(self) -> Progress:
        """The bar of an epoch, training and validation together; on other ranks than the main one it shows nothing."""
        bar = Progress(self._where(), total=self.train.num_jets + self.val.num_jets, unit="jets")
        bar.done = self.progressed.batch * self.train.batch_size * self.world.size
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
        self.before, self.waited, self.started = progressed.seconds, loader.wait_seconds, time.perf_counter()

    def tick(self) -> None:
        self.progressed.seconds = self.before + time.perf_counter() - self.started

    def note(self) -> str:
        share = (self.loader.wait_seconds - self.waited) / max(time.perf_counter() - self.started, 1e-9)
        loss = self.progressed.loss_sum / max(self.progressed.num_jets, 1.0)
        return f"loss {loss:.5f}, {100 * share:.0f} % waiting for data"


def write_results(folder: TrialFolder, options: TrainOptions, progressed: Progressed, description: Mapping[str, Any]) -> None:
    """Everything that follows from the checkpoint: history.json, options.json, metrics.log, and the collector's metrics file."""
    folder.write_results(progressed, description)
    if options.metrics_log:
        metrics_log.write(options.metrics_log, progressed.history)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers (dropout) of one step on one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def optimizer_options(options: TrainOptions) -> dict[str, Any]:
    """--optimizer-option and --weight-decay together, without the clipping of gradients, which is not the optimizer's."""
    given = {name: value for name, value in options.optimizer_option.items() if name != "clip_grad_norm"}
    return given if options.weight_decay is None else {**given, "weight_decay": options.weight_decay}


def clip_norm(options: TrainOptions) -> float | None:
    """The largest norm of the gradient: --clip-grad-norm, or Weaver's --optimizer-option clip_grad_norm."""
    return options.optimizer_option.get("clip_grad_norm", options.clip_grad_norm)


def _summary(record: Mapping[str, Any], progressed: Progressed) -> str:
    best = " (best)" if record["epoch"] == progressed.best_epoch else ""
    text = f"loss {record['train_loss']:.5f}, validation {record['val_loss']:.5f}{best}"
    return f"{text}, {record['jets_per_second']:,.0f} jets/s in training"
