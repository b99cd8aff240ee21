"""The boosted trees that the network is compared with: trained here, on the run's own jets.

They take the jet-level columns that prepare kept (evaluating.jet_columns) and learn the network's
label. What they answer to the test jets is kept in the storage under a digest of the prepared jets,
the settings and the seed, so that further runs on the same data do not train them again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common import storage
from common.errors import InputError
from common.measurements import Trees
from common.records import plain
from common.run import Run
from evaluating.inputs import Columns
from evaluating.jet_columns import ALIGNED, FRACTIONS, GROUP, JET, PILEUP
from evaluating.requirements import label_reason
from physics.boosted_trees import LEAST_JETS, MOST_JETS, SETTINGS, Jets, fit_and_predict
from weaver.feed.order import spread
from weaver.prepared.columns import resolve_reference

if TYPE_CHECKING:
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

EARLIER = (
    "prepare kept no jet-level columns, as earlier versions did not; a new run on the same files"
    " has them"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What the jet-level columns say of the test jets."""

    record: Trees
    answers: NDArray[np.float32] | None = None
    """The trees' answers log(pT_gen / pT), (N,); None where there are no trees."""
    pileup: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """Pile-up column -> (N,), the one that the report prefers first."""


def compare(run: Run, columns: Columns, *, fraction: float = 1.0, seed: int) -> Compared:
    """Train boosted trees, or say why not, and read the pile-up columns.

    columns: observers of the run's test jets, name -> (N,). fraction: of the training jets, as the
    network had (--data-fraction). A run is never refused for its trees: what they lack is in the
    record.
    """
    if not run.record.jet_columns:
        return Compared(record=Trees(reason=run.record.no_jet_columns or EARLIER))
    places = {}
    for split, uri in run.record.jet_columns.items():
        # The folder of runs may have been moved.
        places[split] = resolve_reference(run.folder.data(split), uri)
    try:
        config = _data_config(run)
        test = _open(places["test"], config)
    except InputError as error:
        return Compared(record=Trees(reason=f"their jet-level columns cannot be read: {error}"))
    observers = test.observers()
    for name in ALIGNED:
        if name not in columns or not np.array_equal(observers[name], columns[name]):
            return Compared(
                record=Trees(
                    reason=f"the jet-level columns are of other jets than the test jets ({name}"
                    " differs)"
                )
            )
    pileup = {name: observers[name] for name in PILEUP if name in observers}
    (label,) = config.label_names
    if reason := label_reason(config.label_value, test.label(label), columns):
        return Compared(record=Trees(reason=reason), pileup=pileup)
    num_train = round(run.record.data["train"].jets * fraction)
    if num_train < LEAST_JETS:
        reason = f"{num_train} training jets are fewer than the {LEAST_JETS} that trees need"
        return Compared(record=Trees(reason=reason), pileup=pileup)
    record, answers = _cached(places, config, test, fraction, seed)
    return Compared(record=record, answers=answers, pileup=pileup)


def _data_config(run: Run) -> DataConfig:
    from weaver.config.data_config import DataConfig

    place = run.folder.jet_columns
    return DataConfig.from_options(storage.read_json(place), place)


def _open(uri: str, config: DataConfig) -> Dataset:
    from weaver.feed.dataset import Dataset

    return Dataset.open(uri, config)


def _cached(
    places: Mapping[str, str], config: DataConfig, test: Dataset, fraction: float, seed: int
) -> tuple[Trees, NDArray[np.float32]]:
    """The trees' record and their answers, (N,), of an earlier evaluation or trained now."""
    import sklearn

    # The name of a prepared folder is a digest of its files and of its data config.
    parts = {split: storage.name(uri) for split, uri in places.items()}
    meaning = [parts, SETTINGS, MOST_JETS, fraction, seed, sklearn.__version__]
    digest = storage.digest(json.dumps(meaning, sort_keys=True).encode())[:32]
    folder = places["test"].rsplit("/", 1)[0]
    place = storage.join(folder, f"trees-{digest}.json")
    answers_place = storage.join(folder, f"trees-{digest}.npy")
    if storage.exists(place) and storage.exists(answers_place):
        answers = np.load(io.BytesIO(storage.read_bytes(answers_place)), allow_pickle=False)
        return Trees(**storage.read_json(place)), answers

    record, answers = _trained(places, config, test, fraction, seed)
    content = io.BytesIO()
    np.save(content, answers, allow_pickle=False)
    storage.write_bytes(answers_place, content.getvalue())
    storage.write_json(place, plain(record))  # last: a record without answers is not read
    return record, answers


def _trained(
    places: Mapping[str, str], config: DataConfig, test: Dataset, fraction: float, seed: int
) -> tuple[Trees, NDArray[np.float32]]:
    import sklearn

    started = time.monotonic()
    # Weights come of histograms of the training jets, which the validation jets are given.
    train_set = _open(places["train"], config)
    val_set = _open(places["val"], config)
    train = _jets(train_set, fraction)
    answers, num_trees = fit_and_predict(train, _jets(val_set), _features(test), seed=seed)
    names = config.input_dicts[GROUP]
    record = Trees(
        columns=names,
        missing=[name for name in (*JET, *FRACTIONS) if name not in names],
        num_training_jets=min(len(train.target), MOST_JETS),
        num_trees=num_trees,
        seconds=round(time.monotonic() - started, 2),
        scikit_learn=sklearn.__version__,
    )
    return record, answers


def _features(jets: Dataset) -> NDArray[np.float32]:
    """The jet-level columns of all jets: (N, C)."""
    features: NDArray[np.float32] = jets.batch(np.arange(len(jets))).inputs[GROUP].numpy()
    return features


def _jets(jets: Dataset, fraction: float = 1.0) -> Jets:
    """Jets to learn from: this fraction of them, those that weaver.train takes."""
    chosen = max(round(len(jets) * fraction), 1)
    index = spread(np.arange(chosen), chosen, len(jets))
    (label,) = jets.data_config.label_names
    return Jets(
        features=_features(jets)[index],
        target=np.asarray(jets.label(label), dtype=np.float64)[index],
        weights=np.asarray(jets.weights(), dtype=np.float64)[index],
    )
