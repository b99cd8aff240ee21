"""The training loop: steps, validation, the best weights, and a checkpoint after each epoch.

A run that was killed resumes at its last checkpoint and ends with the same weights as an
uninterrupted one, on a CPU to the bit: the order of jets, the learning rate and the random numbers
of a step depend only on its number.

No step waits for the device. On a GPU the losses stay there, and are checked every CHECK_STEPS
steps.
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
from common.storage import space
from weaver.feed.dataset import Batch
from weaver.feed.loader import Loader
from weaver.fit import compiler_cache, ending, metrics_log, randomness
from weaver.fit.average import Average
from weaver.fit.checkpoint import (
    State,
    TrialFolder,
    TrialProgress,
    load_weights,
    read_weights,
    state_uri,
    write_state_dicts,
)
from weaver.fit.distributed import World, report_lost_rank
from weaver.fit.metrics_log import EpochRecord
from weaver.fit.mlflow_trial import MlflowTrial, parameters_of
from weaver.fit.optimizers import make_optimizer, set_rate
from weaver.fit.options import OptionValues, TrainOptions
from weaver.fit.schedulers import Schedule
from weaver.fit.stop import StopCompiling, StopSignal
from weaver.fit.tensorboard import TensorBoard
from weaver.network.objective import Count, Objective
from weaver.network.precision import Precision

# steps between two checks of the losses on a GPU; to check each step would make it wait for the GPU
CHECK_STEPS = 20
HISTOGRAM_JETS = 100_000  # most validation jets in the histogram of responses

StepLoss = tuple[torch.Tensor, Count]
"""Sum of a rank's losses in one step, and its number of jets (or sum of weights)."""


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

        configuration: a checkpoint may be resumed only with an equal one. description: the content
        of options.json without the results. Raises InputError for options that the optimizer does
        not accept, and for a network that cannot be compiled.
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
        # without the wrapper that averages gradients over ranks
        self.network: torch.nn.Module = getattr(self.model, "module", self.model)
        self.average = Average(self.network, options.ema_decay) if options.ema_decay else None
        self.eval_network = self.average.network if self.average else self.network
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
        self.trial = TrialProgress()
        self.stop = StopSignal()
        if options.compile:
            with self.compiling():
                for module in {self.network, self.eval_network}:
                    module.compile(**options.compiler_option)

    def run(self) -> TrialProgress:
        """Train to the last epoch; returns the progress with the whole history.

        Raises TrainingError for a loss that is not finite, ClusterError if another rank is lost,
        InputError for a checkpoint that cannot be resumed, and InterruptedRun, after writing a
        checkpoint, when a signal stops it.
        """
        self._resume()
        tensorboard = self.options.tensorboard_log_dir
        if tensorboard == "none" or not self.world.is_main:
            tensorboard = ""
        elif tensorboard == "auto":
            tensorboard = self.folder.path("tensorboard")
        with (
            self.stop,
            self.compiling(),
            TensorBoard(tensorboard, self.trial.epoch) as board,
            MlflowTrial(
                self.folder.uri, parameters_of(self.options), is_active=self.world.is_main
            ) as mlflow,
        ):
            while not has_ended(self.options, self.trial):
                self._epoch(board)
                mlflow.epochs(self.trial.history)
            board.settings(
                {**self.options.settings(), **self.description["network_options"]},
                self.trial.best_metric,
            )
        return self.trial

    def _epoch(self, board: TensorBoard) -> None:
        """Train and validate once, and store the result."""
        start_time = time.perf_counter()
        earlier_seconds = self.trial.seconds  # of this epoch, before the training was interrupted

        with self._progress() as progress:
            self._train(progress)
            metrics, responses = self._validate(progress)
            record = self._record(metrics, earlier_seconds + time.perf_counter() - start_time)
            is_best = record["epoch"] == self.trial.best_epoch
            progress.advance(
                0,
                note=f"loss {record['train_loss']:.5f}, validation {record['val_loss']:.5f}"
                f"{' (best)' if is_best else ''}, {record['jets_per_second']:,.0f} jets/s in"
                " training",
            )

        self.trial.next_epoch()
        if self.world.is_main:
            # Best weights first, then the checkpoint, then the files that are computed from it. If
            # the process is killed in between, the epoch is repeated or nothing is lost.
            if is_best:
                self.folder.save_best(
                    self.eval_network.state_dict(),
                    self.trial,
                    self.description["network_options"],
                )
            write_state_dicts(
                self.eval_network.state_dict(), self.options, record["epoch"], is_best=is_best
            )
            self._checkpoint()
            write_results(self.folder, self.options, self.trial, self.description)
            board.epoch(record, responses)

    # ----------------------------------------------------------------------------------- training

    def _train(self, progress: Progress) -> None:
        """Do the remaining steps of this epoch."""
        self.model.train()
        watch = _Stopwatch(self.train, self.trial)
        losses: list[StepLoss] = []
        with contextlib.closing(self.batches()) as batches:
            for batch, place in batches:
                losses.append(self._step(batch, place))
                watch.tick()
                due = len(losses) >= self.check_steps or self.trial.batch == self.steps
                # several ranks must stop at the same step: where all of them check the losses
                if due or (self.world.size == 1 and self.stop.signal_number):
                    stop = self._add_losses(losses)
                    progress.advance(0, note=watch.note())
                    if stop:
                        self._interrupt()
                progress.advance(self._jets(self.train, place))

    def batches(self) -> Generator[tuple[Batch, int], None, None]:
        """Yield the remaining batches of this epoch, each with its number in its pass.

        With --steps-per-epoch an epoch need not end with a pass: the next one continues where it
        ended.
        """
        number = self._number
        end = (self.trial.epoch + 1) * self.steps
        while number < end:
            turn, first = divmod(number, len(self.train))
            with _pass(self.train, turn, first) as batches:
                for place in range(first, min(len(self.train), first + end - number)):
                    yield next(batches), place
                    number += 1

    def step_at(self, batch: Batch, place: int, rate: float) -> float:
        """Do one step with the learning rate `rate` in place of the schedule's.

        place: the batch's number in its pass. Returns the mean loss over all ranks before the step.
        """
        loss, jets = self._step(batch, place, rate)
        loss_sum, count = self.world.sum([float(loss), float(jets)])
        return loss_sum / count

    def _step(self, batch: Batch, place: int, rate: float | None = None) -> StepLoss:
        """Do one step of the optimizer, with the schedule's learning rate or with `rate`.

        Returns the sum of this rank's losses before the step. Nothing here waits for the device.
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
        with report_lost_rank(self.world):
            loss, count, _ = self.objective(
                self.model, batch, has_padding=self._has_padding(self.train, place)
            )
            self.scaler.scale(self._weighted_for_ddp(loss, count, place)).backward()

        # Lookahead has the attributes of an optimizer that a scaler uses: param_groups and step
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        if (limit := clip_norm(options)) is not None:
            self.scaler.unscale_(optimizer)  # the limit applies to the gradient without the scale
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network, number)
        self.trial.batch += 1
        return loss.detach().double() * count, count

    def _weighted_for_ddp(self, loss: torch.Tensor, count: Count, place: int) -> torch.Tensor:
        """Return this rank's loss times (jets of this rank) * (ranks) / (jets of all ranks).

        DDP averages the gradients over ranks, whatever number of jets each has. With this factor
        the average is the gradient of the mean loss over all jets of the batch. loss: mean over
        this rank's jets. count: their number, or a tensor with the sum of their weights.
        place: the batch's number in its pass.
        """
        if self.world.size == 1:
            return loss
        if not isinstance(count, torch.Tensor):
            return loss * (count * self.world.size / self._jets(self.train, place))
        # Each rank knows only the sum of its own weights.
        total = self.world.sum_on_device(count).clamp(min=torch.finfo(count.dtype).tiny)
        return loss * (count * self.world.size / total)

    def _add_losses(self, losses: list[StepLoss]) -> bool:
        """Add the losses of the last steps to the epoch's sums, and clear the list.

        Returns True if a signal stopped any rank. Raises TrainingError, on all ranks, for a loss
        that is not finite.
        """
        trial = self.trial
        device = self.world.device

        # One sum over ranks for all numbers: loss, jets, loss, jets, ..., stop flag.
        terms: list[torch.Tensor] = []
        for loss, count in losses:
            terms.append(loss.double())
            terms.append(torch.as_tensor(count, dtype=torch.float64, device=device))
        stop_flag = float(bool(self.stop.signal_number))
        terms.append(torch.tensor(stop_flag, dtype=torch.float64, device=device))
        *sums, stops = self.world.sum(torch.stack(terms))

        batch = trial.batch - len(losses)
        for loss_sum, num_jets in zip(sums[::2], sums[1::2], strict=True):
            batch += 1
            if not math.isfinite(loss_sum):
                cause = self._cause(trial.epoch * self.steps + batch - 1)
                raise TrainingError(
                    f"the loss became {loss_sum} in {self._where()}, batch {batch}/{self.steps};"
                    f" {cause}"
                )
            trial.loss_sum += loss_sum
            trial.num_jets += num_jets
        losses.clear()
        return stops > 0

    def _cause(self, number: int) -> str:
        """Explain a loss that is not finite by this rank's jets in step `number`, and advise.

        Returns the end of a sentence.
        """
        turn, place = divmod(number, len(self.train))
        with _pass(self.train, turn, place) as batches:
            counts = not_finite(next(batches), self.train.dataset.data_config.input_dicts)
        if counts:
            return f"its jets hold values that are not finite: {describe_counts(counts)}"
        return "its jets are finite; a smaller --start-lr may help"

    def _cause_in_validation(self) -> str:
        """Explain a validation loss that is not finite by this rank's jets."""
        counts: Counter[str] = Counter()
        with _pass(self.val, 0) as batches:
            for batch in batches:
                counts.update(not_finite(batch, self.val.dataset.data_config.input_dicts))
        if counts:
            return f"the validation jets hold values that are not finite: {describe_counts(counts)}"
        return "all validation jets are finite; a smaller --start-lr may help"

    def _jets(self, loader: Loader, place: int) -> int:
        """Return the number of jets of all ranks in one batch of a pass, without padding."""
        whole = loader.batch_size * self.world.size
        return min(whole, loader.num_jets - place * whole)

    def _has_padding(self, loader: Loader, place: int) -> bool:
        """Return whether the batch may contain padding: jets that do not count."""
        # with several ranks, the last batch of a pass is padded to the same size on all of them
        return self.world.size > 1 and place == len(loader) - 1

    @property
    def _number(self) -> int:
        """The number of the next step, counted over all epochs."""
        return self.trial.epoch * self.steps + self.trial.batch

    # --------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def _validate(self, progress: Progress) -> tuple[dict[str, float], torch.Tensor]:
        """Compute the metrics of the validation jets of all ranks.

        Returns (name -> metric, responses (n,) of at most about HISTOGRAM_JETS jets of this rank,
        on the CPU).
        """
        self.eval_network.eval()
        names = self.objective.metrics
        # number of jets (or sum of weights), then each metric times it
        sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.world.device)
        responses: list[torch.Tensor] = []
        with _pass(self.val, 0) as batches:
            for place, batch in enumerate(batches):
                loss, count, outcome = self.objective(
                    self.eval_network, batch, has_padding=self._has_padding(self.val, place)
                )
                sums[0] += count
                sums[1] += loss.double() * count
                sums[2:] += self.objective.errors(*outcome)
                if len(responses) * self.val.batch_size < HISTOGRAM_JETS:
                    responses.append(self.objective.responses(*outcome))
                progress.advance(self._jets(self.val, place))
                if self.stop.signal_number and self.world.size == 1:
                    self._interrupt()

        stop_flag = sums.new_tensor([float(bool(self.stop.signal_number))])
        num_jets, *totals, stop = self.world.sum(torch.cat([sums, stop_flag]))
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
        """Add this epoch's record to the history, and update the best epoch."""
        trial = self.trial
        last_step = (trial.epoch + 1) * self.steps - 1
        learning_rate = self.options.start_lr * self.schedule.factor(last_step)
        jets_per_second = trial.num_jets / max(trial.seconds, 1e-9)
        speeds = {"learning_rate": learning_rate, "jets_per_second": jets_per_second}
        record: EpochRecord = {
            "epoch": trial.epoch,
            "train_loss": trial.loss_sum / max(trial.num_jets, 1.0),
            "val_loss": metrics["AvgLoss"],
            "learning_rate": learning_rate,
            "jets_per_second": jets_per_second,
            "seconds": seconds,
            "time": metrics_log.now(),
            "metrics": {**metrics, **speeds},
        }
        trial.history.append(record)
        if self._is_best(metrics):
            trial.best_epoch = trial.epoch
            trial.best_metric = metrics["AvgLoss"]
        return record

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an epoch is better than all before it, by weaver-core's rule.

        A regression compares the loss, a classification the accuracy.
        """
        trial = self.trial
        if self.objective.regression or trial.best_epoch < 0:
            return metrics["AvgLoss"] < trial.best_metric
        for record in trial.history:
            if record["epoch"] == trial.best_epoch:
                return metrics["AvgAcc"] > record["metrics"]["AvgAcc"]
        return True

    # ------------------------------------------------------------------------------------ storage

    def _resume(self) -> None:
        """Load the last checkpoint, if there is one.

        Raises InputError if the ranks find different ones.
        """
        if checkpoint := self.folder.load(self.configuration):
            self._restore(*checkpoint)
        if self.world.sum([self._number])[0] != self._number * self.world.size:
            raise InputError(
                f"the ranks found different checkpoints in {self.folder.uri}; --model-prefix must"
                " be storage that all ranks share"
            )
        epoch = self.options.load_epoch
        if epoch is not None and self.trial.epoch != epoch + 1:
            self._resume_after_epoch(epoch)
        if self.world.is_main:
            print(f"precision: {self.objective.precision}", file=sys.stderr, flush=True)
            write_results(self.folder, self.options, self.trial, self.description)

    def _resume_after_epoch(self, epoch: int) -> None:
        """Continue after `epoch` with its weights (of this program or weaver-core), new optimizer.

        Raises InputError if the file of these weights does not exist.
        """
        uri = state_uri(self.options.model_prefix, epoch)
        if not storage.exists(uri):
            last = self.trial.epoch - 1
            state = f"is after epoch {last}" if last >= 0 else "does not exist"
            raise InputError(
                f"--load-epoch {epoch}: there is no {uri}, and the checkpoint in {self.folder.uri}"
                f" {state}; leave --load-epoch out to resume from there"
            )
        weights = read_weights(uri)
        load_weights(self.network, weights, uri)
        if self.average:
            load_weights(self.average.network, weights, uri)
        options = self.options
        self.optimizer = make_optimizer(
            options.optimizer, self.network, options.start_lr, optimizer_options(options)
        )
        history = [record for record in self.trial.history if record["epoch"] <= epoch]
        self.trial = TrialProgress()
        for record in history:
            if self._is_best(record["metrics"]):
                self.trial.best_epoch = record["epoch"]
                self.trial.best_metric = record["metrics"]["AvgLoss"]
            self.trial.history.append(record)
        self.trial.epoch = epoch + 1
        if self.world.is_main:
            self._restore_best()
            print(
                f"note: resuming after epoch {epoch} with {uri}; the optimizer's state of that"
                " epoch is not stored, it starts new",
                file=sys.stderr,
                flush=True,
            )

    def _restore_best(self) -> None:
        """Write best.pt again, from the epochs up to the one after which training resumes."""
        uri = state_uri(self.options.model_prefix, self.trial.best_epoch)
        if self.trial.best_epoch >= 0 and storage.exists(uri):
            self.folder.save_best(
                read_weights(uri), self.trial, self.description["network_options"]
            )

    def _restore(self, state: State, trial: TrialProgress) -> None:
        self.trial = trial
        where = self.folder.path("checkpoint.pt")
        load_weights(self.network, state["model"], where)
        if self.average:
            load_weights(self.average.network, state["average"], where)
        self.optimizer.load_state_dict(state["optimizer"])
        # `auto` may choose another precision on this machine; the trial keeps its own
        if state["precision"] != self.objective.precision.name:
            self.objective.precision = Precision(state["precision"], "as in the checkpoint")
        self.scaler = self.objective.precision.scaler(self.world.device)
        self.scaler.load_state_dict(state["scaler"])
        randomness.restore(state["random"])

    def _checkpoint(self) -> None:
        """Write checkpoint.pt."""
        # for readers of the file only: the schedule is a function of the step
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
        self.folder.save(state, self.trial)

    def _interrupt(self) -> None:
        """Write a checkpoint and raise InterruptedRun."""
        if self.world.is_main:
            self._checkpoint()
        steps = f"{self.trial.batch} of {self.steps} steps"
        error = InterruptedRun(
            f"stopped by a signal in {self._where()} after {steps}; the same command resumes there"
        )
        error.exit_code = self.stop.exit_code
        raise error

    # -------------------------------------------------------------------------------- compilation

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Turn an error of torch.compile in the block into one sentence, if it is used.

        Raises InputError for a network that cannot be compiled, FullDiskError where the compilers
        have no room, and InterruptedRun where a signal ended them: Ctrl-C is sent to them, too.
        """
        if not self.options.compile:
            yield
            return
        folders = compiler_cache.folders()
        try:
            with compiler_cache.of_compilers(), space.catch_full_disk(*folders):
                yield
        except StopCompiling:
            raise self.stop.while_compiling() from None
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            if self.stop.signal_number:
                raise self.stop.while_compiling() from error
            # compilers speak the user's language
            for folder in folders:
                if space.is_full(folder):
                    raise space.error_of_folder(folder) from error
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"the network cannot be compiled ({reason}); leave out --compile"
            ) from error

    # ----------------------------------------------------------------------------------- messages

    def _where(self) -> str:
        return f"epoch {self.trial.epoch + 1}/{self.options.num_epochs}"

    def _progress(self) -> Progress:
        """Return the progress bar of an epoch, training and validation together."""
        if not self.world.is_main:
            return _Silent(self._where(), total=0)
        whole = self.train.batch_size * self.world.size
        jets = self.train.num_jets if self.steps == len(self.train) else self.steps * whole
        bar = Progress(self._where(), total=jets + self.val.num_jets, unit="jets")
        bar.resume(self.trial.batch * whole)
        return bar


