"""Why a model server ended, read from a real log of Triton 2.51."""

from __future__ import annotations

from clusters.server_log import load_failure, useful_lines
from tests.clusters.replay import TRITON_LOG

LINES = TRITON_LOG.read_text().splitlines()


def test_the_model_that_cannot_be_loaded_is_named_with_its_reason():
    assert load_failure(LINES) == (
        "failed to load 'pfn-regressor-open' version 1: Internal: TritonModelException: model"
        " 'pfn-regressor-open', input 'jet_features': dims [8] with max_batch_size 1024 mean the"
        " shape [-1, 8], the model has [-1, 7]"
    )
    assert not any("failed to load 'pfn" in line for line in LINES[-20:])


def test_only_the_error_lines_are_shown_where_they_name_the_reason():
    lines = useful_lines(LINES, 20)
    assert len(lines) == 3
    assert lines[-1] == "error: creating server: Internal - failed to load all models"


def test_a_log_without_such_lines_is_read_from_its_end():
    lines = [f"line {number}" for number in range(50)]
    assert load_failure(lines) == ""
    assert useful_lines(lines, 20) == lines[-20:]
