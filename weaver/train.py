r"""Train one network on prepared jets; every trial of a search runs this program.

    python -m weaver.train --data-train RUN/data/train.json --data-val RUN/data/val.json \
        --data-config RUN/config/data.yaml --network-config RUN/config/network.py \
        --network-option fc_dim:100,dropout:0.1 --model-prefix RUN/trials/TRIAL/ \
        --regression-mode --num-epochs 5 --batch-size 500 --start-lr 1e-3 --optimizer ranger

The same command resumes an interrupted trial; for a finished trial it ends at once. Exit codes: 0
trained; 1 training failed (if it would fail again, the trial's file `failed` has the reason); 2 the
input cannot be used; 74 a disk is full; 75 the storage failed, and a later attempt may succeed; 143
stopped by SIGTERM.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from common import storage
from common.cli import run_job
from common.errors import InputError, JecError, TrainingError
from weaver.fit import compiler_cache
from weaver.fit.checkpoint import (
    Settings,
    TrialFolder,
    command_digest,
    resume_configuration,
    trial_description,
)
from weaver.fit.launch import needs_ranks, run_ranks
from weaver.fit.log_file import log_to_file
from weaver.fit.options import TrainOptions, auto_name, folds, parse
from weaver.prepared.node_cache import temporary_cache

if TYPE_CHECKING:
    import torch

    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.feed.loader import Loader
    from weaver.fit.distributed import World
    from weaver.network.network_file import NetworkFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_job(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = parse(argv)  # before torch is imported: --help and a wrong flag answer at once
    with (
        contextlib.nullcontext() if options.cache else temporary_cache(),
        compiler_cache.of_command() if options.compile else contextlib.nullcontext(),
    ):
        return _start(options, argv)


def _start(options: TrainOptions, argv: Sequence[str] | None) -> int:
    """Train, in several ranks or folds if the options say so; returns the exit code."""
    if count := needs_ranks(options, os.environ):
        words = sys.argv[1:] if argv is None else argv
        return run_ranks(count, words, auto_name(options))
    with log_to_file(options.log_file):
        trainings = folds(options) if options.cross_validation else [options]
        for number, training in enumerate(trainings):
            if len(trainings) > 1 and _is_first_rank():
                _show(f"fold {number} of {len(trainings)}: {training.model_prefix}")
            # within `logged`, so that the log file has an error too
            if code := run_job(functools.partial(run, training)):
                return code
    return 0


def run(options: TrainOptions) -> None:
    """Train, and predict where there are test data; or only predict, export, or print."""
    if options.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    if options.export_onnx:
        from weaver.export import export

        export(options)
    elif options.print:
        from weaver.network_summary import show

        show(options)
    elif options.profile:
        from weaver.network_summary import profile

        profile(options)
    elif options.io_test:
        from weaver.io_test import read_an_epoch

        read_an_epoch(options)
    else:
        if options.trains:
            train(options)
        if options.data_test and options.runs("test") and _is_first_rank():
            from weaver.predict import write_predictions

            write_predictions(options)


def train(options: TrainOptions) -> None:
    """Train, or resume a training; a finished one returns at once.

    Raises InputError for options, data or a network that cannot be used, TrainingError for a loss
    that is not finite, ClusterError for a lost rank, StorageError, and InterruptedRun.
    """
    # Here rather than above: they import torch.
    import torch

    from weaver.feed.dataset import Dataset
    from weaver.fit.allocator import hint
    from weaver.fit.checkpoint import read_weights
    from weaver.fit.data_configs import training_configs, validation_with_derived_numbers
    from weaver.fit.distributed import ranks, select_device
    from weaver.network.network_file import load_network

    # All checks that need no data come before the data are opened.
    folder = TrialFolder(storage.absolute(options.model_prefix))
    data_config, val_config = training_configs(options)
    network = load_network(options.network_config)
    network.check_options(options.network_option)
    configuration = resume_configuration(options, data_config, val_config, network)
    command = command_digest(configuration, (*options.data_train, *options.data_val))
    folder.check_no_failure_marker(command)
    if not options.lr_finder and _is_finished(options, folder, configuration):
        return
    if options.load_model_weights:
        read_weights(options.load_model_weights)

    device = select_device(options.gpus)
    if device.type == "cpu" and _is_first_rank():
        _show(hint(dict(os.environ), sys.platform))
    if options.deterministic:
        # read when cuBLAS starts; without it torch refuses matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False

    copy_inputs = options.copy_inputs
    train_part, val_part = options.parts
    train_set = Dataset.open(
        " ".join(options.data_train),
        data_config,
        copy=copy_inputs,
        part=train_part,
        most_files=options.most_files,
    )
    val_set = Dataset.open(
        " ".join(options.data_val or options.data_train),
        validation_with_derived_numbers(train_set.data_config, val_config),
        validation=True,
        copy=copy_inputs,
        part=val_part,
        most_files=options.most_files,
    )
    with ranks(device, options.backend) as world, _failure_marker(folder, world, command):
        if data_config.missing_preprocess_params and world.is_main:
            folder.save_derived_parameters(train_set.data_config)
        _fit(options, world, folder, network, configuration, command, train_set, val_set)


def _fit(
    options: TrainOptions,
    world: World,
    folder: TrialFolder,
    network: NetworkFile,
    configuration: Settings,
    command: str,
    train_set: Dataset,
    val_set: Dataset,
) -> None:
    """Build the network, the loaders and the training loop, and run it."""
    import numpy as np
    import torch

    from weaver.fit import disk_need
    from weaver.fit.fit import Fit
    from weaver.fit.step_memory import warning
    from weaver.network.forward_check import PROBE_JETS, check_class_numbers, check_forward
    from weaver.network.network_file import check_loss
    from weaver.network.objective import Objective
    from weaver.network.precision import choose

    torch.manual_seed(options.seed)
    train, val = _loaders(options, world, train_set, val_set)
    data_config = train_set.data_config
    precision = choose(options.precision_on(world.device.type), world.device)
    if (
        world.is_main
        and precision.name == "float32"
        and options.requested_precision in ("bf16", "fp16")
    ):
        _show("note: --use-amp has no effect on a CPU, as in weaver-core; --precision bf16 has")

    # an error in an option of the network or the optimizer would occur again
    with _failure_marker(folder, world, command, InputError):
        model = _network(options, network, data_config)
        first_jets = train_set.batch(np.arange(min(len(train_set), PROBE_JETS)), world.device)
        outputs = check_forward(
            model.to(world.device),
            first_jets,
            data_config,
            network,
            regression=options.regression_mode,
            precision=precision,
        )
        if data_config.label_type == "custom" and not options.regression_mode:
            name = data_config.label_names[0]
            for data_set in (train_set, val_set):
                check_class_numbers(data_set.label(name), name, outputs)
        if world.is_main:
            _show(warning(model, train_set, train.batch_size, precision, world.device))
        loss = network.loss(
            data_config,
            options.network_option,
            options.weaver_options,
            regression=options.regression_mode,
        )
        check_loss(network.uri, loss)
        fit = Fit(
            network=model,
            objective=Objective(
                data_config, loss, regression=options.regression_mode, precision=precision
            ),
            train=train,
            val=val,
            options=options,
            world=world,
            folder=folder,
            configuration=configuration,
            description=trial_description(options, model),
        )
    if world.is_main and not options.lr_finder:
        keeps_epochs = not options.metrics_log and not options.auto_clean
        num_bytes = disk_need.trial_bytes(
            sum(tensor.numel() for tensor in model.state_dict().values()),
            averages=bool(options.ema_decay),
            epoch_files=options.num_epochs if keeps_epochs else 1,
        )
        disk_need.require_for_training(folder.uri, num_bytes)
    if options.lr_finder:
        from weaver.fit.lr_finder import run_lr_finder

        run_lr_finder(fit, options.lr_finder)
    else:
        fit.run()


def _network(
    options: TrainOptions, network: NetworkFile, data_config: DataConfig
) -> torch.nn.Module:
    """Build the network, with its start weights and frozen parameters."""
    from weaver.fit.start_weights import freeze, start_from
    from weaver.network.construction_limit import limit_construction
    from weaver.network.network_file import check_is_module

    with limit_construction(network.uri, limits_memory=False):
        model, _ = network.build(
            data_config,
            options.network_option,
            options.weaver_options,
            mixed_precision=options.requested_precision not in ("auto", "float32"),
        )
    check_is_module(network.uri, model)
    if options.load_model_weights:
        start_from(model, options.load_model_weights, options.exclude_model_weights)
    if options.freeze_model_weights:
        freeze(model, options.freeze_model_weights)
    return model


def _loaders(
    options: TrainOptions, world: World, train_set: Dataset, val_set: Dataset
) -> tuple[Loader, Loader]:
    """Make the loaders of training and validation jets for this rank."""
    from weaver.feed.loader import Loader

    train = Loader(
        train_set,
        world.share_of(options.batch_size),
        shuffle=True,
        seed=options.seed,
        fraction=options.data_fraction,
        in_memory=options.in_memory,
        rank=world.rank,
        world_size=world.size,
        device=str(world.device),
        # as weaver-core; a network with batch normalisation cannot train on one jet
        drop_last=True,
    )
    val = Loader(
        val_set,
        world.share_of(options.batch_size_val or options.batch_size),
        shuffle=False,
        seed=options.seed,
        fraction=options.fraction_val(len(val_set)),
        in_memory=options.in_memory if options.in_memory_val is None else options.in_memory_val,
        rank=world.rank,
        world_size=world.size,
        device=str(world.device),
    )
    return train, val


@contextlib.contextmanager
def _failure_marker(
    folder: TrialFolder, world: World, command: str, kind: type[JecError] = TrainingError
) -> Iterator[None]:
    """Write the trial's file `failed` if the block raises an error of `kind`, which will repeat."""
    try:
        yield
    except kind as error:
        if world.is_main:
            folder.write_failure_marker(str(error), command)
        raise


def _is_finished(options: TrainOptions, folder: TrialFolder, configuration: Settings) -> bool:
    """Return whether the trial has had its last epoch. If so, its results are written again."""
    from weaver.fit.fit import has_ended, write_results

    checkpoint = folder.load(configuration)
    description = folder.path("options.json")
    if checkpoint is None or not storage.exists(description):
        return False
    trial = checkpoint[1]
    goes_back = options.load_epoch is not None and trial.epoch != options.load_epoch + 1
    if goes_back or not has_ended(options, trial):
        return False
    if _is_first_rank():
        # in a new pod the metrics file is empty; Katib would count the trial as failed
        write_results(folder, options, trial, storage.read_json(description))
        _show(
            f"{folder.uri} is finished: best epoch {trial.best_epoch}, AvgLoss"
            f" {trial.best_metric:.5f}"
        )
    return True


def _is_first_rank() -> bool:
    """Return whether this process shows messages, before the ranks are connected."""
    return os.environ.get("RANK", "0") == "0"


def _show(line: str | None) -> None:
    """Print a line on stderr, if there is one."""
    if line:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
