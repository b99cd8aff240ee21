"""Train one network on prepared jets: the program of every trial.

    python -m weaver.train --data-train RUN/data/train.json --data-val RUN/data/val.json \\
        --data-config RUN/config/data.yaml --network-config RUN/config/network.py \\
        --network-option fc_dim:100,dropout:0.1 --model-prefix RUN/trials/TRIAL/ \\
        --regression-mode --num-epochs 5 --batch-size 500 --start-lr 1e-3 --optimizer ranger

Started again with the same command it goes on where it was; a finished trial ends at once. Exit
codes: 0 trained, 1 training failed (with the reason in the trial's file `failed` if it would fail
again), 2 the input cannot be used, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from common import storage
from common.errors import InputError, JecError, TrainingError
from weaver.fit.options import TrainOptions, parse


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parse(argv)  # before torch is imported: --help and a wrong flag answer at once
    try:
        run(options)
    except JecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def run(options: TrainOptions) -> None:
    """Do what the options ask for: train, and predict where there are test data; or only predict,
    export, or describe the network.
    """
    if options.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    if options.export_onnx:
        from weaver.export import export

        export(options)
    elif options.print:
        from weaver.network_summary import show

        show(options)
    else:
        if options.trains:
            train(options)
        if (
            options.data_test
            and options.run_mode != "train,val"
            and os.environ.get("RANK", "0") == "0"
        ):
            from weaver.predict import write_predictions

            write_predictions(options)


def train(options: TrainOptions) -> None:
    """Train, or go on training, or see that nothing is left to do."""
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset
    from weaver.fit.checkpoint import TrialFolder
    from weaver.fit.distributed import ranks, select_device
    from weaver.network.network_file import load_network

    folder = TrialFolder(storage.absolute(options.model_prefix))
    folder.check_not_failed()
    data_config, network = (
        DataConfig.load(options.data_config),
        load_network(options.network_config),
    )
    network.check_options(options.network_option)
    configuration = _configuration(options, data_config, network)
    if not options.lr_finder and _finished(options, folder, configuration):
        return
    device = select_device(options.gpus)
    _say_hint(device)
    if options.deterministic:
        _only_deterministic()
    datasets = [Dataset.open(" ".join(options.data_train), data_config, copy=options.copy_inputs)]
    datasets.append(
        Dataset.open(
            " ".join(options.data_val),
            datasets[0].data_config,
            validation=True,
            copy=options.copy_inputs,
        )
    )
    with ranks(device, options.backend) as world, _marked(folder, world):
        _fit(options, world, folder, network, configuration, datasets)


def _fit(
    options: TrainOptions, world, folder, network, configuration: dict[str, Any], datasets: list
) -> None:
    """Build everything that a training consists of, and run it."""
    import torch

    from weaver.fit.fit import Fit
    from weaver.network.objective import Objective
    from weaver.network.precision import choose

    torch.manual_seed(options.seed)
    train, val = _loaders(options, world, datasets)
    data_config, precision = (
        train.dataset.data_config,
        choose(options.asked_precision, world.device),
    )
    # an option that the network or the optimizer refuses would be refused again
    with _marked(folder, world, InputError):
        model = _network(options, network, data_config)
        _say_memory(model, train, precision, world)
        loss = network.loss(data_config, options.network_option)
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
            description=_description(options, model),
        )
    if options.lr_finder:
        from weaver.fit.lr_finder import find

        find(fit, options.lr_finder)
    else:
        fit.run()


def _network(options: TrainOptions, network, data_config):
    """The network to train, with the weights that it is to start from."""
    from weaver.fit.start_weights import freeze, start_from

    model, _ = network.build(
        data_config,
        options.network_option,
        use_amp=options.asked_precision not in ("auto", "float32"),
        compile_model=options.compile,
    )
    if options.load_model_weights:
        start_from(model, options.load_model_weights, options.exclude_model_weights)
    if options.freeze_model_weights:
        freeze(model, options.freeze_model_weights)
    return model


def _only_deterministic() -> None:
    """Let PyTorch refuse operations whose result depends on the order in which threads
    come to add.
    """
    import torch

    # read when cuBLAS starts; without it torch refuses matrix products
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _loaders(options: TrainOptions, world, datasets: list):
    """Loaders of training and validation jets for this rank."""
    from weaver.feed.loader import Loader

    share = {
        "rank": world.rank,
        "world_size": world.size,
        "device": str(world.device),
        "seed": options.seed,
    }
    size, size_val = (
        world.share_of(options.batch_size),
        world.share_of(options.batch_size_val or options.batch_size),
    )
    train = Loader(
        datasets[0],
        size,
        shuffle=True,
        fraction=options.data_fraction,
        in_memory=options.in_memory,
        **share,
    )
    fraction, in_memory = (
        options.fraction_val(len(datasets[1])),
        options.in_memory if options.in_memory_val is None else options.in_memory_val,
    )
    return train, Loader(
        datasets[1], size_val, shuffle=False, fraction=fraction, in_memory=in_memory, **share
    )


@contextlib.contextmanager
def _marked(folder, world, kind: type[JecError] = TrainingError) -> Iterator[None]:
    """Leave the trial's `failed` marker where an error of a kind that will repeat passes."""
    try:
        yield
    except kind as error:
        if world.is_main:
            folder.mark_failed(str(error))
        raise


def _finished(options: TrainOptions, folder, configuration: dict[str, Any]) -> bool:
    """True if the trial has seen its last epoch; its results are then written again, as a new pod
    has an empty metrics file.
    """
    from weaver.fit.fit import check_load_epoch, has_ended, write_results

    found, described = folder.load(configuration), folder.path("options.json")
    if not found or not has_ended(options, found[1]) or not storage.exists(described):
        return False
    check_load_epoch(options, found[1], folder.uri)
    if os.environ.get("RANK", "0") == "0":
        write_results(folder, options, found[1], storage.read_json(described))
        print(
            f"{folder.uri} is finished: best epoch {found[1].best_epoch}, AvgLoss"
            f" {found[1].best_metric:.5f}",
            file=sys.stderr,
        )
    return True


def _configuration(options: TrainOptions, data_config, network) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    import hashlib

    return {
        **options.settings(),
        "network_option": dict(options.network_option),
        "network_config": hashlib.sha256(network.source.encode()).hexdigest()[:16],
        "data_config": data_config.digest()[:16],
        "data_train": " ".join(options.data_train),
        "data_val": " ".join(options.data_val),
    }


def _description(options: TrainOptions, model) -> dict[str, Any]:
    """The part of options.json that is known before training."""
    import numpy
    import torch

    return {
        "network_options": dict(options.network_option),
        "train_options": options.settings(),
        "network_config": storage.absolute(options.network_config),
        "data_config": storage.absolute(options.data_config),
        "num_parameters": sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        ),
        "seed": options.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }


def _say_memory(model, train, precision, world) -> None:
    from weaver.fit.step_memory import warning

    if world.is_main and (
        line := warning(model, train.dataset, train.batch_size, precision, world.device)
    ):
        print(line, file=sys.stderr, flush=True)


def _say_hint(device) -> None:
    from weaver.fit.allocator import hint

    if (
        device.type == "cpu"
        and os.environ.get("RANK", "0") == "0"
        and (line := hint(dict(os.environ), sys.platform))
    ):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
