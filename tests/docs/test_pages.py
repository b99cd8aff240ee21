"""The pages of the docs site: their examples work, and the files that they show exist."""

import importlib.util
import re
import types

import pytest
import torch
import yaml

from benchmarks import plots
from common.errors import InputError
from common.project import ROOT
from tests.docs.printed import python_block
from training import search_space
from training.network_options import check_options
from weaver import train
from weaver.config.data_config import DataConfig
from weaver.network.network_file import NetworkFile

DOCS = ROOT / "docs"
LONGEST_CELL = 300  # characters: six lines of a column of 50
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def of_nav(entries):
    """The pages of the navigation."""
    for entry in entries:
        for target in entry.values():
            yield from of_nav(target) if isinstance(target, list) else [target]


def page(name):
    """The text of a page."""
    return (DOCS / name).read_text()


def example(page, words):
    """The one block of YAML on a page that has these words."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (block,) = [block for block in blocks if words in block]
    return block


@pytest.fixture
def data_config(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(example("data-configs.md", "inputs:"))
    return DataConfig.load(str(file))


@pytest.fixture
def network(tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(python_block("docs/networks.md", "def get_model"))
    return NetworkFile.read(str(file))


def test_every_page_is_in_the_navigation():
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert sorted(of_nav(SITE["nav"])) == pages


def test_a_broken_link_fails_the_build():
    assert SITE["strict"] is True
    assert set(SITE["validation"]["links"].values()) == {"warn"}
    assert "--strict" in (ROOT / "Makefile").read_text()


def test_a_link_to_a_file_of_the_project_becomes_its_path(caplog):
    hooks = load(DOCS / "hooks.py")
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="page.md"))
    assert hooks.on_page_markdown("[the gate](../physics/gate.py)", page) == (
        "the gate (`physics/gate.py`)"
    )
    assert caplog.records == []
    hooks.on_page_markdown("[gone](../physics/gone.py)", page)
    assert "physics/gone.py" in caplog.text


def load(path):
    """A module of a file outside of all packages."""
    spec = importlib.util.spec_from_file_location("site_hooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_modules_of_the_reference_exist():
    names = []
    for path in DOCS.glob("api-*.md"):
        names += re.findall(r"^::: ([\w.]+)$", path.read_text(), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        module = re.sub(r"\.[A-Z]\w*$", "", name)
        assert importlib.util.find_spec(module), name


def test_the_printed_data_config_is_valid(data_config):
    assert data_config.input_shapes == {
        "pf_features": (-1, 3, 64),
        "pf_mask": (-1, 1, 64),
        "jet_features": (-1, 2),
    }


def test_the_printed_network_returns_one_number_per_jet(data_config, network, tmp_path):
    module = load(tmp_path / "my_net.py")
    model, info = module.get_model(data_config, width=8)
    shapes = [(5, *shape[1:]) for shape in data_config.input_shapes.values()]
    answer = model(*[torch.ones(shape) for shape in shapes])
    assert answer.shape == (5, 1)
    assert info["input_names"] == list(data_config.input_names)
    assert torch.isfinite(module.get_loss(data_config)(answer, torch.zeros(5, 1)))


def test_the_printed_command_accepts_the_printed_network(network, monkeypatch, capsys):
    (line,) = re.findall(r"^python -m weaver\.train (--print .*)$", page("networks.md"), re.M)
    arguments = [network.uri if word == "my_net.py" else word for word in line.split()]
    monkeypatch.chdir(ROOT)
    assert train.main(arguments) == 0, capsys.readouterr().err


def test_the_options_of_the_printed_network_are_checked(network):
    text = '{"parameters": [{"name": "width", "type": "int", "min": 0, "max": 9}]}'
    space = search_space.parse(text)
    with pytest.raises(InputError, match="width"):
        check_options(space, "my_net.py", network.source)


def test_the_printed_search_space_is_valid():
    space = search_space.parse(example("search-spaces.md", "only_for"))
    names = [
        parameter.name for parameter in search_space.for_network(space, "pfn_regressor_open.py")
    ]
    assert names == ["num-conv-layers", "conv-dim", "start-lr", "optimizer", "loss"]


@pytest.mark.parametrize("plot", plots.PLOTS, ids=lambda plot: plot.name)
def test_each_plot_shows_existing_results(plot):
    svg = (DOCS / "performance" / f"{plot.name}.svg").read_text()
    bars = plots.bars_of(plot)
    assert plots.digest_of(bars) in svg, "type: python -m benchmarks.plots docs/performance"
    assert f"performance/{plot.name}.svg" in (DOCS / "performance.md").read_text()
    assert all(bar.low <= bar.value <= bar.high for bar in bars)


def test_a_flag_in_a_sentence_is_marked_and_a_command_in_a_block_is_not():
    hooks = load(DOCS / "hooks.py")
    html = "<p><code>--num-gpus 1</code></p><pre><code>python x --num-gpus 1</code></pre>"
    assert hooks.on_page_content(html) == (
        '<p><code><span class="flag">--num-gpus</span> 1</code></p>'
        "<pre><code>python x --num-gpus 1</code></pre>"
    )


@pytest.mark.parametrize("name", [path.name for path in sorted(DOCS.glob("*.md"))])
def test_lines_of_code_fit_the_page(name):
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", page(name), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line for line in lines if len(line) > 102] == []


@pytest.mark.parametrize("name", [path.name for path in sorted(DOCS.glob("*.md"))])
def test_cells_of_tables_are_short(name):
    """A longer cell makes a row that nobody reads; a section or a list has room for it."""
    rows = [line for line in page(name).splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)]
    assert [cell for cell in cells if len(cell) > LONGEST_CELL] == []


@pytest.mark.parametrize("name", [path.name for path in sorted(DOCS.glob("*.md"))])
def test_a_block_within_a_list_is_indented_so_that_the_list_goes_on(name):
    """Python-Markdown ends a list at a block of fewer than four blanks."""
    fences = re.findall(r"^( *)```", page(name), re.MULTILINE)
    assert [len(blanks) for blanks in fences if len(blanks) % 4] == []
