"""What published network files import from weaver.utils, as in weaver-core 0.5.3."""

from __future__ import annotations

import logging
import sys

import pytest

from weaver.network.network_file import load_network
from weaver.utils.import_tools import import_module
from weaver.utils.logger import _logger


def test_a_file_is_imported_as_a_module_of_its_own(tmp_path):
    path = tmp_path / "layers.py"
    path.write_text("WIDTH = 8\n\ndef double(x):\n    return 2 * x\n")
    module = import_module(str(path), name="layers")
    assert (module.WIDTH, module.double(3)) == (8, 6)
    assert (module.__name__, module.__file__) == ("layers", str(path))
    assert sys.modules.get("layers") is not module


def test_each_import_gives_a_fresh_module(tmp_path):
    path = tmp_path / "state.py"
    path.write_text("items = []\n")
    first, second = import_module(str(path)), import_module(str(path))
    first.items.append(1)
    assert second.items == []
    assert first.__name__ == "_mod"  # weaver-core's default


def test_a_network_file_imports_layers_from_a_file_beside_it(tmp_path):
    (tmp_path / "layers.py").write_text("def width():\n    return 7\n")
    network = tmp_path / "network.py"
    network.write_text(
        "import os\n"
        "from weaver.utils.import_tools import import_module\n"
        "layers = import_module(os.path.join(os.path.dirname(__file__), 'layers.py'), '_layers')\n"
        "def get_model(data_config, **kwargs):\n"
        "    return layers.width(), {}\n"
        "def get_loss(data_config, **kwargs):\n"
        "    return None\n"
    )
    assert load_network(str(network)).build(None, {}) == (7, {})


@pytest.mark.parametrize(
    ("name", "error"), [("missing.py", FileNotFoundError), ("weights.pt", ImportError)]
)
def test_a_path_without_a_python_file_is_refused(name, error, tmp_path):
    if not name.endswith(".py"):
        (tmp_path / name).write_text("")
    with pytest.raises(error) as error_info:
        import_module(str(tmp_path / name))
    assert name in str(error_info.value)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_logger_takes_the_colour_of_weaver_core(level, caplog):
    with caplog.at_level(logging.DEBUG, logger="weaver"):
        getattr(_logger, level)("%d jets", 3, color="red")
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("weaver", level.upper(), "3 jets")
    ]
