"""Masks of groups in one bit a jet."""

import numpy as np

from physics import groups
from tests.physics.jets import make_jets


def test_packed_masks_are_those_that_were_added():
    rng = np.random.default_rng(0)
    masks = groups.Masks(1003)  # the last byte has three jets
    expected = {name: rng.random(1003) < 0.4 for name in ("a", "b", "none")}
    expected["none"][:] = False
    for name, mask in expected.items():
        masks[name] = mask
    assert list(masks) == list(expected)
    assert len(masks) == 3
    for name, mask in masks.items():
        assert mask.dtype == bool
        assert np.array_equal(mask, expected[name])
    assert "a" in masks
    assert "c" not in masks


def test_selected_masks_keep_their_order_and_leave_out_unknown_names():
    masks = groups.masks(make_jets(500))
    names = [groups.CLOSURE_ALL.name, "unknown", groups.SUMMARY[-1].name]
    selection = masks.select(names)
    assert list(selection) == [names[0], names[2]]
    assert np.array_equal(selection[names[2]], masks[names[2]])
