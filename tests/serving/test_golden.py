"""Golden bodies keep every bit of a float32, and the comparison misses nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import GateError
from serving import golden


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_arrays_survive_json_to_the_bit(dtype):
    values = np.random.default_rng(0).normal(size=(50, 3, 4), scale=100).astype(dtype)
    body = json.loads(json.dumps(golden.request_body({"x": values})))
    np.testing.assert_array_equal(golden.arrays(body["inputs"])["x"], values)
    assert body["inputs"][0]["shape"] == [50, 3, 4]


def test_difference_is_relative_above_one():
    expected = golden.response_body("m", {"output": np.array([[0.5], [100.0]], np.float32)})
    answer = golden.response_body(
        "m", {"output": np.array([[0.5 + 2e-6], [100.0 + 5e-4]], np.float32)}
    )
    assert golden.max_difference(answer, expected) == pytest.approx(5e-6, rel=0.02)


@pytest.mark.parametrize(
    ("outputs", "facts"),
    [
        ({"other": np.zeros((2, 1), np.float32)}, ["'output'", "other"]),
        ({"output": np.zeros((2, 2), np.float32)}, ["'output'", "(2, 2)", "(2, 1)"]),
    ],
    ids=["name", "shape"],
)
def test_an_answer_of_another_form_is_refused(outputs, facts):
    expected = golden.response_body("m", {"output": np.zeros((2, 1), np.float32)})
    with pytest.raises(GateError) as error:
        golden.max_difference(golden.response_body("m", outputs), expected)
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_infinitely_far_from_the_golden_answer(value):
    expected = golden.response_body("m", {"output": np.zeros((2, 1), np.float32)})
    answer = golden.response_body("m", {"output": np.array([[0], [value]], np.float32)})
    assert golden.max_difference(answer, expected) == np.inf
