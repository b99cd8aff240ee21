"""The notebook: its cells run in order, and what is committed of it shows no machine."""

import ast
import base64
import functools
import json
import os
import re
import subprocess
import sys

import pytest

import pipeline
from common.project import ROOT

NOTEBOOK = ROOT / "examples" / "calibrate_jets.ipynb"
LARGEST_BYTES = 300_000
"""Of the file with its figures: a diff of it stays readable."""


@functools.cache
def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell_code(cell)]


def cell_code(cell):
    return "".join(cell["source"]) if cell["cell_type"] == "code" else ""


def outputs():
    return [output for cell in cells() for output in cell["outputs"]]


def test_it_was_executed_in_order_and_without_an_error():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    assert [output for output in outputs() if output["output_type"] == "error"] == []
    assert [output for output in outputs() if output.get("name") == "stderr"] == []


def test_its_figures_are_shown_and_small():
    figures = [output["data"]["image/png"] for output in outputs() if "image/png" in str(output)]
    assert len(figures) == 5
    assert all(base64.b64decode(one).startswith(b"\x89PNG") for one in figures)
    assert NOTEBOOK.stat().st_size < LARGEST_BYTES


def test_its_outputs_name_no_path_of_a_machine():
    texts = [re.sub(r'"image/png": "[^"]*"', "", json.dumps(output)) for output in outputs()]
    assert [text for text in texts if re.search(r"(?<![\w:/.])/(?!v2/)[a-z]\w*/", text)] == []


def test_its_flags_are_those_of_the_pipeline():
    (cell,) = [cell for cell in cells() if '"--runner"' in cell_code(cell)]
    words = {
        node.value
        for node in ast.walk(ast.parse(cell_code(cell)))
        if isinstance(node, ast.Constant) and str(node.value).startswith("--")
    }
    assert len(words) > 8
    assert words <= set(pipeline.build_parser()._option_string_actions)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_cells_run_in_order_on_a_small_sample(tmp_path):
    # by -c: as in a notebook, there is no file that spawned processes would import
    script = "\n\n".join(map(cell_code, cells()))
    settings = {
        "JEC_NOTEBOOK_RUNS": str(tmp_path / "runs"),
        "JEC_NOTEBOOK_JETS": "2400",
        "JEC_NOTEBOOK_EPOCHS": "1",
        "MPLBACKEND": "Agg",
    }
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=NOTEBOOK.parent,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("before", "after"):
        assert re.search(rf"^{name}: median response [01]\.\d+, resolution", answer.stdout, re.M)