def _pass(
    loader: Loader, number: int, first: int = 0
) -> contextlib.closing[Generator[Batch, None, None]]:
    """Iterate over one pass over the data, from batch `first`.

    At the end of the block the reading threads are stopped.
    """
    return contextlib.closing(cast(Generator[Batch, None, None], loader.epoch(number, first)))


class _Silent(Progress):
    """A progress bar that shows nothing, for all ranks but the main one."""

    def _show(self, final: bool = False) -> None:
        pass


class _Stopwatch:
    """Measure the time of an epoch's steps, and the fraction of it spent waiting for data."""

    def __init__(self, loader: Loader, trial: TrialProgress) -> None:
        self.loader = loader
        self.trial = trial
        self.seconds_before = trial.seconds
        self.wait_before = loader.wait_seconds
        self.start_time = time.perf_counter()

    def tick(self) -> None:
        """Store the time after a step."""
        self.trial.seconds = self.seconds_before + time.perf_counter() - self.start_time

    def note(self) -> str:
        """Return the mean loss so far and the share of time spent waiting, for the progress bar."""
        seconds = max(time.perf_counter() - self.start_time, 1e-9)
        share = (self.loader.wait_seconds - self.wait_before) / seconds
        loss = self.trial.loss_sum / max(self.trial.num_jets, 1.0)
        return f"loss {loss:.5f}, {100 * share:.0f} % waiting for data"


