"""`make audit` fails with an error of one line where nothing was checked."""

import shutil
import subprocess

import pytest

from common.project import ROOT

FOUND = "Found 2 known vulnerabilities in 1 package"
UNKNOWN = "ERROR:pip_audit._cli:certifi: Dependency not found on PyPI and could not be audited"
NO_PROXY = "Traceback (most recent call last):\nrequests.exceptions.ProxyError: refused"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("output", "code", "line"),
    [
        ("No known vulnerabilities found", 0, ""),
        (FOUND, 1, FOUND),
        (UNKNOWN, 1, "error: the packages were not checked"),
        (NO_PROXY, 1, "error: the packages were not checked"),
    ],
    ids=["none", "weak", "unknown", "unreachable"],
)
def test_make_audit_fails_unless_pip_audit_finds_nothing(tmp_path, output, code, line):
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{output}\nEND\nexit {code}\n")
    program.chmod(0o755)
    process = subprocess.run(
        ["make", "--silent", "audit", f"AUDIT={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode != 0) is (code != 0)
    # make itself adds a line about the target that failed
    lines = [text for text in process.stderr.splitlines() if not text.startswith("make")]
    assert len(lines) == (1 if line else 0)
    assert "".join(lines).startswith(line)
