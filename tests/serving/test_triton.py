"""Real servers: the golden request returns the golden answer, and wrong requests are refused with
a reason.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from common import storage
from common.errors import ClusterError, DeadlineError, InputError
from serving import golden, server_folder, server_processes, triton, triton_wheel
from serving.client import Client, golden_check
from tests.serving.conftest import NAME
from weaver.onnx.parity import session

ROOT = Path(__file__).parents[2]


def golden_request(repository: Path, num_jets: int = 1) -> dict:
    return storage.read_json(
        str(
            repository
            / "golden"
            / ("request.json" if num_jets == 1 else f"request-{num_jets}.json")
        )
    )


def group_of(pid: int) -> list[int]:
    """Processes of the group that `pid` leads."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(group) == pid and state != "Z":
            names.append(int(stat.parent.name))
    return names


def shared_memory_of(server: triton.Server):
    """A function that lists the server's regions in /dev/shm, also after its end."""
    identity = (
        Path(f"/proc/{server.pid}/environ")
        .read_bytes()
        .decode()
        .split("JEC_SERVER_ID=")[1]
        .split("\0")[0]
    )
    return lambda: Path("/dev/shm").glob(f"{identity}*")


# --------------------------------------------------------------------------- both kinds of server


def test_golden_requests_come_back_with_the_golden_answers(server, repository):
    checked = golden_check(server.url, NAME, str(repository / "golden"), 30)
    assert set(checked.max_difference) == {"1", "100"}
    assert max(checked.max_difference.values()) < 1e-6
    assert checked.answer["outputs"][0]["shape"] == [1, 1]


def test_arrays_travel_as_bytes_with_the_same_answer(server, repository):
    inputs = golden.arrays(golden_request(repository, 100)["inputs"])
    expected = golden.arrays(
        storage.read_json(str(repository / "golden" / "response-100.json"))["outputs"]
    )
    client = Client(server.url, NAME)
    for _ in range(2):  # the second time over the kept connection
        answer = client.ask(inputs)
        np.testing.assert_allclose(answer["output"], expected["output"], atol=1e-6)
    with pytest.raises(InputError, match="pf_mask"):
        client.ask({name: array for name, array in inputs.items() if name != "pf_mask"})


def test_the_server_serves_the_model_of_config_pbtxt(server):
    metadata = Client(server.url, NAME).metadata()
    shapes = {
        tensor["name"]: (tensor["datatype"], tensor["shape"])
        for tensor in (*metadata["inputs"], *metadata["outputs"])
    }
    assert shapes == {
        "pf_features": ("FP32", [-1, 4, 20]),
        "pf_mask": ("FP32", [-1, 1, 20]),
        "jet_features": ("FP32", [-1, 3]),
        "output": ("FP32", [-1, 1]),
    }


def test_a_wrong_shape_is_refused_with_the_servers_message(server, repository):
    body = golden_request(repository)
    body["inputs"][0] |= {"shape": [1, 4, 19], "data": body["inputs"][0]["data"][:76]}
    with pytest.raises(
        InputError,
        match=(
            r"unexpected shape for input 'pf_features'.*Expected \[-1, ?4, ?20\], got \[1, ?4,"
            r" ?19\]"
        ),
    ):
        Client(server.url, NAME).infer(body)


def test_a_missing_input_is_refused(server, repository):
    body = golden_request(repository)
    del body["inputs"][1]
    with pytest.raises(InputError, match="pf_mask"):
        Client(server.url, NAME).infer(body)


def test_more_jets_than_max_batch_size_are_refused(server, repository):
    body = golden_request(repository)
    for tensor in body["inputs"]:
        tensor["data"] *= 1025
        tensor["shape"][0] = 1025
    with pytest.raises(InputError, match=r"(?s)batch.size.*1024"):
        Client(server.url, NAME).infer(body)


def test_the_error_for_an_unknown_model_lists_the_served_ones(server, repository):
    with pytest.raises(InputError, match="unknown model 'smal'; did you mean 'small'"):
        Client(server.url, "smal").infer(golden_request(repository))


def test_the_server_listens_on_this_machine_only(server):
    port = int(server.url.rsplit(":", 1)[1])
    addresses = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    listening = [address for address in addresses if int(address.split(":")[1], 16) == port]
    assert [address.split(":")[0] for address in listening] == ["0100007F"]


