"""A file that may not be read any more ends a step, which may be repeated: it is no damage."""

import errno
import os

import pytest
import yaml

from common.config import RunConfig
from common.errors import AccessError, InputError
from common.records import StatusRecord
from common.run import Run
from components import step
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.prepared.prepare import prepare

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("number", "kind", "is_retryable"),
    [(errno.EACCES, AccessError, True), (errno.ENOENT, InputError, False)],
)
def test_the_status_says_whether_a_refused_access_is_retryable(
    tmp_path, monkeypatch, number, kind, is_retryable
):
    run = Run(config=RunConfig(s3_bucket=str(tmp_path / "runs"), run_id="pfn-00000000"))
    columns = synthetic_jets(20, seed=1)
    files = [write_jets(tmp_path / f"{name}.root", columns, basket=7) for name in "ab"]
    options = yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text())
    really_open = os.open

    def refuse(path, *rest, **more):
        if os.fspath(path) == str(files[1]):
            raise OSError(number, os.strerror(number), str(path))
        return really_open(path, *rest, **more)

    def body() -> None:
        prepare(
            f"{tmp_path}/*.root",
            DataConfig.from_options(options, "jec.yaml"),
            run.config.s3_bucket,
            for_training=True,
            skip_bad_files=True,
            report=lambda line: None,
        )

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(kind):
            step.with_status("prepare", run, body)
    entry = StatusRecord.load(run.folder.status).steps["prepare"]
    assert (entry.state, entry.retryable) == ("failed", is_retryable)
    assert str(files[1]) in entry.reason
    assert not (tmp_path / "runs" / "cache").exists()

    step.with_status("prepare", run, body)
    assert StatusRecord.load(run.folder.status).steps["prepare"].state == "done"
