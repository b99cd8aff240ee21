"""The same jets from a disk, S3, XRootD and a web server; and servers that die during the
reading.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import storage
from common.errors import InputError, StorageError
from tests.servers import web, xrootd
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.prepared.decoding import Decoding
from weaver.prepared.prepare import prepare
from weaver.read import files

CONFIG = DATA / "jec_pfn_open.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of jets, one with an odd name."""
    result = tmp_path_factory.mktemp("jets") / "files"
    result.mkdir()
    columns = synthetic_jets(60, seed=1)
    write_jets(result / "a.root", columns, basket=7)
    write_jets(result / "it's b.root", synthetic_jets(50, seed=2))
    return result


@pytest.fixture(scope="module")
def sources(folder, xrootd_server, web_server, s3_server):
    """Name of a source -> address of the folder there."""
    for server in (xrootd_server, web_server):
        shutil.copytree(folder, server.data / "distant-jets")
    storage.s3.client().create_bucket(Bucket="distant-jets")
    storage.upload(folder, "s3://distant-jets/jets")
    return {
        "disk": str(folder),
        "file": f"file://{folder}",
        "s3": "s3://distant-jets/jets",
        "root": f"{xrootd_server.uri}/distant-jets",
        "http": f"{web_server.uri}/distant-jets",
        "http without ranges": f"{web_server.uri}/plain/distant-jets",
    }


