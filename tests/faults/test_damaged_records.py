"""Empty and garbage records of a run: rebuilt or ignored, with a sentence."""

import random
from pathlib import Path

import pytest

from clusters import run_lock
from clusters.local_study import Study, rename_damaged_study
from common import storage
from common.errors import InputError
from common.layout import RunFolder
from common.records import ServiceRecord, StatusRecord, SummaryRecord
from common.run import Run, read_run
from components import step
from components.prepare import is_decoded

pytestmark = pytest.mark.faults

GARBAGE = [b"", b"\0" * 512, b"{", b"[]", b"3", b"null", b'{"steps": 3}', b"\xff\xfe", b"[" * 10**5]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: ascii(content[:12]))
@pytest.mark.parametrize("record", [StatusRecord, ServiceRecord, SummaryRecord])
def test_a_garbage_record_counts_as_missing(tmp_path, capsys, record, content):
    if record is StatusRecord and content == b"null":
        content = b"[null]"
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert record.find_readable(str(path)) is None
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [*GARBAGE, b'{"steps": {"a": 3}}', b'{"format": "x"}', b'{"run_id": 3}'],
    ids=lambda content: ascii(content[:12]),
)
def test_a_garbage_record_that_is_needed_is_refused_with_its_name(tmp_path, content):
    for record in (RunFolder(str(tmp_path)).run, RunFolder(str(tmp_path)).status):
        Path(record).write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        Run.load(str(tmp_path))
    with pytest.raises(InputError, match=r"run\.json"):
        read_run(RunFolder(str(tmp_path)).run)
    if content != b'{"run_id": 3}':  # a name that is unknown is of a later version
        with pytest.raises(InputError, match=r"status\.json"):
            StatusRecord.load(RunFolder(str(tmp_path)).status)


def test_a_record_of_a_later_version_is_still_refused(tmp_path):
    path = tmp_path / "status.json"
    path.write_text('{"format": 99, "steps": []}')
    with pytest.raises(InputError, match="99"):
        StatusRecord.find_readable(str(path))


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: ascii(content[:12]))
def test_a_garbage_status_is_written_anew_by_the_next_step(tmp_path, content):
    class Run:
        uri = str(tmp_path)
        folder = RunFolder(str(tmp_path))

    (tmp_path / "status.json").write_bytes(content)
    step.write_status(Run(), "train", "running")
    assert step.read_status(Run.uri).steps["train"].state == "running"


WRONG_OWNERS = [
    b'{"pid": "1"}',
    b'{"pid": [1]}',
    b'{"pid": 1, "started": 1.5}',
    b'{"pid": 1, "host": {}, "token": ""}',
    b'{"pid": 1, "host": "x", "renewed": "now"}',
]


@pytest.mark.parametrize(
    "content", [*GARBAGE, *WRONG_OWNERS], ids=lambda content: ascii(content[:40])
)
def test_a_garbage_owner_record_names_no_owner(tmp_path, content):
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / run_lock.OWNER).write_bytes(content)
    assert run_lock.read_owner(folder) is None
    lock = run_lock.RunLock("run-1", folder)
    lock.take(lambda line: None)
    assert run_lock.read_owner(folder) is not None
    lock.release()


def test_the_text_of_an_owner_with_an_impossible_time_has_no_traceback():
    assert "process 7 on x" in str(run_lock.Holder(pid=7, host="x", started="1e300"))


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"x"', b"NaN", b"[" * 10**5], ids=ascii)
def test_a_file_without_names_and_values_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    for read in (storage.read_object, storage.find_object):
        with pytest.raises(InputError, match=str(path)):
            read(str(path))
    path.unlink()
    assert storage.find_object(str(path)) == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"dataset": 3}', b'{"dataset": "x"}'])
def test_a_garbage_reference_to_prepared_data_counts_as_missing(tmp_path, content):
    """The set is then prepared again."""

    class Run:
        folder = RunFolder(str(tmp_path))

    path = Path(Run.folder.data("train"))
    path.parent.mkdir()
    path.write_bytes(content)
    assert not is_decoded(Run(), "train")


@pytest.fixture
def make_study(tmp_path):
    manifest = {
        "metadata": {"name": "search"},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss"},
            "maxTrialCount": 2,
            "parallelTrialCount": 1,
            "maxFailedTrialCount": 1,
        },
    }
    lines = []

    def make():
        return Study(manifest, tmp_path, lines.append), lines

    return make


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"SQLite format 3\0" + b"\1" * 4096])
def test_a_garbage_study_is_set_aside_and_the_search_begins_anew(make_study, tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    study, lines = make_study()
    assert study.count() == 0
    assert (tmp_path / "study.db.damaged-1").read_bytes() == content
    assert len(lines) == 1
    assert "study.db.damaged-1" in lines[0]
    # trials of the lost record have folders of their own names
    assert study._study.study_name == "search-2"


def test_a_whole_study_is_opened_again(make_study, tmp_path):
    make_study()
    study, lines = make_study()
    assert lines == []
    assert study._study.study_name == "search"
    assert rename_damaged_study(tmp_path / "study.db", lines.append) == 0


def test_a_study_with_a_damaged_page_is_noticed(make_study, tmp_path):
    make_study()
    path = tmp_path / "study.db"
    content = bytearray(path.read_bytes())
    draw = random.Random(4)
    for _ in range(200):
        content[draw.randrange(100, len(content))] = 0xFF
    path.write_bytes(content)
    _, lines = make_study()
    assert len(lines) == 1