def test_the_log_does_not_grow_with_requests(server, repository):
    client, body, log = Client(server.url, NAME), golden_request(repository), Path(server.log)
    client.infer(body)
    before = log.stat().st_size
    for _ in range(20):
        client.infer(body)
    assert log.stat().st_size == before


# ------------------------------------------------------------------------------------ Triton only


@pytest.fixture
def start_triton(triton_runs, tmp_path):
    """Start Triton over a repository; every server is ended after the test."""
    servers = []

    def start(repository: Path, **options) -> triton.Server:
        server = triton.start(
            repository,
            **{
                "model_name": NAME,
                "log": tmp_path / "server.log",
                **options,
            },
        )
        servers.append(server)
        return server

    yield start
    for server in servers:
        triton.stop(server.pid, seconds=0.2)  # with the default exit timeout it takes 2 seconds


def test_requests_that_wait_are_run_together(start_triton, repository, tmp_path):
    shutil.copytree(repository / "model", tmp_path / "model")
    config = tmp_path / "model" / NAME / "config.pbtxt"
    batching = re.compile(r"^dynamic_batching \{\s*\}", re.MULTILINE)
    # Requests are made to wait for each other, so that the test does not depend on how busy the
    # machine is.
    text, count = batching.subn(
        "dynamic_batching { max_queue_delay_microseconds: 200000 }", config.read_text()
    )
    assert count == 1
    config.write_text(text)
    server = start_triton(tmp_path / "model")

    def executions() -> tuple[int, int]:
        with urllib.request.urlopen(f"{server.url}/v2/models/{NAME}/stats", timeout=10) as response:
            stats = json.load(response)["model_stats"][0]
        return stats["inference_count"], stats["execution_count"]

    client, body = Client(server.url, NAME), golden_request(repository)
    expected = storage.read_json(str(repository / "golden" / "response.json"))["outputs"][0][
        "data"
    ][0]
    jets, runs = executions()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [
            answer["outputs"][0]["data"][0]
            for answer in pool.map(lambda _: client.infer(body), range(160))
        ]
    jets, runs = executions()[0] - jets, executions()[1] - runs
    assert answers == pytest.approx([expected] * 160, abs=1e-6)
    assert jets == 160
    assert runs < 160


@pytest.mark.parametrize("server", ["triton"], indirect=True)
def test_requests_of_any_size_are_each_answered_with_their_own_jets(server, repository):
    runtime = session(repository / "model" / NAME / "1" / "model.onnx")
    rng = np.random.default_rng(0)
    sizes = [1, 200, 3, 33, 64, 7, 1000]  # more and fewer jets than the backend runs at once
    shapes = {"pf_features": (4, 20), "pf_mask": (1, 20), "jet_features": (3,)}
    requests = [
        {
            name: rng.uniform(0.1, 2, (size, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        for size in sizes
    ]
    client = Client(server.url, NAME)
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(client.ask, requests * 3))
    for inputs, answer in zip(requests * 3, answers, strict=True):
        np.testing.assert_allclose(
            answer["output"], runtime.run(None, inputs)[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "dims: [4, 20]",
            "dims: [4, 19]",
            r"'pf_features': dims \[4, 19\].*the model has \[-1, 4, 20\]",
        ),
        ("TYPE_FP32", "TYPE_FP16", "'pf_features': TYPE_FP16 in the configuration"),
        (
            '"pf_mask"',
            '"pf_maks"',
            "unexpected input 'pf_maks', the model has: pf_features, pf_mask, jet_features",
        ),
        ('name: "small"', 'name: "smal"', "directory name must equal model name"),
        ("max_batch_size", "max_batch_sise", 'no field named "max_batch_sise"'),
    ],
    ids=["dim", "type", "input name", "model name", "field"],
)
def test_triton_refuses_a_config_that_does_not_fit(
    start_triton, repository, tmp_path, old, new, words
):
    shutil.copytree(repository / "model", tmp_path / "model")
    config = tmp_path / "model" / NAME / "config.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(
        ClusterError,
        match=f"(?s)triton ended with exit code 1 before model {NAME} was ready.*{words}",
    ):
        start_triton(tmp_path / "model")


