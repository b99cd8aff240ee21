"""The best network of a trial, ready to answer, and its answers to the jets of a test set.

    python -m weaver.train --predict --data-test RUN/data/test.json --data-config RUN/config/data.yaml \\
        --network-config RUN/config/network.py --model-prefix RUN/trials/TRIAL/ --predict-output predictions.root
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import storage
from common.errors import InputError
from common.progress import Progress
from weaver.checkpoint import read_tensors
from weaver.data_config import DataConfig
from weaver.dataset import Dataset
from weaver.distributed import select_device
from weaver.loader import Loader
from weaver.network_file import load_network
from weaver.objective import Objective
from weaver.options import TrainOptions


def load_model(trial_uri: str, run_config_dir: str) -> tuple[torch.nn.Module, dict[str, Any], DataConfig]:
    """(model, model_info, data_config): the best weights of a trial in the network of `<run_config_dir>/network.py`, on the CPU.

    The model is in evaluation mode. Raises InputError where there is no best.pt, or it belongs to another network.
    """
    data_config = DataConfig.load(storage.join(run_config_dir, "data.yaml"))
    return (*build_best(trial_uri, storage.join(run_config_dir, "network.py"), data_config), data_config)


def build_best(trial_uri: str, network_config: str, data_config: DataConfig) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(model, model_info) with a trial's best weights, in evaluation mode."""
    uri = storage.join(trial_uri, "best.pt")
    if not storage.exists(uri):
        raise InputError(f"there is no {uri}: the trial has not finished an epoch")
    best = read_tensors(uri)
    if "model" not in best or "network_options" not in best:
        raise InputError(f"{uri} is no best.pt of weaver.train")
    model, info = load_network(network_config).build(data_config, best["network_options"])
    try:
        model.load_state_dict(best["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{uri} holds the weights of another network than {network_config}: {reason}") from None
    return model.eval(), info


@torch.no_grad()
def predict(model: torch.nn.Module, dataset: Dataset, objective: Objective, *, batch_size: int, device: str) -> np.ndarray:
    """Predictions for all jets in their order: (N,) for one output of a regression, else (N, outputs); class scores are softmaxed."""
    loader = Loader(dataset, batch_size, shuffle=False, seed=0, device=device)
    found = []
    with Progress("predicting", total=len(dataset), unit="jets") as progress:
        for batch in loader.epoch(0):
            output = objective.predict(model, batch)
            found.append((output if objective.regression else output.softmax(dim=1)).cpu().numpy())
            progress.advance(len(batch))
    return np.concatenate(found)


def write_predictions(options: TrainOptions) -> None:
    """--predict: predictions, labels and observers of the test set, as columns of a .npz or .root file."""
    data_config = DataConfig.load(options.data_config)
    device = select_device(options.gpus)
    model, _ = build_best(storage.absolute(options.model_prefix), options.network_config, data_config)
    dataset = Dataset.open(" ".join(options.data_test), data_config, for_training=False)
    objective = Objective(data_config, loss=None, regression=options.regression_mode, use_amp=options.use_amp)
    size = options.batch_size_val or options.batch_size
    output = predict(model.to(device), dataset, objective, batch_size=size, device=str(device))
    write_columns(options.predict_output, columns(dataset, output))


def columns(dataset: Dataset, output: np.ndarray) -> dict[str, np.ndarray]:
    """Named columns, (N,) each: `output` (or output_0, ... or score_<class>), the labels, the observers."""
    config = dataset.data_config
    if output.ndim == 1:
        found = {"output": output}
    else:
        classes = config.label_value if config.label_type == "simple" else None
        names = [f"score_{name}" for name in classes] if classes else [f"output_{i}" for i in range(output.shape[1])]
        found = dict(zip(names, output.T, strict=True))
    labels = {name: np.asarray(dataset.label(name)) for name in config.label_names}
    return {**found, **labels, **{name: np.asarray(values) for name, values in dataset.observers().items()}}


def write_columns(uri: str, found: dict[str, np.ndarray]) -> None:
    """Write columns to a .npz file, or to the tree `Events` of a .root file, at a path or s3:// address."""
    if uri.endswith(".npz"):
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        storage.write_bytes(uri, buffer.getvalue())
        return
    import uproot

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.root"
        with uproot.recreate(path) as file:
            file["Events"] = {name: np.ascontiguousarray(values) for name, values in found.items()}
        storage.upload(path, uri)
