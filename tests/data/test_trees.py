"""Opening a tree: the newest cycle is read, also beyond 32767; a missing tree is reported by
name.
"""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from data.trees import open_tree
from tests.weaver.read.test_files import set_cycle, write_tree


@pytest.mark.parametrize("cycle", [1, 32767, 32768, 65535])
def test_a_tree_of_any_cycle_is_opened(tmp_path, cycle):
    path = tmp_path / "a.root"
    write_tree(path, x=np.arange(3))
    set_cycle(path, 1, cycle)
    with open_tree(str(path), "jets", "a hint") as tree:
        assert tree["x"].array().tolist() == [0, 1, 2]
    with (
        pytest.raises(InputError, match=r"no tree Events \(a hint\); the file holds jets"),
        open_tree(str(path), "Events", "a hint"),
    ):
        pass