def write_results(
    folder: TrialFolder,
    options: TrainOptions,
    trial: TrialProgress,
    description: Mapping[str, Any],
) -> None:
    """Write history.json, options.json, metrics.log, and the metrics file of Katib's collector."""
    folder.write_results(trial, description)
    if options.metrics_log:
        metrics_log.write(options.metrics_log, trial.history)


def not_finite(batch: Batch, input_dicts: Mapping[str, list[str]]) -> dict[str, int]:
    """Count the jets of a batch with NaN or infinity: variable or label -> number of jets.

    input_dicts: input group -> its variables. Only counts above 0 are returned.
    """
    counts: dict[str, int] = {}
    for group, values in batch.inputs.items():
        names = input_dicts[group]
        by_variable = values.isfinite().reshape(len(batch), len(names), -1)  # (N, C, P)
        bad = ~by_variable.all(dim=2)  # (N, C)
        for name, count in zip(names, bad.sum(dim=0), strict=True):
            counts[f"input '{name}'"] = int(count)
    for name, values in batch.labels.items():
        bad = (~values.isfinite()).reshape(len(batch), -1).any(dim=1)  # (N,)
        counts[f"label '{name}'"] = int(bad.sum())
    return {name: count for name, count in counts.items() if count}


def describe_counts(counts: Mapping[str, int]) -> str:
    """Describe the counts of `not_finite` in words, as the end of a sentence."""
    parts = []
    for name, count in counts.items():
        parts.append(f"{name} is NaN or infinite in {count:,} jet{'s' if count != 1 else ''}")
    return ", ".join(parts)


def has_ended(options: TrainOptions, trial: TrialProgress) -> bool:
    """Return whether a trial has had its last epoch, or --patience epochs without improvement."""
    return ending.has_ended(options.num_epochs, options.patience, trial.epoch, trial.best_epoch)


def optimizer_options(options: TrainOptions) -> OptionValues:
    """Combine --optimizer-option and --weight-decay, without clip_grad_norm (see `clip_norm`)."""
    values = dict(options.optimizer_option)
    values.pop("clip_grad_norm", None)
    if options.weight_decay is not None:
        values["weight_decay"] = options.weight_decay
    return values


def clip_norm(options: TrainOptions) -> float | None:
    """Return the largest norm of the gradient, or None for no limit.

    It is Weaver's --optimizer-option clip_grad_norm, else --clip-grad-norm.
    """
    return options.optimizer_option.get("clip_grad_norm", options.clip_grad_norm)
