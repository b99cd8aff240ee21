"""Boosted regression trees on jet-level columns: the simple method that a network must beat.

They are scikit-learn's histogram-based gradient boosting (after G. Ke et al., LightGBM, NIPS 2017)
with its own defaults and the absolute error as the loss, so that they learn the median of
log(pT_gen / pT) as the networks do. The validation jets say when to stop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from physics.response import Floats

LEAST_JETS = 500
"""With fewer training jets trees learn mostly noise, and are no fair comparison."""

MOST_JETS = 500_000
"""Training on these takes a minute or two; more jets improve the trees little."""

SETTINGS: dict[str, Any] = {
    "loss": "absolute_error",
    # The validation jets end the training: where twenty more trees make their mean error smaller
    # by less than 1e-5, a ten-thousandth of it.
    "early_stopping": True,
    "n_iter_no_change": 20,
    "tol": 1e-5,
    "max_iter": 400,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jets:
    """Jets to learn from."""

    features: Floats
    """(N, C); scikit-learn makes a copy of all that are not float64."""
    target: Floats
    """log(pT_gen / pT): (N,)."""
    weights: Floats
    """(N,)."""

    def finite(self, most: int | None = None) -> Jets:
        """Return the jets with a finite target; at most `most` of them, evenly spread."""
        jets = finite_jets(self.target, most)
        if len(jets) == len(self.target):
            return self
        return Jets(
            features=self.features[jets],
            target=self.target[jets],
            weights=self.weights[jets],
        )


def finite_jets(target: Floats, most: int | None = None) -> NDArray[np.int64]:
    """Return the positions of the jets with a finite target (N,); at most `most`, evenly spread."""
    jets = np.flatnonzero(np.isfinite(target))
    if most is not None and len(jets) > most:
        jets = jets[np.arange(most) * len(jets) // most]
    return jets


def fit_and_predict(
    train: Jets, val: Jets, features: Iterable[Floats], *, seed: int
) -> tuple[NDArray[np.float32], int]:
    """Train trees on `train`, and predict the targets of other jets.

    features: (m, C) of the jets to answer, some jets at a time, because scikit-learn copies them to
    float64. Returns log(pT_gen / pT) of all M jets, (M,), and the number of trees. The same jets
    and seed give the same answers.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    train, val = train.finite(MOST_JETS), val.finite(MOST_JETS)
    trees = HistGradientBoostingRegressor(**SETTINGS, random_state=seed)
    # One thread: sums have one order everywhere, 20,000 jets take two seconds, and the threads of
    # scikit-learn would spin where other work has the cores (seen: 92 s for 800 jets).
    with threadpool_limits(limits=1, user_api="openmp"):
        trees.fit(
            train.features,
            train.target,
            sample_weight=train.weights,
            X_val=val.features,
            y_val=val.target,
            sample_weight_val=val.weights,
        )
        answers = [np.zeros(0, np.float32)]
        for of_part in features:
            # Without a jet there is nothing to predict, which scikit-learn refuses.
            if len(of_part):
                answers.append(trees.predict(of_part).astype(np.float32))
    return np.concatenate(answers), int(trees.n_iter_)
