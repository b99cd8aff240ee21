"""The training loop: steps, validation, the best weights, and a checkpoint after each epoch.

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
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from typing import Any, cast

import torch

from common import storage
from common.errors import InputError, InterruptedRun, TrainingError
from common.progress import Progress
from weaver.feed.dataset import Batch
from weaver.feed.loader import Loader
from weaver.fit import ending, metrics_log, randomness
from weaver.fit.average import Average
from weaver.fit.checkpoint import (
    Progressed,
    State,
    TrialFolder,
    load_weights,
    read_weights,
    state_uri,
    write_states,
)
from weaver.fit.distributed import World, explained
from weaver.fit.metrics_log import EpochRecord
from weaver.fit.mlflow_trial import MlflowTrial, parameters_of
from weaver.fit.optimizers import make_optimizer, set_rate
from weaver.fit.options import OptionValues, TrainOptions
from weaver.fit.schedulers import Schedule
from weaver.fit.stop import StopSignal
from weaver.fit.tensorboard import TensorBoard
from weaver.network.objective import Count, Objective
from weaver.network.precision import Precision

# on a GPU, losses are looked at this often: asking after each step would make it wait for the
# answer
CHECK_STEPS = 20
SHOWN_JETS = 100_000  # validation jets, at most, of which a histogram of responses is made

StepLoss = tuple[torch.Tensor, Count]
"""Sum of a rank's losses in one step, and the jets (or sum of weights) that it is over."""


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
        """Build the optimizer and the schedule; `run` then loads the last checkpoint.

        `configuration` decides whether a checkpoint may be continued; `description` becomes
        options.json.
        """
        self.objective = objective
        self.train = train
        self.val = val
        self.options = options
        self.world = world
        self.folder = folder
        self.configuration = configuration
        self.description = description
        self.model = world.wrap(network.to(world.device))
        # without the wrapper that sums gradients over ranks
        self.network: torch.nn.Module = getattr(self.model, "module", self.model)
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
        tensorboard = self.options.tensorboard_log_dir
        if tensorboard == "none" or not self.world.is_main:
            tensorboard = ""
        elif tensorboard == "auto":
            tensorboard = self.folder.path("tensorboard")
        with (
            self.stop,
            _compiling(self.options.compile),
            TensorBoard(tensorboard, self.progressed.epoch) as board,
            MlflowTrial(
                self.folder.uri, parameters_of(self.options), used=self.world.is_main
            ) as mlflow,
        ):
            while not has_ended(self.options, self.progressed):
                self._epoch(board)
                mlflow.epochs(self.progressed.history)
            board.settings(
                {**self.options.settings(), **self.description["network_options"]},
                self.progressed.best_metric,
            )
        return self.progressed

    def _epoch(self, board: TensorBoard) -> None:
        """Train and validate once, and store the result."""
        started = time.perf_counter()
        spent = self.progressed.seconds  # before a stop, where the epoch is resumed

        with self._progress() as progress:
            self._train(progress)
            metrics, responses = self._validate(progress)
            record = self._record(metrics, spent + time.perf_counter() - started)
            is_best = record["epoch"] == self.progressed.best_epoch
            progress.advance(
                0,
                note=f"loss {record['train_loss']:.5f}, validation {record['val_loss']:.5f}"
                f"{' (best)' if is_best else ''}, {record['jets_per_second']:,.0f} jets/s in"
                " training",
            )

        self.progressed.next_epoch()
        if self.world.is_main:
            # Best weights first, then the checkpoint, then what follows from it: a kill in between
            # repeats the epoch or loses nothing.
            if is_best:
                self.folder.save_best(
                    self.validated.state_dict(),
                    self.progressed,
                    self.description["network_options"],
                )
            write_states(
                self.validated.state_dict(), self.options, record["epoch"], is_best=is_best
            )
            self._checkpoint()
            write_results(self.folder, self.options, self.progressed, self.description)
            board.epoch(record, responses)

    # ----------------------------------------------------------------------------------- training

    def _train(self, progress: Progress) -> None:
        """Make the steps of this epoch that are still to do."""
        self.model.train()
        watch = _Watch(self.train, self.progressed)
        losses: list[StepLoss] = []
        with contextlib.closing(self.batches()) as batches:
            for batch, place in batches:
                losses.append(self._step(batch, place))
                watch.tick()
                due = len(losses) >= self.check_steps or self.progressed.batch == self.steps
                # several ranks agree on stopping where they all look at losses
                if due or (self.world.size == 1 and self.stop.received):
                    stop = self._settle(losses)
                    progress.advance(0, note=watch.note())
                    if stop:
                        self._interrupt()
                progress.advance(self._jets(self.train, place))

    def batches(self) -> Generator[tuple[Batch, int], None, None]:
        """The batches still to do in this epoch, each with its place in its pass over the data.

        With --steps-per-epoch passes do not end with epochs: each goes on where the one before
        ended.
        """
        number = self._number
        end = (self.progressed.epoch + 1) * self.steps
        while number < end:
            turn, first = divmod(number, len(self.train))
            with _pass(self.train, turn, first) as batches:
                for place in range(first, min(len(self.train), first + end - number)):
                    yield next(batches), place
                    number += 1

    def step_at(self, batch: Batch, place: int, rate: float) -> float:
        """Make one step at a learning rate of one's own.

        Returns the mean loss before it, over all ranks.
        """
        loss, jets = self._step(batch, place, rate)
        loss_sum, count = self.world.sum([float(loss), float(jets)])
        return loss_sum / count

    def _step(self, batch: Batch, place: int, rate: float | None = None) -> StepLoss:
        """Make one step of the optimizer, at the schedule's learning rate or at `rate`.

        Returns the sum of this rank's losses before it. Nothing here waits for the device.
        """
        number = self._number
        options = self.options
        randomness.seed_all(randomness.step_seed(options.seed, number, self.world.rank))
        if rate is None:
            rate = options.start_lr * self.schedule.factor(number)
            flat = options.start_lr if self.schedule.name == "flat+decay" else None
            set_rate(self.optimizer, rate, self.schedule.momentum(number), flat=flat)
        else:
            set_rate(self.optimizer, rate)

        self.optimizer.zero_grad()
        with explained(self.world):
            loss, count, _ = self.objective(
                self.model, batch, filled=self._filled(self.train, place)
            )
            self.scaler.scale(self._of_all_ranks(loss, count, place)).backward()

        # Lookahead has what a scaler uses of an optimizer: param_groups and step
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        if (limit := clip_norm(options)) is not None:
            self.scaler.unscale_(optimizer)  # the limit is one of the gradient itself
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network, number)
        self.progressed.batch += 1
        return loss.detach().double() * count, count

    def _of_all_ranks(self, loss: torch.Tensor, count: Count, place: int) -> torch.Tensor:
        """Scale a rank's loss so that DDP's mean of gradients is that of the mean over all jets."""
        if self.world.size == 1:
            return loss
        if not isinstance(count, torch.Tensor):
            return loss * (count * self.world.size / self._jets(self.train, place))
        # a sum of weights, which only the ranks together know
        total = self.world.sum_on_device(count).clamp(min=torch.finfo(count.dtype).tiny)
        return loss * (count * self.world.size / total)

    def _settle(self, losses: list[StepLoss]) -> bool:
        """Add the newest steps' losses to the epoch's and forget them.

        Returns True if any rank was told to stop. Raises TrainingError, on all ranks, for a loss
        that is not finite.
        """
        progressed = self.progressed
        device = self.world.device

        # One sum over ranks for all: loss, jets, loss, jets, ..., told to stop.
        terms: list[torch.Tensor] = []
        for loss, count in losses:
            terms.append(loss.double())
            terms.append(torch.as_tensor(count, dtype=torch.float64, device=device))
        told = float(bool(self.stop.received))
        terms.append(torch.tensor(told, dtype=torch.float64, device=device))
        *sums, stops = self.world.sum(torch.stack(terms))

        batch = progressed.batch - len(losses)
        for loss_sum, num_jets in zip(sums[::2], sums[1::2], strict=True):
            batch += 1
            if not math.isfinite(loss_sum):
                cause = self._cause(progressed.epoch * self.steps + batch - 1)
                raise TrainingError(
                    f"the loss became {loss_sum} in {self._where()}, batch {batch}/{self.steps};"
                    f" {cause}"
                )
            progressed.loss_sum += loss_sum
            progressed.num_jets += num_jets
        losses.clear()
        return stops > 0

    def _cause(self, number: int) -> str:
        """Explain a loss that is not finite by this rank's batch in that step, and advise.

        The text is the end of a sentence.
        """
        turn, place = divmod(number, len(self.train))
        with _pass(self.train, turn, place) as batches:
            counts = not_finite(next(batches), self.train.dataset.data_config.input_dicts)
        if counts:
            return f"its jets hold values that are not finite: {in_words(counts)}"
        return "its jets are finite; a smaller --start-lr may help"

    def _cause_in_validation(self) -> str:
        """Explain a validation loss that is not finite by this rank's jets."""
        counts: Counter[str] = Counter()
        with _pass(self.val, 0) as batches:
            for batch in batches:
                counts.update(not_finite(batch, self.val.dataset.data_config.input_dicts))
        if counts:
            return f"the validation jets hold values that are not finite: {in_words(counts)}"
        return "all validation jets are finite; a smaller --start-lr may help"

    def _jets(self, loader: Loader, place: int) -> int:
        """Jets of all ranks in one batch of a pass, without those that only fill it up."""
        whole = loader.batch_size * self.world.size
        return min(whole, loader.num_jets - place * whole)

    def _filled(self, loader: Loader, place: int) -> bool:
        """Whether the batch may be filled up with jets that do not count."""
        # only the last one of several ranks ever is
        return self.world.size > 1 and place == len(loader) - 1

    @property
    def _number(self) -> int:
        """The number of the next step, over all epochs."""
        return self.progressed.epoch * self.steps + self.progressed.batch

    # --------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def _validate(self, progress: Progress) -> tuple[dict[str, float], torch.Tensor]:
        """Measure the metrics over the validation jets of all ranks.

        Also returns responses (n,) of this rank's jets, at most about SHOWN_JETS, on the CPU.
        """
        self.validated.eval()
        names = self.objective.metrics
        # jets (or weights), then each metric times jets
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        responses: list[torch.Tensor] = []
        with _pass(self.val, 0) as batches:
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

        told = sums.new_tensor([float(bool(self.stop.received))])
        num_jets, *totals, stop = self.world.sum(torch.cat([sums, told]))
        if stop:
            self._interrupt()
        metrics = {name: total / num_jets for name, total in zip(names, totals, strict=True)}
        if not math.isfinite(metrics["AvgLoss"]):
            raise TrainingError(
                f"the validation loss became {metrics['AvgLoss']} in {self._where()};"
                f" {self._cause_in_validation()}"
            )
        return metrics, torch.cat(responses).cpu()

    def _record(self, metrics: dict[str, float], seconds: float) -> EpochRecord:
        """Add this epoch's record to the history, and note the best epoch."""
        progressed = self.progressed
        last_step = (progressed.epoch + 1) * self.steps - 1
        learning_rate = self.options.start_lr * self.schedule.factor(last_step)
        jets_per_second = progressed.num_jets / max(progressed.seconds, 1e-9)
        speeds = {"learning_rate": learning_rate, "jets_per_second": jets_per_second}
        record: EpochRecord = {
            "epoch": progressed.epoch,
            "train_loss": progressed.loss_sum / max(progressed.num_jets, 1.0),
            "val_loss": metrics["AvgLoss"],
            "learning_rate": learning_rate,
            "jets_per_second": jets_per_second,
            "seconds": seconds,
            "time": metrics_log.now(),
            "metrics": {**metrics, **speeds},
        }
        progressed.history.append(record)
        if self._is_best(metrics):
            progressed.best_epoch = progressed.epoch
            progressed.best_metric = metrics["AvgLoss"]
        return record

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an epoch is better than all before it.

        As in weaver-core: by the loss in a regression, by the accuracy in a classification.
        """
        progressed = self.progressed
        if self.objective.regression or progressed.best_epoch < 0:
            return metrics["AvgLoss"] < progressed.best_metric
        for record in progressed.history:
            if record["epoch"] == progressed.best_epoch:
                return metrics["AvgAcc"] > record["metrics"]["AvgAcc"]
        return True

    # ------------------------------------------------------------------------------------ storage

    def _resume(self) -> None:
        """Load the last checkpoint, if there is one; on all ranks or on none."""
        if checkpoint := self.folder.load(self.configuration):
            self._restore(*checkpoint)
        if self.world.sum([self._number])[0] != self._number * self.world.size:
            raise InputError(
                f"the ranks found different checkpoints in {self.folder.uri}; --model-prefix must"
                " be a place that all share"
            )
        epoch = self.options.load_epoch
        if epoch is not None and self.progressed.epoch != epoch + 1:
            self._go_on_after(epoch)
        if self.world.is_main:
            print(f"precision: {self.objective.precision}", file=sys.stderr, flush=True)
            write_results(self.folder, self.options, self.progressed, self.description)

    def _go_on_after(self, epoch: int) -> None:
        """Go on with the weights that an epoch left, here or in weaver-core, and a new optimizer.

        Raises InputError where they are not kept.
        """
        uri = state_uri(self.options.model_prefix, epoch)
        if not storage.exists(uri):
            last = self.progressed.epoch - 1
            held = f"is after epoch {last}" if last >= 0 else "does not exist"
            raise InputError(
                f"--load-epoch {epoch}: there is no {uri}, and the checkpoint in {self.folder.uri}"
                f" {held}; leave --load-epoch out to go on from there"
            )
        weights = read_weights(uri)
        load_weights(self.network, weights, uri)
        if self.average:
            load_weights(self.average.network, weights, uri)
        options = self.options
        self.optimizer = make_optimizer(
            options.optimizer, self.network, options.start_lr, optimizer_options(options)
        )
        history = [record for record in self.progressed.history if record["epoch"] <= epoch]
        self.progressed = Progressed()
        for record in history:
            if self._is_best(record["metrics"]):
                self.progressed.best_epoch = record["epoch"]
                self.progressed.best_metric = record["metrics"]["AvgLoss"]
            self.progressed.history.append(record)
        self.progressed.epoch = epoch + 1
        if self.world.is_main:
            self._bring_back_best()
            print(
                f"note: going on after epoch {epoch} with {uri}; the optimizer's state of that"
                " epoch is not kept, it starts anew",
                file=sys.stderr,
                flush=True,
            )

    def _bring_back_best(self) -> None:
        """Make best.pt that of the epochs that count, after going back to an earlier one."""
        uri = state_uri(self.options.model_prefix, self.progressed.best_epoch)
        if self.progressed.best_epoch >= 0 and storage.exists(uri):
            self.folder.save_best(
                read_weights(uri), self.progressed, self.description["network_options"]
            )

    def _restore(self, state: State, progressed: Progressed) -> None:
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

    def _checkpoint(self) -> None:
        """Write everything that a training goes on from."""
        # for readers of the file: the schedule itself is a function of the step
        schedule = {
            "name": self.schedule.name,
            "step": self._number,
            "factor": self.schedule.factor(self._number),
        }
        state = {
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule,
            "scaler": self.scaler.state_dict(),
            "precision": self.objective.precision.name,
            "random": randomness.state(),
            "configuration": dict(self.configuration),
        }
        self.folder.save(state, self.progressed)

    def _interrupt(self) -> None:
        """Write a checkpoint and raise InterruptedRun."""
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
        """The progress bar of an epoch, training and validation together."""
        if not self.world.is_main:
            return _Silent(self._where(), total=0)
        whole = self.train.batch_size * self.world.size
        jets = self.train.num_jets if self.steps == len(self.train) else self.steps * whole
        bar = Progress(self._where(), total=jets + self.val.num_jets, unit="jets")
        bar.resume(self.progressed.batch * whole)
        return bar


def _pass(
    loader: Loader, number: int, first: int = 0
) -> contextlib.closing[Generator[Batch, None, None]]:
    """One pass over the data from batch `first` on; its reading threads end with the block."""
    return contextlib.closing(cast(Generator[Batch, None, None], loader.epoch(number, first)))


class _Silent(Progress):
    """Shows nothing: the bar of all ranks but the main one."""

    def _show(self, final: bool = False) -> None:
        pass


class _Watch:
    """Measures the time of an epoch's steps, and the share of it spent waiting for data."""

    def __init__(self, loader: Loader, progressed: Progressed) -> None:
        self.loader = loader
        self.progressed = progressed
        self.before = progressed.seconds
        self.waited = loader.wait_seconds
        self.started = time.perf_counter()

    def tick(self) -> None:
        """Note the time after a step."""
        self.progressed.seconds = self.before + time.perf_counter() - self.started

    def note(self) -> str:
        """The mean loss so far and the share of waiting, for the progress bar."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        share = (self.loader.wait_seconds - self.waited) / seconds
        loss = self.progressed.loss_sum / max(self.progressed.num_jets, 1.0)
        return f"loss {loss:.5f}, {100 * share:.0f} % waiting for data"


def write_results(
    folder: TrialFolder,
    options: TrainOptions,
    progressed: Progressed,
    description: Mapping[str, Any],
) -> None:
    """Write what follows from the checkpoint.

    That is history.json, options.json, metrics.log, and the collector's metrics file.
    """
    folder.write_results(progressed, description)
    if options.metrics_log:
        metrics_log.write(options.metrics_log, progressed.history)


def not_finite(batch: Batch, input_dicts: Mapping[str, list[str]]) -> dict[str, int]:
    """The variables and labels of a batch that hold NaN or infinity -> in how many jets."""
    affected: dict[str, int] = {}
    for group, values in batch.inputs.items():
        names = input_dicts[group]
        by_variable = values.isfinite().reshape(len(batch), len(names), -1)  # (N, C, P)
        bad = ~by_variable.all(dim=2)  # (N, C)
        for name, count in zip(names, bad.sum(dim=0), strict=True):
            affected[f"input '{name}'"] = int(count)
    for name, values in batch.labels.items():
        bad = (~values.isfinite()).reshape(len(batch), -1).any(dim=1)  # (N,)
        affected[f"label '{name}'"] = int(bad.sum())
    return {name: count for name, count in affected.items() if count}


def in_words(counts: Mapping[str, int]) -> str:
    """What `not_finite` gives, as the end of a sentence."""
    parts = []
    for name, count in counts.items():
        parts.append(f"{name} is NaN or infinite in {count:,} jet{'s' if count != 1 else ''}")
    return ", ".join(parts)


def has_ended(options: TrainOptions, progressed: Progressed) -> bool:
    """Whether a trial has had its last epoch, or --patience epochs without a better loss."""
    return ending.has_ended(
        options.num_epochs, options.patience, progressed.epoch, progressed.best_epoch
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


def optimizer_options(options: TrainOptions) -> OptionValues:
    """Put --optimizer-option and --weight-decay together.

    The clipping of gradients, which is not the optimizer's, is left out.
    """
    values = dict(options.optimizer_option)
    values.pop("clip_grad_norm", None)
    if options.weight_decay is not None:
        values["weight_decay"] = options.weight_decay
    return values


def clip_norm(options: TrainOptions) -> float | None:
    """The largest norm of the gradient, if it is limited.

    It is --clip-grad-norm, or Weaver's --optimizer-option clip_grad_norm.
    """
    return options.optimizer_option.get("clip_grad_norm", options.clip_grad_norm)
