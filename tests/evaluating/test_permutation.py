"""The importance of groups of inputs, for a model whose formula is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from evaluating import permutation
from tests.physics.jets import make_jets, target_of

SHAPES = {"pf_features": (-1, 2, 3), "pf_mask": (-1, 1, 3), "jet_features": (-1, 2)}


class Session:
    """A model: the particles' first value is half of the target, the jet's first the other."""

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in (*SHAPES, "residual_features")]

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={})

    def run(self, _, arrays):
        # All values of a particle must come from the same jet: here the second feature and the
        # mask both are the index of the jet.
        assert np.array_equal(arrays["pf_features"][:, 1, 0], arrays["pf_mask"][:, 0, 0])
        return [0.7 * arrays["pf_features"][:, 0, :1] + 0.2 * arrays["jet_features"][:, :1]]


class Jets:
    data_config = SimpleNamespace(input_shapes=SHAPES)

    def __init__(self, number: int) -> None:
        self.jets = make_jets(number)

    def __len__(self):
        return len(self.jets["jetPt"])

    def batch(self, index):
        target = target_of(self.jets)[index]
        features = np.zeros((len(index), 2, 3), np.float32)
        features[:, 0, :] = target[:, None]
        features[:, 1, :] = index[:, None]
        mask = features[:, 1:, :].copy()
        jet = np.stack([target, index], axis=1)
        inputs = {"pf_features": features, "pf_mask": mask, "jet_features": jet}
        inputs["residual_features"] = np.zeros((len(index), 2), np.float32)
        return SimpleNamespace(inputs=inputs)


def measure(number: int, speed: float | None = 1e6):
    test = Jets(number)
    return permutation.importances(Session(), test, test.jets, speed, 1)


def test_the_more_informative_group_is_more_important():
    importances = measure(2000)
    assert [group.name for group in importances.groups] == ["pf (particles)", "jet_features"]
    particles, jet = importances.groups
    assert particles.inputs == ["pf_features", "pf_mask"]
    assert importances.num_jets == 2000
    assert importances.gain == pytest.approx(90, abs=1)
    assert particles.mean > jet.mean > 5
    assert len(jet.gain_lost) == permutation.SHUFFLINGS
    assert 0 < jet.spread < jet.mean


def test_a_slow_model_is_measured_on_fewer_jets():
    assert measure(2000, speed=1000).num_jets == 600
    assert measure(2000, speed=None).num_jets == permutation.MIN_JETS


def test_the_same_seed_gives_the_same_importances():
    assert measure(600) == measure(600)


def test_too_few_jets_are_not_measured():
    assert measure(400) is None