@pytest.mark.parametrize("level", [1, -1, 2])
def test_each_graph_level_and_the_backends_parameters_are_obeyed(
    start_triton, repository, tmp_path, level
):
    from weaver.onnx.triton_config import triton_config

    shutil.copytree(repository / "model", tmp_path / "model")
    folder = tmp_path / "model" / NAME
    text = triton_config(
        folder / "1" / "model.onnx",
        NAME,
        graph_level=level,
        parameters={"intra_op_thread_count": 1},
    )
    (folder / "config.pbtxt").write_text(text)
    server = start_triton(tmp_path / "model")
    checked = golden_check(server.url, NAME, str(repository / "golden"), 30)
    assert max(checked.max_difference.values()) < 1e-6


def test_stop_leaves_no_process_and_no_shared_memory(start_triton, repository):
    server = start_triton(repository / "model")
    regions = shared_memory_of(server)
    assert len(group_of(server.pid)) == 2  # the server and the process of its one model instance
    assert len(list(regions())) == 1
    assert triton.is_running(server.pid)
    assert triton.stop(server.pid)
    assert group_of(server.pid) == []
    assert not list(regions())
    assert not triton.stop(server.pid)


def test_a_server_that_does_not_end_is_killed_with_its_children(start_triton, repository):
    server = start_triton(repository / "model")
    regions = shared_memory_of(server)
    os.kill(server.pid, signal.SIGSTOP)  # cannot react to SIGTERM any more
    assert triton.stop(server.pid, seconds=0.5)
    assert group_of(server.pid) == []
    assert not list(regions())


def test_processes_of_a_killed_server_are_ended(start_triton, repository):
    server = start_triton(repository / "model")
    regions = shared_memory_of(server)
    os.kill(server.pid, signal.SIGKILL)  # as the system does when memory runs out
    assert triton.stop(server.pid)
    assert group_of(server.pid) == []
    assert not list(regions())


def test_a_server_outlives_the_process_that_started_it(triton_runs, repository, tmp_path):
    code = (
        "import sys; from serving import triton; print(triton.start(sys.argv[1],"
        " model_name=sys.argv[2], log=sys.argv[3] + '/server.log', kind='triton').pid)"
    )
    command = [sys.executable, "-c", code, str(repository / "model"), NAME, str(tmp_path)]
    pid = int(
        subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        ).stdout
    )
    try:
        assert triton.is_running(pid)
        url = (tmp_path / "server.log").read_text().split()[6]
        assert golden_check(url, NAME, str(repository / "golden"), 10).answer
    finally:
        assert triton.stop(pid, seconds=0.2)
    assert group_of(pid) == []


def test_a_port_lost_to_another_process_is_replaced_by_the_next(
    start_triton, repository, monkeypatch
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        real = triton.free_port
        ports = [listener.getsockname()[1]]
        monkeypatch.setattr(triton, "free_port", lambda: ports.pop() if ports else real())
        server = start_triton(repository / "model")
    assert Path(server.log).read_text().count("starting triton") == 2
    assert Client(server.url, NAME).ready()


def test_triton_runs_from_a_read_only_wheel(start_triton, repository, tmp_path, monkeypatch):
    wheel = triton_wheel.find()
    stub = tmp_path / wheel.stub.name
    shutil.copyfile(wheel.stub, stub)
    stub.chmod(0o444)  # not even executable, as some installers leave it
    monkeypatch.setattr(triton_wheel, "find", lambda: dataclasses.replace(wheel, stub=stub))
    assert triton.triton_unusable(tmp_path / "work") == ""
    assert start_triton(repository / "model").kind == "triton"


# ------------------------------------------------------------------------- whichever server it is


@pytest.fixture
def kserve(tmp_path):
    return {
        "model_name": NAME,
        "log": tmp_path / "server.log",
        "kind": "kserve-server",
    }


def test_kserves_server_answers_where_triton_is_missing_and_says_so(
    repository, kserve, monkeypatch
):
    monkeypatch.setattr(triton_wheel, "find", lambda: None)
    lines: list[str] = []
    server = triton.start(
        repository / "model", **{**kserve, "kind": "auto", "report": lines.append}
    )
    try:
        assert server.kind == "kserve-server"
        assert "nvidia-pytriton is not installed" in server.reason
        message = (
            "serving with kserve's model server instead of Triton: nvidia-pytriton is not installed"
        )
        assert message in lines[0]
        assert message in Path(server.log).read_text()
        assert golden_check(server.url, NAME, str(repository / "golden"), 30).answer
    finally:
        assert triton.stop(server.pid)
    assert group_of(server.pid) == []


def test_triton_with_a_missing_library_counts_as_unusable(triton_runs, tmp_path, monkeypatch):
    wheel = triton_wheel.find()
    failing_program = tmp_path / "tritonserver"
    failing_program.write_text(
        "#!/bin/sh\necho 'tritonserver: error while loading shared libraries: libdcgm.so: cannot"
        " open' >&2\nexit 127\n"
    )
    failing_program.chmod(0o755)
    monkeypatch.setattr(
        triton_wheel, "find", lambda: dataclasses.replace(wheel, server=failing_program)
    )
    assert (
        triton.triton_unusable(tmp_path / "work")
        == "tritonserver: error while loading shared libraries: libdcgm.so: cannot open"
    )


def test_kserves_server_refuses_a_config_that_does_not_fit(repository, kserve, tmp_path):
    shutil.copytree(repository / "model", tmp_path / "model")
    config = tmp_path / "model" / NAME / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [4, 20]", "dims: [4, 19]"))
    with pytest.raises(
        ClusterError,
        match=r"(?s)kserve-server ended with exit code 2.*input 'pf_features' has dims \[4, 19\]",
    ):
        triton.start(tmp_path / "model", **kserve)


def test_a_port_in_use_is_refused_where_it_was_asked_for(repository, kserve):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ClusterError, match="in use by another process; give another one"):
            triton.start(
                repository / "model",
                **{**kserve, "kind": "auto"},
                http_port=listener.getsockname()[1],
            )