def digest(pattern, place):
    """SHA-256 of all prepared columns, in the order of their names."""
    ref = prepare(
        pattern,
        DataConfig.load(str(CONFIG)),
        str(place),
        for_training=True,
        report=lambda line: None,
    )
    total = hashlib.sha256()
    for path in sorted(Path(ref.uri).glob("*.npy")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def from_disk(sources, tmp_path_factory):
    return digest(f"{sources['disk']}/*.root", tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize("source", ["file", "s3", "root", "http"])
def test_columns_from_each_source_equal_those_from_the_disk(sources, from_disk, tmp_path, source):
    assert digest(f"{sources[source]}/*.root", tmp_path) == from_disk


def test_files_are_read_from_a_server_without_ranges(sources, tmp_path):
    """The server lists no folder, and sends whole files."""
    place = sources["http without ranges"]
    several = [f"{place}/a.root", f"{place}/it%27s%20b.root"]
    local = [f"{sources['disk']}/a.root", f"{sources['disk']}/it's b.root"]
    assert digest(several, tmp_path / "distant") == digest(local, tmp_path / "disk")


def test_one_list_may_name_several_sources(sources, from_disk, tmp_path):
    # jets come in the order of the addresses: http before root
    patterns = f"{sources['http']}/a.root, {sources['root']}/it?s*.root"
    assert digest(patterns, tmp_path) == from_disk


@pytest.mark.parametrize("source", ["disk", "root"])
def test_a_tree_after_the_file_name_is_read(sources, tmp_path, source):
    whole = digest(f"{sources[source]}/a.root", tmp_path / "1")
    assert digest(f"{sources[source]}/a.root:AK4jets/jetTree", tmp_path / "2") == whole
    with pytest.raises(InputError, match="unknown tree 'AK4jets/jetTrees'"):
        digest(f"{sources[source]}/a.root:AK4jets/jetTrees", tmp_path / "3")


PREPARE = """
import sys
import time
import botocore.endpoint
from common.storage import retries
from weaver.prepared import prepare

retries.PAUSES = (0.1, 0.1)
botocore.endpoint.time.sleep = lambda seconds: None
check = prepare.data_files.check

def checked_then_waiting(*args, **options):
    result = check(*args, **options)
    print("checked", flush=True)
    sys.stdin.readline()
    return result

prepare.data_files.check = checked_then_waiting
sys.exit(prepare.main(sys.argv[1:]))
"""


def start_s3(folder, tmp_path, monkeypatch):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    storage.forget_client()
    storage.s3.client().create_bucket(Bucket="dying")
    storage.upload(folder, "s3://dying")
    return "s3://dying/*.root", server.stop


def start_root(folder, tmp_path, monkeypatch):
    server = xrootd.start()
    shutil.copytree(folder, server.data, dirs_exist_ok=True)
    return f"{server.uri}/*.root", server.remove


def start_http(folder, tmp_path, monkeypatch):
    server = web.start(Path(shutil.copytree(folder, tmp_path / "served")))
    return f"{server.uri}/*.root", server.kill


@pytest.mark.parametrize("start", [start_s3, start_root, start_http], ids=["s3", "root", "http"])
def test_a_dead_server_gives_one_error_line_and_no_data(folder, tmp_path, monkeypatch, start):
    pattern, stop = start(folder, tmp_path, monkeypatch)
    place = tmp_path / "place"
    options = ["--data-config", str(CONFIG), "--data", pattern, "--output", str(place)]
    with subprocess.Popen(
        [sys.executable, "-c", PREPARE, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"XRD_CONNECTIONWINDOW": "1", "XRD_STREAMERRORWINDOW": "0"},
        text=True,
    ) as process:
        try:
            first_line = process.stdout.readline()
        finally:
            stop()
            storage.forget_client()
        _, messages = process.communicate("\n", timeout=100)
    assert first_line == "checked\n", messages
    assert process.returncode == 1, messages
    (line,) = [line for line in messages.splitlines() if not line.startswith("preparing")]
    assert line.startswith("error: ")
    assert ".root" in line
    assert list(place.glob("cache/*")) == []


@pytest.fixture(params=["disk", "s3", "root", "http"])
def replaceable(request, tmp_path):
    """The address of a file of 40 jets, and a function that replaces it an hour later.

    The new file has the same size and other content.
    """
    old, new = tmp_path / "old.root", tmp_path / "new.root"
    write_jets(old, synthetic_jets(40, seed=1), basket=7)
    content = old.read_bytes()
    middle = len(content) // 2
    new.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    later = time.time()

    def write_file(source, date):
        if request.param == "s3":
            storage.upload(source, uri)
            return
        copy = place / "part"
        shutil.copyfile(source, copy)
        os.utime(copy, (date, date))
        copy.rename(place / "a.root")

    if request.param == "s3":
        uri = f"{request.getfixturevalue('s3_bucket')}/a.root"
    elif request.param == "disk":
        place, uri = tmp_path, str(tmp_path / "a.root")
    else:
        name = {"root": "xrootd_server", "http": "web_server"}[request.param]
        server = request.getfixturevalue(name)
        place = server.data / f"replaced-{tmp_path.name}"
        place.mkdir()
        uri = f"{server.uri}/{place.name}/a.root"
    write_file(old, later - 3600)
    return uri, lambda: write_file(new, later)


@pytest.mark.parametrize("moment", ["listed", "checked", "decoded"])
@pytest.mark.parametrize("skip_bad_files", [False, True], ids=["", "skipping"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    replaceable, tmp_path, monkeypatch, no_pauses, moment, skip_bad_files
):
    uri, replace = replaceable
    entries = files.find(uri)
    after_reading = moment == "decoded" and not uri.startswith(("/", "root"))

    def replacing_afterwards(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            replace()
            return result

        return call

    if moment == "listed":
        replace()
    elif moment == "checked":
        monkeypatch.setattr(files, "check", replacing_afterwards(files.check))
    else:
        monkeypatch.setattr(Decoding, "run", replacing_afterwards(Decoding.run))

    def prepare_folder():
        return prepare(
            entries,
            DataConfig.load(str(CONFIG)),
            str(tmp_path / "place"),
            for_training=True,
            skip_bad_files=skip_bad_files,
            report=lambda line: None,
        )

    if after_reading:  # S3 and web servers sent the version that was listed, completely
        assert prepare_folder().num_read == 40
        return
    with pytest.raises((InputError, StorageError), match=r"a\.root.* changed while it was read"):
        prepare_folder()
    assert list((tmp_path / "place").glob("cache/*")) == []
