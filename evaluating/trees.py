"""Train the boosted trees with which the network is compared, on the jets of the run.

They take the jet-level columns that prepare stored (evaluating.jet_columns) and learn the label of
the network. Their predictions for the test jets are stored under a digest of the prepared jets, the
settings and the seed, so that later runs on the same data do not train them again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common import storage
from common.errors import InputError
from common.measurements import Trees
from common.records import plain
from common.run import Run
from evaluating.inputs import Columns
from evaluating.jet_columns import FRACTIONS, GROUP, JET, KEY_OBSERVERS, PILEUP
from evaluating.requirements import label_reason
from physics.boosted_trees import (
    LEAST_JETS,
    MOST_JETS,
    SETTINGS,
    Jets,
    finite_jets,
    fit_and_predict,
)
from weaver.feed.order import spread
from weaver.prepared.columns import resolve_reference

if TYPE_CHECKING:
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

JETS_AT_A_TIME = 20_000
"""Jets whose columns are read and predicted together: 4 MB in double precision."""

NO_COLUMNS = (
    "prepare stored no jet-level columns, because this run is of an earlier version; a new run on"
    " the same files has them"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreesComparison:
    """Predictions of the trees for the test jets, and pile-up columns."""

    record: Trees
    predictions: NDArray[np.float32] | None = None
    """Output of the trees, log(pT_gen / pT), (N,); None without trees."""
    pileup: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """Pile-up columns, (N,), in the order in which the report prefers them."""


def compare(run: Run, columns: Columns, *, fraction: float = 1.0, seed: int) -> TreesComparison:
    """Train boosted trees, or load them, and read the pile-up columns.

    A run without trees is no error: the record says why there are none.

    Args:
        run: The run.
        columns: Observers of the run's test jets, (N,) each.
        fraction: Fraction of the training jets, as the network had (--data-fraction).
        seed: Seed of the trees.
    """
    if not run.record.jet_columns:
        return TreesComparison(record=Trees(reason=run.record.no_jet_columns or NO_COLUMNS))
    places = {}
    for split, uri in run.record.jet_columns.items():
        # The folder of runs may have been moved.
        places[split] = resolve_reference(run.folder.data(split), uri)
    try:
        config = _data_config(run)
        test = _open(places["test"], config)
    except InputError as error:
        reason = f"their jet-level columns cannot be read: {error}"
        return TreesComparison(record=Trees(reason=reason))
    observers = test.observers()
    for name in KEY_OBSERVERS:
        if name not in columns or not np.array_equal(observers[name], columns[name]):
            return TreesComparison(
                record=Trees(
                    reason=f"the jet-level columns are of other jets than the test jets ({name}"
                    " differs)"
                )
            )
    pileup = {name: observers[name] for name in PILEUP if name in observers}
    (label,) = config.label_names
    if reason := label_reason(config.label_value, test.label(label), columns):
        return TreesComparison(record=Trees(reason=reason), pileup=pileup)
    num_train = round(run.record.data["train"].jets * fraction)
    if num_train < LEAST_JETS:
        reason = f"{num_train} training jets are fewer than the {LEAST_JETS} that trees need"
        return TreesComparison(record=Trees(reason=reason), pileup=pileup)
    record, predictions = _load_or_train(places, config, test, fraction, seed)
    return TreesComparison(record=record, predictions=predictions, pileup=pileup)


def _data_config(run: Run) -> DataConfig:
    from weaver.config.data_config import DataConfig

    place = run.folder.jet_columns
    return DataConfig.from_options(storage.read_json(place), place)


def _open(uri: str, config: DataConfig) -> Dataset:
    from weaver.feed.dataset import Dataset

    return Dataset.open(uri, config)


def _load_or_train(
    places: Mapping[str, str], config: DataConfig, test: Dataset, fraction: float, seed: int
) -> tuple[Trees, NDArray[np.float32]]:
    """Load record and predictions (N,) of the trees from an earlier evaluation, or train them."""
    import sklearn

    # The name of a prepared folder is a digest of its files and of its data config.
    parts = {split: storage.name(uri) for split, uri in places.items()}
    dependencies = [parts, SETTINGS, MOST_JETS, fraction, seed, sklearn.__version__]
    digest = storage.digest(json.dumps(dependencies, sort_keys=True).encode())[:32]
    folder = places["test"].rsplit("/", 1)[0]
    place = storage.join(folder, f"trees-{digest}.json")
    predictions_place = storage.join(folder, f"trees-{digest}.npy")
    if storage.exists(place) and storage.exists(predictions_place):
        earlier = _read(place, predictions_place, len(test))
        if earlier is not None:
            return earlier

    record, predictions = _train(places, config, test, fraction, seed)
    content = io.BytesIO()
    np.save(content, predictions, allow_pickle=False)
    storage.write_bytes(predictions_place, content.getvalue())
    storage.write_json(place, plain(record))  # last: it counts only with predictions
    return record, predictions


def _read(
    place: str, predictions_place: str, num_jets: int
) -> tuple[Trees, NDArray[np.float32]] | None:
    """Read record and predictions (num_jets,); None if a file is damaged."""
    content = io.BytesIO(storage.read_bytes(predictions_place))
    try:
        predictions = np.load(content, allow_pickle=False)
    except Exception:  # NumPy raises anything for a damaged header, also a TokenError
        return None
    if not isinstance(predictions, np.ndarray) or predictions.shape != (num_jets,):
        return None
    try:
        return Trees(**storage.read_object(place)), predictions
    except (InputError, TypeError):
        return None


def _train(
    places: Mapping[str, str], config: DataConfig, test: Dataset, fraction: float, seed: int
) -> tuple[Trees, NDArray[np.float32]]:
    import sklearn

    start = time.monotonic()
    # Weights are computed from histograms of the training jets, also those of the validation jets.
    train_set = _open(places["train"], config)
    val_set = _open(places["val"], config)
    train = _jets(train_set, fraction)
    predictions, num_trees = fit_and_predict(train, _jets(val_set), _features(test), seed=seed)
    names = config.input_dicts[GROUP]
    record = Trees(
        columns=names,
        missing=[name for name in (*JET, *FRACTIONS) if name not in names],
        num_training_jets=len(train.target),
        num_trees=num_trees,
        seconds=round(time.monotonic() - start, 2),
        scikit_learn=sklearn.__version__,
    )
    return record, predictions


def _features(
    jets: Dataset, index: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield the jet-level columns, (n, C), of at most JETS_AT_A_TIME jets at a time.

    Args:
        jets: Prepared jets with the columns.
        index: Positions of the jets, (N,); all by default.
    """
    if index is None:
        index = np.arange(len(jets))
    for start in range(0, len(index), JETS_AT_A_TIME):
        yield jets.batch(index[start : start + JETS_AT_A_TIME]).inputs[GROUP].numpy()


def _jets(jets: Dataset, fraction: float = 1.0) -> Jets:
    """Return the jets for training: those with a finite target, at most MOST_JETS.

    Args:
        jets: Prepared jets with the columns.
        fraction: Fraction of the jets, the same ones that weaver.train takes.
    """
    number = max(round(len(jets) * fraction), 1)
    index = spread(np.arange(number), number, len(jets))
    (label,) = jets.data_config.label_names
    target = jets.label(label)  # mapped from its file, as the weights
    index = index[finite_jets(target[index], MOST_JETS)]
    features = np.empty((len(index), len(jets.data_config.input_dicts[GROUP])), np.float64)
    filled = 0
    for part in _features(jets, index):
        features[filled : filled + len(part)] = part
        filled += len(part)
    return Jets(
        features=features,
        target=target[index].astype(np.float64),
        weights=jets.weights()[index].astype(np.float64),
    )