def test_a_wait_ends_at_its_deadline_and_leaves_nothing(repository, kserve, monkeypatch):
    pids = []
    launch = server_processes.launch

    def launch_and_record(*args, **options):
        process = launch(*args, **options)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(server_processes, "launch", launch_and_record)
    with pytest.raises(
        DeadlineError,
        match=r"(?s)model small was not ready within 0 s; last lines of .*server.log:\n.*starting",
    ):
        triton.start(repository / "model", **kserve, deadline=0.0)
    assert group_of(pids[0]) == []


class Launched(Exception):
    """Raised in place of a start."""


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "it's",
        'a"b',
        "a&b;c|d",
        "$HOME",
        "$(touch made)",
        "`touch made`",
        "é ü",
        "*?[a]",
    ],
)
@pytest.mark.parametrize("kind", ["triton", "kserve-server"])
def test_the_server_gets_no_path_of_the_user(
    repository, tmp_path, monkeypatch, request, name, kind
):
    """Neither on its command line nor in its environment: Triton makes a shell line of them."""
    if kind == "triton":
        request.getfixturevalue("triton_runs")
    model = tmp_path / name / "model"
    shutil.copytree(repository / "model", model)
    launched = {}

    def launch(command, env, *, folder, **_):
        own = {key: value for key, value in env.items() if os.environ.get(key) != value}
        launched.update(words=[*command, *own.values()], folder=folder)
        assert (folder.repository / NAME / "config.pbtxt").read_bytes()
        raise Launched

    monkeypatch.setattr(server_processes, "launch", launch)
    with pytest.raises(Launched):
        triton.start(model, model_name=NAME, log=model.parent / "server.log", kind=kind)
    assert not any(str(model.parent) in word for word in launched["words"])
    assert server_folder.PLAIN.fullmatch(str(launched["folder"].path))
    assert not list(tmp_path.rglob("made"))


def test_a_model_that_is_not_in_the_repository_is_refused_before_anything_starts(
    repository, kserve
):
    with pytest.raises(InputError, match="unknown model 'smalll'; did you mean 'small'"):
        triton.start(repository / "model", **{**kserve, "model_name": "smalll"})
    assert not Path(kserve["log"]).exists()


def test_a_repository_on_s3_is_copied(repository, kserve, s3_bucket):
    storage.upload(repository / "model", f"{s3_bucket}/run/model")
    server = triton.start(f"{s3_bucket}/run/model", **{**kserve, "kind": "auto"})
    try:
        assert Client(server.url, NAME).ready()
    finally:
        assert triton.stop(server.pid, seconds=0.2)


def test_stop_does_not_end_a_process_that_is_no_server():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert not triton.stop(process.pid)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_an_unknown_kind_is_refused(repository, kserve):
    with pytest.raises(InputError, match="unknown kind of server 'tritn'; did you mean 'triton'"):
        triton.start(repository / "model", **{**kserve, "kind": "tritn"})
