"""The files that a network file imports from its own folder are detected and stored with it."""

from __future__ import annotations

import os
import sys

import pytest

from common.errors import InputError
from weaver.network import network_file, siblings
from weaver.network.network_file import NetworkFile, load_network
from weaver.network.siblings import read_siblings, write_siblings

IMPORT = "from weaver.utils.import_tools import import_module\nimport os\n"
BESIDE = "os.path.join(os.path.dirname(__file__), {})"
MODEL = "def get_model(data_config, **options): return {}, {{}}\ndef get_loss(d): return None\n"


def network(folder, text: str, **files: str):
    """net.py with files beside it; double underscores in a name stand for a slash."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name.replace("_py", ".py").replace("_json", ".json"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (folder / "net.py").write_text(text)
    return str(folder / "net.py")


def with_module(argument: str, value: str = "layers.WIDTH") -> str:
    return f"{IMPORT}layers = import_module({argument})\n{MODEL.format(value)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "by a joined path": (
            with_module(BESIDE.format("'layers.py'")),
            {"layers.py", "table.json"},
        ),
        "by a path below": (with_module(BESIDE.format("'parts', 'more.py'")), {"parts/more.py"}),
        "by its name": (
            f"import layers\n{MODEL.format('layers.WIDTH')}",
            {"layers.py", "table.json"},
        ),
        "from it": (
            f"from layers import WIDTH\n{MODEL.format('WIDTH')}",
            {"layers.py", "table.json"},
        ),
        "a package": (
            f"from parts import more\n{MODEL.format(1)}",
            {"parts/__init__.py", "parts/more.py"},
        ),
        "none": (f"import torch, os\n{MODEL.format(1)}", set()),
        "nothing above": (with_module(BESIDE.format("'../other.py'"), "1"), set()),
    }.values(),
    ids=lambda value: None if isinstance(value, set) else "",
)
def test_siblings_are_read_from_the_imports_and_paths_of_the_text(tmp_path, text, expected):
    (tmp_path / "other.py").write_text("")
    path = network(
        tmp_path / "a",
        text,
        layers_py="TABLE = 'table.json'\nWIDTH = 3\n",
        table_json="{}",
        parts__more_py="WIDTH = 4\n",
    )
    (tmp_path / "a/parts/__init__.py").write_text("")
    assert set(read_siblings(path, text)) == expected


def test_a_copy_with_its_siblings_builds_the_same_network(tmp_path):
    text = with_module(BESIDE.format("'layers.py'"))
    path = network(
        tmp_path / "a",
        text,
        layers_py="import deeper\nWIDTH = deeper.WIDTH\n",
        deeper_py="WIDTH = 3\n",
    )
    first = load_network(path)
    assert sorted(first.siblings) == ["deeper.py", "layers.py"]
    assert first.build(None, {})[0] == 3
    copy = tmp_path / "config"
    copy.mkdir()
    (copy / "network.py").write_text(first.source)
    write_siblings(first.siblings, str(copy))
    again = load_network(str(copy / "network.py"))
    assert again.build(None, {})[0] == 3
    assert again.digest() == first.digest()
    # a changed sibling makes another network, and the module imported before is not used for it
    (copy / "deeper.py").write_text("WIDTH = 7\n")
    other_network = load_network(str(copy / "network.py"))
    assert other_network.digest() != first.digest()
    assert other_network.build(None, {})[0] == 7


def test_two_networks_may_have_siblings_of_the_same_name(tmp_path):
    text = f"import layers_of_two\n{MODEL.format('layers_of_two.WIDTH')}"
    for name, width in (("a", 3), ("b", 4)):
        path = network(tmp_path / name, text, layers_of_two_py=f"WIDTH = {width}\n")
        assert load_network(path).build(None, {})[0] == width
    assert not any(str(tmp_path) in path for path in sys.path)


def test_siblings_in_a_storage_are_copied_to_this_machine(tmp_path, monkeypatch):
    """As on s3://, from where nothing can be imported."""
    monkeypatch.setenv("JEC_CACHE", str(tmp_path / "node"))
    text = with_module(BESIDE.format("'layers.py'"))
    path = network(tmp_path / "a", text, layers_py="WIDTH = 3\n")
    remote_network = NetworkFile(
        uri="s3://b/net.py", source=text, siblings=read_siblings(path, text)
    )
    assert remote_network.build(None, {})[0] == 3
    (local_folder,) = (tmp_path / "node/networks").iterdir()
    assert sorted(os.listdir(local_folder)) == ["layers.py", "net.py"]


def test_a_network_without_siblings_keeps_its_digest(tmp_path):
    import hashlib

    path = network(tmp_path / "a", MODEL.format(1))
    assert load_network(path).digest() == hashlib.sha256(MODEL.format(1).encode()).hexdigest()


def test_large_siblings_are_refused_with_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(siblings, "MOST_BYTES", 10)
    path = network(tmp_path / "a", f"import layers\n{MODEL.format(1)}", layers_py="WIDTH = 1234\n")
    with pytest.raises(InputError, match=r"layers\.py"):
        load_network(path)
    assert network_file.read_siblings is read_siblings
