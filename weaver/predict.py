r"""Load the best network of a trial, and write its predictions for the jets of a test set.

    python -m weaver.train --predict --data-test RUN/data/test.json \
        --data-config RUN/config/data.yaml --network-config RUN/config/network.py \
        --model-prefix RUN/trials/TRIAL/ --predict-output predictions.root

Columns have weaver-core's names. ROOT files (tree Events) and .npz files contain, for labels of
type simple, a column with each class's name (whether a jet belongs to it) and score_<class>; for
labels of type custom, `output`, (N,) or (N, outputs). Parquet files contain `scores`, (N,) or
(N, outputs). All of them contain the labels and the observers.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common import scratch, storage
from common.errors import InputError
from common.progress import Progress
from common.storage import Entry
from common.storage.patterns import parse as parse_patterns
from networks.options import ModelInfo
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset, prepared_folder
from weaver.feed.loader import Loader
from weaver.fit.checkpoint import (
    TrialFolder,
    load_weights,
    read_best,
    read_weights,
    state_uri,
)
from weaver.fit.data_configs import of_test_set, with_test_selection
from weaver.fit.distributed import select_device
from weaver.fit.metrics import class_metrics, regression_metrics
from weaver.fit.options import TrainOptions
from weaver.network.forward_check import PROBE_JETS, check_forward
from weaver.network.network_file import load_network
from weaver.network.objective import Objective
from weaver.network.precision import choose
from weaver.read.files import WHOLE, find

SPLIT = re.compile(r"([\w.+-]+)%(\d+)")  # name%N:pattern, which makes an output for N files

ROWS_AT_A_TIME = 2**20  # jets in a basket of ROOT predictions, as in weaver-core

Columns = dict[str, Any]
"""Name of a column -> its values, (N,) or (N, outputs), or an awkward array of N lists."""


def load_model(
    trial_uri: str, run_config_dir: str, *, for_inference: bool = False
) -> tuple[torch.nn.Module, ModelInfo, DataConfig]:
    """Load the best weights of a trial into the network of `<run_config_dir>/network.py`.

    Returns (model, model_info, data_config). The model is on the CPU and in evaluation mode. Where
    training averaged its weights (--ema-decay), they are the average. for_inference: passed to a
    network with an argument of that name; published classifiers then return softmaxed scores.
    Raises InputError where there is no best.pt, or it belongs to another network.
    """
    data_config = DataConfig.load(storage.join(run_config_dir, "data.yaml"))
    network = storage.join(run_config_dir, "network.py")
    model, info = build_best(trial_uri, network, data_config, for_inference=for_inference)
    return model, info, data_config


def with_standardisation(options: TrainOptions, data_config: DataConfig) -> DataConfig:
    """Return the data config with the numbers of its standardisation filled in.

    Under `preprocess: auto` they come from the trial's derived.json, else they are derived from
    --data-train. Raises InputError where neither exists.
    """
    prefix = storage.absolute(options.model_prefix)
    of_file = re.search(r"\.(pt|onnx)(:[\w.]+)?$", prefix)
    folder = prefix.rpartition("/")[0] if of_file else prefix
    data_config = TrialFolder(folder).with_derived_parameters(data_config)
    if not data_config.missing_preprocess_params:
        return data_config
    if not options.data_train:
        names = ", ".join(data_config.missing_preprocess_params[:3])
        raise InputError(
            f"{data_config.source} leaves the standardisation ({names}, ...) to the training data,"
            f" and {folder} holds no derived.json of it; name these data with --data-train, or give"
            " the *.auto.yaml file that weaver-core wrote as --data-config"
        )
    return Dataset.open(" ".join(options.data_train), data_config).data_config


def build_best(
    trial_uri: str,
    network_config: str,
    data_config: DataConfig,
    *,
    for_inference: bool = False,
    weaver_options: Mapping[str, bool] | None = None,
) -> tuple[torch.nn.Module, ModelInfo]:
    """Build (model, model_info) with a trial's best weights, in evaluation mode.

    weaver_options: see weaver.network.network_file.NetworkFile.build. Raises InputError where the
    trial has no best weights, or they belong to another network.
    """
    best = read_best(trial_uri)
    return _build(
        network_config,
        data_config,
        best["network_options"],
        best["model"],
        storage.join(trial_uri, "best.pt"),
        for_inference,
        weaver_options,
    )


def build_model(
    options: TrainOptions, data_config: DataConfig, *, for_inference: bool = False
) -> tuple[torch.nn.Module, ModelInfo]:
    """Build (model, model_info) with the weights of --model-prefix, in evaluation mode.

    --model-prefix is a trial's folder, a file of weights (.pt, of this project or of weaver-core),
    or a --model-prefix of weaver-core, of which the best epoch is taken. The network options come
    from the trial's best.pt, or, with weights of weaver-core, from the command line. Raises
    InputError where there are no such weights, or they belong to another network.
    """
    prefix = options.model_prefix
    theirs = state_uri(prefix)
    if not storage.exists(storage.join(prefix, "best.pt")) and storage.exists(theirs):
        prefix = theirs
    if not re.search(r"\.pt(:[\w.]+)?$", prefix):
        return build_best(
            storage.absolute(prefix),
            options.network_config,
            data_config,
            for_inference=for_inference,
            weaver_options=options.weaver_options,
        )
    return _build(
        options.network_config,
        data_config,
        options.network_option,
        read_weights(prefix),
        prefix,
        for_inference,
        options.weaver_options,
    )


def _build(
    network_config: str,
    data_config: DataConfig,
    network_options: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    where: str,
    for_inference: bool,
    weaver_options: Mapping[str, bool] | None = None,
) -> tuple[torch.nn.Module, ModelInfo]:
    """Build the network and load weights; errors name their file, `where`."""
    options = dict(weaver_options or {})
    if for_inference:
        options["for_inference"] = True
    model, info = load_network(network_config).build(data_config, network_options, options)
    load_weights(model, weights, where)
    return model.eval(), info


@torch.no_grad()
def predict(
    model: torch.nn.Module, dataset: Dataset, objective: Objective, *, batch_size: int, device: str
) -> np.ndarray:
    """Predict all jets of a data set, in its order.

    Returns (N,) for a regression with one output, else (N, outputs). Scores of classes are
    softmaxed.
    """
    loader = Loader(dataset, batch_size, shuffle=False, seed=0, device=device)
    outputs = []
    with Progress("predicting", total=len(dataset), unit="jets") as progress:
        for batch in loader.epoch(0):
            output = objective.predict(model, batch)
            if not objective.regression:
                output = output.softmax(dim=1)
            outputs.append(output.cpu().numpy())
            progress.advance(len(batch))
    return np.concatenate(outputs)


def write_predictions(options: TrainOptions) -> None:
    """Write predictions, labels and observers of the test set, as --predict asks.

    There is one file for each output name in --data-test. Raises InputError where the network or
    its weights are missing or do not fit the data.
    """
    data_config = with_standardisation(options, of_test_set(options))
    test_config = with_test_selection(options, data_config)
    device = select_device(options.gpus if options.predict_gpus is None else options.predict_gpus)
    model, _ = build_model(options, data_config)
    objective = Objective(
        data_config,
        loss=None,
        regression=options.regression_mode,
        precision=choose(options.precision_on(device.type), device),
    )
    target = output_path(options.predict_output, options.model_prefix, "predict_output")
    base, extension = os.path.splitext(target)
    for name, source in test_groups(options.data_test).items():
        dataset = open_test_set(source, test_config, options)
        check_forward(
            model.to(device),
            dataset.batch(np.arange(min(len(dataset), PROBE_JETS)), device),
            dataset.data_config,
            load_network(options.network_config),
            regression=options.regression_mode,
            precision=objective.precision,
        )
        output = predict(
            model, dataset, objective, batch_size=options.size_test, device=str(device)
        )
        uri = f"{base}_{name}{extension}" if name else target
        write_columns(uri, columns(dataset, output, scores=uri.endswith(".parquet")))

        label = np.asarray(dataset.label(data_config.label_names[0]))
        if options.regression_mode:
            # of several outputs for one target the first is the median, the others are quantiles
            is_first = output.ndim > 1 and label.ndim == 1
            metrics = regression_metrics(output[:, 0] if is_first else output, label)
        else:
            metrics = class_metrics(output, label)
        values = ", ".join(f"{metric} {value:.5f}" for metric, value in metrics.items())
        print(f"{uri}: {len(dataset):,} jets, {values}", file=sys.stderr, flush=True)


def open_test_set(
    source: list[str] | list[Entry], data_config: DataConfig, options: TrainOptions
) -> Dataset:
    """Open test data: the first --data-fraction of each file's jets, as in weaver-core.

    source: patterns or files. Of prepared data all jets are taken; a line on stderr says so.
    """
    part = (0.0, options.data_fraction)
    first = source[0]
    is_reference = len(source) == 1 and isinstance(first, str) and first.endswith(".json")
    if part != WHOLE and (is_reference or prepared_folder(source)):
        print(
            f"note: --data-fraction has no effect on the prepared test data {first}",
            file=sys.stderr,
            flush=True,
        )
        part = WHOLE
    return Dataset.open(
        source, data_config, for_training=False, copy=options.copy_inputs, part=part
    )


def output_path(path: str, model_prefix: str, *folders: str) -> str:
    """Return the path of an output file.

    A `path` without a folder is placed in the model's folder, below `folders`, as in weaver-core.
    """
    if "/" in path:
        return path
    folder = storage.absolute(model_prefix.rpartition("/")[0] or ".")
    return storage.join(folder, *folders, path)


def test_groups(words: Sequence[str]) -> dict[str, list[str] | list[Entry]]:
    """Group the test data by output: name of an output -> its patterns, or its files.

    words: those of --data-test, as in weaver-core: `name:pattern`, or `name%N:pattern` for a
    separate output (name_0, name_1, ...) for every N files. The latter returns files, because a
    pattern could not stand for a distant file with a blank in its name. Patterns without a name
    belong to the output "".
    """
    patterns: dict[str, list[str]] = {}
    steps: dict[str, int] = {}  # name -> files for each output, of names with %N
    for part in parse_patterns(words):
        name = part.sample
        if split := SPLIT.fullmatch(name):
            name = split[1]
            steps[name] = max(int(split[2]), 1)
        patterns.setdefault(name, []).append(part.without_sample)

    # names with %N come last
    groups: dict[str, list[str] | list[Entry]] = {}
    for name, texts in patterns.items():
        if name not in steps:
            groups[name] = texts
    for name, step in steps.items():
        # all files of the name, sorted, as in weaver-core
        files = sorted(find(patterns[name]), key=lambda entry: entry.uri)
        for start in range(0, len(files), step):
            groups[f"{name}_{start // step}"] = files[start : start + step]
    return groups


def columns(dataset: Dataset, output: np.ndarray, *, scores: bool = False) -> Columns:
    """Return predictions, labels and observers by name, as the module's docstring describes.

    output: (N,) or (N, outputs). scores: use the names of parquet files.
    """
    config = dataset.data_config
    labels = {name: np.asarray(dataset.label(name)) for name in config.label_names}
    columns_by_name: Columns = {}
    if scores:
        columns_by_name["scores"] = output
    elif config.label_type == "simple" and output.ndim == 2:
        of_class = labels[config.label_names[0]]
        for number, name in enumerate(config.label_value):
            columns_by_name[name] = of_class == number
            columns_by_name[f"score_{name}"] = output[:, number]
    else:
        columns_by_name["output"] = output
    columns_by_name.update(labels)
    for name, values in dataset.observers().items():
        columns_by_name[name] = values
    return columns_by_name


def write_columns(uri: str, columns: Columns) -> None:
    """Write columns to a .npz, .parquet or .root file (tree `Events`).

    Args:
        uri: path or address of the file.
        columns: name -> (N,) or (N, k), or lists of N jets.

    Raises:
        InputError: lists for a .npz file, which cannot contain them.
    """
    if uri.endswith(".npz"):
        for name, values in columns.items():
            if not isinstance(values, np.ndarray):
                raise InputError(
                    f"'{name}' is a list for each jet, which .npz cannot hold; let"
                    " --predict-output end in .root or .parquet"
                )
        buffer = io.BytesIO()
        np.savez(buffer, **columns)
        storage.write_bytes(uri, buffer.getvalue())
        return
    with scratch.folder("jec-predict-") as folder:
        path = folder / storage.name(uri)
        if uri.endswith(".parquet"):
            import awkward as ak

            ak.to_parquet(ak.Array(columns), path)
        else:
            import uproot

            # weaver-core's compression
            with uproot.recreate(path, compression=uproot.LZ4(4)) as file:
                types = {name: _branch_type(values) for name, values in columns.items()}
                # file["Events"] = columns would write an RNTuple
                tree = file.mktree("Events", types)
                for start in range(0, max(map(len, columns.values()), default=0), ROWS_AT_A_TIME):
                    rows = slice(start, start + ROWS_AT_A_TIME)
                    # uproot writes no array with strides
                    tree.extend({name: _contiguous(columns[name][rows]) for name in types})
        storage.upload(path, uri)


def _branch_type(values: Any) -> Any:
    """Return the type of a branch, as uproot's mktree takes it."""
    if isinstance(values, np.ndarray):
        return np.dtype((values.dtype, values.shape[1:]))
    return values.type.content


def _contiguous(values: Any) -> Any:
    return np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values
