"""`python -m serving.serve`: one command from a run's folder to a server that answers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import storage
from common.errors import InputError, InterruptedRun
from serving import golden, serve, server_folder, server_processes
from serving.client import Client, golden_check
from serving.serve import main, models_at
from serving.triton import PortInUse, Server, ServerEnded, free_port
from tests.disks import fill, small_disk
from tests.exporting.small import write_repository
from tests.serving.conftest import NAME

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(repository, tmp_path) -> Path:
    """A run's folder as a colleague gets it: the model and its golden answers, no data."""
    folder = tmp_path / "runs" / "pfn-1a2b3c4d"
    shutil.copytree(repository / "model", folder / "model")
    shutil.copytree(repository / "golden", folder / "golden" / NAME)
    (folder / "run.json").write_text("{}")
    return folder


@contextlib.contextmanager
def serving(*words: object, cwd: Path = ROOT) -> Iterator[tuple[subprocess.Popen, str]]:
    """The running command and what it printed until it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.serve", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise AssertionError(process.stderr.read())
        yield process, "".join(lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stdout.close()
        process.stderr.close()


def url_of(text: str) -> str:
    return re.search(r"http://\S+", text)[0]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refusal(capsys, *words: object) -> str:
    """The error of a command that is refused with exit code 2."""
    assert main([str(word) for word in words]) == 2
    (error,) = re.findall(r"^error: .*", capsys.readouterr().err, re.MULTILINE | re.DOTALL)
    return error


def test_the_printed_lines_work_and_nothing_is_written_into_the_run(triton_runs, run):
    before = times(run)
    with serving(run) as (process, text):
        (curl,) = re.findall(r"^  (curl .*)$", text, re.MULTILINE)
        answer = subprocess.run(
            curl, shell=True, capture_output=True, text=True, timeout=20, check=True
        ).stdout
        golden = json.loads((run / "golden" / NAME / "response.json").read_text())
        data = json.loads(answer)["outputs"][0]["data"]
        assert data == pytest.approx(golden["outputs"][0]["data"], abs=1e-5)

        snippet = "\n".join(re.findall(r"^  ((?:import|from|print).*)$", text, re.MULTILINE))
        process_of_snippet = subprocess.run(
            [sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert str(data[0])[:8] in process_of_snippet.stdout, process_of_snippet.stderr

        again = subprocess.run(
            [sys.executable, "-m", "serving.serve", str(run)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
        (server,) = [running for running in server_folder.running() if running.url == url_of(text)]
        assert again.returncode == 0
        # a signal to the server itself would only restart it
        assert again.stdout == f"already served at {server.url} (pid {process.pid})\n"
        assert server.pid != process.pid
        assert golden_check(server.url, NAME, str(run / "golden" / NAME), 10).answer
    assert process.returncode == 0
    assert times(run) == before
    assert server not in list(server_folder.running())


def test_a_folder_with_a_hostile_name_is_served(triton_runs, repository, tmp_path):
    folder = tmp_path / "a b & 'c' \"d\" $(touch made) é"
    shutil.copytree(repository, folder)
    with serving(folder / "model", cwd=tmp_path) as (_, text):
        assert golden_check(url_of(text), NAME, str(folder / "golden"), 10).answer
    assert not list(tmp_path.rglob("made"))


def test_models_of_several_places_are_served_by_one_server_with_metrics(
    triton_runs, run, tmp_path, s3_bucket
):
    write_repository(tmp_path / "other", "other")
    storage.upload(tmp_path / "other" / "model", f"{s3_bucket}/models")
    grpc, metrics = free_port(), free_port()
    ports = ("--grpc-port", grpc, "--metrics-port", metrics)
    with serving(run, f"{s3_bucket}/models", *ports) as (_, text):
        assert golden_check(url_of(text), NAME, str(run / "golden" / NAME), 10).answer
        assert golden_check(url_of(text), "other", str(tmp_path / "other" / "golden"), 10).answer
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as reply:
            assert b'nv_inference_count{model="other"' in reply.read()
        request = storage.read_json(str(run / "golden" / NAME / "request.json"))
        inputs = golden.arrays(request["inputs"])
        over_grpc = Client(f"grpc://127.0.0.1:{grpc}", NAME).ask(inputs)
        over_http = Client(url_of(text), NAME).ask(inputs)
        for name, output in over_http.items():
            np.testing.assert_array_equal(over_grpc[name], output)


def test_a_model_that_the_gate_refused_is_served_with_a_warning(triton_runs, run, monkeypatch):
    from tests.records import metrics_record

    metrics_record(passed=False, reasons=["closure is off by 3 %"]).save(str(run / "metrics.json"))
    with serving(run) as (process, text):
        assert golden_check(url_of(text), NAME, str(run / "golden" / NAME), 10).answer
        assert process.stderr.readline() == (
            f"warning: the gate refused the model of {run}: closure is off by 3 %\n"
        )


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ('{"passed": true, "reasons": [], "of an earlier version": 1}', ""),
        ('{"passed": false, "reasons": ["closure is off"]}', "the gate refused"),
        ('{"passed": ', "nobody knows"),
        ("[]", "no verdict"),
    ],
)
def test_metrics_of_any_content_do_not_prevent_serving(run, metrics, words):
    (run / "metrics.json").write_text(metrics)
    warnings = {model.warning for model in models_at(str(run))}
    if words:
        assert all(words in warning for warning in warnings)
    else:
        assert warnings == {""}


@pytest.fixture
def refuse_to_read(monkeypatch):
    """Make a file unreadable, for root as well."""
    read_bytes = Path.read_bytes

    def refuse(file: Path) -> None:
        def read_other(path):
            if path == file:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return read_bytes(path)

        monkeypatch.setattr(Path, "read_bytes", read_other)

    return refuse


def test_unreadable_metrics_do_not_prevent_serving(run, refuse_to_read):
    (run / "metrics.json").write_text('{"passed": true}')
    refuse_to_read(run / "metrics.json")
    (model,) = models_at(str(run))
    assert "metrics.json: Permission denied" in model.warning


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1000}', None])
def test_a_card_that_cannot_be_read_does_not_prevent_serving(run, refuse_to_read, content):
    (run / "model_card.json").write_text(content or "{}")
    if content is None:
        refuse_to_read(run / "model_card.json")
    (model,) = models_at(str(run))
    assert model.card == ""


def test_an_unreadable_model_is_refused_by_its_own_path(run, refuse_to_read, capsys):
    onnx = run / "model" / NAME / "1" / "model.onnx"
    refuse_to_read(onnx)
    assert f"cannot read {onnx}: Permission denied" in refusal(capsys, run)


def server_at(url: str) -> server_folder.Running:
    (server,) = [running for running in server_folder.running() if running.url == url]
    return server


@pytest.mark.faults
def test_a_killed_server_is_restarted_and_ends_with_its_killed_command(triton_runs, run):
    with serving(run) as (process, text):
        process.stderr.readline()  # the model was not evaluated
        server = server_at(url_of(text))
        kill_time = time.monotonic()
        os.kill(server.pid, signal.SIGKILL)
        assert f"pid {server.pid}" in process.stderr.readline()
        assert time.monotonic() - kill_time < 20  # on a loaded machine too
        assert "runs again" in process.stdout.readline()
        again = server_at(url_of(text))
        assert again.pid != server.pid
        assert golden_check(again.url, NAME, str(run / "golden" / NAME), 10).answer

        folder = Path(os.readlink(f"/proc/{again.pid}/cwd"))
        assert len(list(folder.glob("python_env_*"))) == 1
        process.kill()
        process.wait()
        ends = time.monotonic() + 15
        while folder.exists() and time.monotonic() < ends:
            time.sleep(0.05)
        assert not folder.exists()
        assert server_processes.members(again.pid) == {}
        assert list(server_folder.SHARED_MEMORY.glob(f"{folder.name}*")) == []


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_temporary_folder_refuses_and_the_same_command_serves_later(
    triton_runs, run, tmp_path, monkeypatch
):
    """Whether a copy of a program has no room, or the log (Python avoids a full TMPDIR)."""
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        for free_bytes in (16 * 1024, 2 * 2**20, 2_875 * 1024):
            other = fill(disk, free_bytes)
            command = [sys.executable, "-m", "serving.serve", str(run)]
            process = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
            )
            assert process.returncode == 1, (free_bytes, process.stderr)
            assert "Traceback" not in process.stderr
            error = process.stderr.splitlines()[-1]
            assert error.startswith("error: ")
            assert f" in {disk};" in error
            assert "TMPDIR" in error
            assert [path.name for path in disk.iterdir()] == ["other"]
            other.unlink()
        with serving(run) as (_, text):
            answers = str(run / "golden" / NAME)
            assert golden_check(url_of(text), NAME, answers, 10).answer
            # also while its disk is full
            fill(disk)
            assert golden_check(url_of(text), NAME, answers, 10).answer
        assert [path.name for path in disk.iterdir()] == ["other"]


@pytest.mark.faults
def test_a_server_that_does_not_start_again_ends_the_command(run, monkeypatch, capsys):
    dead_server = Server(pid=2**22 + 1, url="http://127.0.0.1:8123", kind="triton", log="")
    starts = []

    def start(models, ports, log):
        starts.append(ports.http)
        if len(starts) == 2:
            raise InputError(f"the server cannot load {NAME}")
        return dead_server

    monkeypatch.setattr("serving.serve._start_server", start)
    monkeypatch.setattr("serving.restarts.FIRST_PAUSE", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(run), "--port", str(free_port())]) == 1
    assert starts[1] == 8123
    assert NAME in capsys.readouterr().err.partition("error: ")[2]


@pytest.mark.parametrize("is_ignored", [True, False])
def test_a_server_that_nohup_started_outlives_its_terminal(run, monkeypatch, is_ignored):
    def start(*_):
        raise KeyboardInterrupt

    handled = []
    before = signal.SIG_IGN if is_ignored else signal.SIG_DFL
    monkeypatch.setattr(signal, "getsignal", lambda _: before)
    monkeypatch.setattr(signal, "signal", lambda number, _: handled.append(number))
    monkeypatch.setattr("serving.serve._start_server", start)
    assert main([str(run)]) == 130
    assert handled == [signal.SIGTERM] + [signal.SIGHUP] * (not is_ignored)


@pytest.mark.parametrize(
    ("signal_error", "code"),
    [(KeyboardInterrupt(), 130), (InterruptedRun("by a signal"), InterruptedRun.exit_code)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_before_the_server_is_ready_is_no_success(
    run, monkeypatch, capsys, signal_error, code
):
    def start(*_):
        raise signal_error

    monkeypatch.setattr("serving.serve._start_server", start)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(run)]) == code
    assert capsys.readouterr().out == ""


def test_a_model_that_was_moved_away_is_named_by_a_restart(run, monkeypatch, capsys):
    def start(models, ports, log):
        if not servers:
            servers.append(Server(pid=2**22 + 1, url="http://127.0.0.1:1", kind="triton", log=""))
            return servers[0]
        return start_server(models, ports, log)

    servers = []
    start_server = serve._start_server
    monkeypatch.setattr("serving.serve._start_server", start)
    monkeypatch.setattr("serving.restarts.FIRST_PAUSE", 0.0)
    monkeypatch.setattr(
        "serving.restarts.last_errors", lambda log: run.rename(run.with_name("moved"))
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(run)]) == 1
    assert f"{NAME} is no longer at {run / 'model' / NAME}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "model" / NAME / "1" / "model.onnx").write_bytes(b"no"), NAME),
        (lambda run: (run / "model" / NAME / "1" / "model.onnx").unlink(), "1/model.onnx"),
        (lambda run: shutil.rmtree(run / "model"), "--resume pfn-1a2b3c4d"),
        (shutil.rmtree, "run.json"),
        (lambda run: (shutil.rmtree(run), run.mkdir()), "neither a run nor a model repository"),
    ],
    ids=["damaged", "no file", "no model", "nothing", "empty"],
)
def test_a_refused_command_leaves_no_server(triton_runs, run, damage, words, capsys):
    damage(run)
    servers = list(server_folder.running())
    assert words in refusal(capsys, run)
    assert list(server_folder.running()) == servers


@pytest.mark.parametrize("owner", [None, 12])
def test_models_that_are_served_already_are_told_with_the_process_to_end(
    run, tmp_path, monkeypatch, capsys, owner
):
    write_repository(tmp_path / "other", "other")
    of_run = {NAME: str(run / "model" / NAME)}
    of_other = {"other": str(tmp_path / "other" / "model" / "other")}
    servers = [
        server_folder.Running(pid=11, url="http://127.0.0.1:1", models=of_run, owner=owner),
        server_folder.Running(pid=21, url="http://127.0.0.1:2", models=of_other),
    ]
    monkeypatch.setattr(server_folder, "running", lambda: iter(servers))
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"already served at http://127.0.0.1:1 (pid {owner or 11})\n"
    assert main([str(run), str(tmp_path / "other" / "model")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{NAME}: already served at http://127.0.0.1:1 (pid {owner or 11})",
        "other: already served at http://127.0.0.1:2 (pid 21)",
    ]
    del servers[1]
    error = refusal(capsys, run, tmp_path / "other" / "model")
    assert "http://127.0.0.1:1" in error
    assert error.endswith(f"kill {owner or 11}\n")


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (f"runs/pfn-1a2b3c4d/model/{NAME}/1/model.onnx", f"runs/pfn-1a2b3c4d/model/{NAME}"),
        (f"runs/pfn-1a2b3c4d/model/{NAME}/1", f"runs/pfn-1a2b3c4d/model/{NAME}"),
        ("runs/pfn-1a2b3c4d/run.json", "runs/pfn-1a2b3c4d"),
        ("runs/pfn-1a2b3c4d/golden", "runs/pfn-1a2b3c4d"),
        ("runs", "runs/pfn-1a2b3c4d"),
        ("pfn-1a2b3c4d", "runs/pfn-1a2b3c4d"),
    ],
)
def test_a_place_without_a_model_is_refused_with_the_one_meant(
    run, monkeypatch, capsys, place, other
):
    monkeypatch.chdir(run.parents[1])
    assert refusal(capsys, place).endswith(f"; did you mean {run.parents[1] / other}?\n")


def test_a_file_of_a_model_on_s3_is_refused_with_its_folder(run, s3_bucket, capsys):
    model = f"{s3_bucket}/{run.name}/model/{NAME}"
    storage.upload(run / "model" / NAME, model)
    assert refusal(capsys, f"{model}/1/model.onnx").endswith(f"; did you mean {model}?\n")


def test_an_address_of_nothing_is_refused(capsys):
    assert "'s3://' names no bucket" in refusal(capsys, "s3://")
    with pytest.raises(SystemExit) as end:
        main([""])
    assert end.value.code == 2


def test_two_models_of_one_name_are_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    error = refusal(capsys, run, other)
    assert str(run / "model" / NAME) in error
    assert str(other / NAME) in error


def test_a_port_that_is_taken_is_refused(run, capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for flag in ("--port", "--grpc-port", "--metrics-port"):
            assert f"127.0.0.1:{port}" in refusal(capsys, run, flag, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a b", "a" * 64, "::1", "[::1]"])
@pytest.mark.parametrize("port", [(), ("--port", 9999)])
def test_an_address_of_another_machine_is_refused_before_the_start(
    run, monkeypatch, capsys, host, port
):
    monkeypatch.setattr("serving.serve._start_server", None)
    assert f"--host {host}" in refusal(capsys, run, "--host", host, *port)


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("0", "0.0.0.0")])
def test_a_name_of_this_machine_becomes_its_address(host, address):
    """Triton waits for ever if it gets a name."""
    assert serve._checked(serve.Ports(host=host)).host == address


@pytest.mark.parametrize(
    ("proxies", "is_bypassed"),
    [
        ({}, False),
        ({"http_proxy": "http://127.0.0.1:9"}, True),
        ({"all_proxy": "http://127.0.0.1:9"}, True),
        ({"https_proxy": "http://127.0.0.1:9"}, False),
        ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost,127.0.0.1"}, False),
    ],
)
def test_the_printed_curl_line_avoids_a_proxy(run, monkeypatch, proxies, is_bypassed):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    server = Server(pid=1, url="http://127.0.0.1:8123", kind="triton", log="")
    text = serve._usage(server, models_at(str(run)), serve.Ports(), run)
    assert f"  curl -s {'--noproxy' if is_bypassed else 'http:'}" in text


@pytest.mark.parametrize(
    "flags", [("--port", "--grpc-port"), ("--grpc-port", "--metrics-port")], ids=" ".join
)
def test_two_equal_ports_are_refused_before_the_start(run, monkeypatch, capsys, flags):
    monkeypatch.setattr("serving.serve._start_server", None)
    port = free_port()
    error = refusal(capsys, run, flags[0], port, flags[1], port)
    assert f"{flags[0]} and {flags[1]} are both {port}" in error


@pytest.mark.parametrize("is_given", [True, False])
def test_only_the_usual_port_is_replaced_if_it_is_taken_during_the_start(
    run, monkeypatch, capsys, is_given
):
    starts = []

    def start_models(models, **options):
        starts.append(options["http_port"])
        if options["http_port"]:
            raise PortInUse(f"port {options['http_port']} is in use")
        raise ServerEnded("", "the test ends here")

    monkeypatch.setattr("serving.triton.start_models", start_models)
    port = free_port()
    monkeypatch.setattr("serving.serve.DEFAULT_PORT", port)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    error = refusal(capsys, run, *(("--port", port) if is_given else ()))
    assert starts == ([port] if is_given else [port, 0])
    assert (f"port {port} is in use" in error) == is_given


def test_the_usual_port_of_http_is_left_to_grpc_if_that_is_there(run, monkeypatch):
    starts = []

    def start_models(models, **options):
        starts.append(options["http_port"])
        raise ServerEnded("", "the test ends here")

    monkeypatch.setattr("serving.triton.start_models", start_models)
    monkeypatch.setattr("serving.serve.DEFAULT_PORT", free_port())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(run)]) == 2
    assert main([str(run), "--grpc-port", str(serve.DEFAULT_PORT)]) == 2
    assert starts == [serve.DEFAULT_PORT, 0]


def test_s3_without_rights_or_bucket_is_refused(run, s3_bucket, monkeypatch, capsys, no_pauses):
    assert "nothing at" in refusal(capsys, f"{s3_bucket}/none")
    assert "no bucket 'jec-none'" in refusal(capsys, "s3://jec-none/run")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage.forget_client()
    assert "cannot reach" in refusal(capsys, f"{s3_bucket}/run")
    storage.forget_client()


def test_a_killed_server_whose_helpers_still_end_does_not_run():
    folder = server_folder.create()
    alive, ended = os.getpid(), 2**22 + 1  # beyond the largest pid that Linux gives
    for pid in (alive, ended):
        record = server_folder.Running(pid=pid, url="http://127.0.0.1:1", models={})
        folder.record(record)
        assert (record in list(server_folder.running())) == (pid == alive)
    folder.leave()
    server_folder.remove_abandoned()


def test_a_model_in_the_form_of_a_folder_is_linked(tmp_path):
    """Triton's ONNX backend takes model.onnx as a folder, with the weights in files beside it."""
    version = tmp_path / "m" / "1"
    (version / "model.onnx").mkdir(parents=True)
    (version / "model.onnx" / "weights").write_bytes(b"0" * 8)
    folder = server_folder.create()
    folder.add_models({"m": str(tmp_path / "m")})
    assert (folder.repository / "m" / "1" / "model.onnx" / "weights").is_file()
    folder.leave()
    server_folder.remove_abandoned()


def test_folders_of_servers_that_were_killed_are_removed(tmp_path):
    folder = server_folder.create()
    folder_in_use = server_folder.create()
    assert folder.path.exists()
    folder.leave()
    server_folder.remove_abandoned()
    assert not folder.path.exists()
    assert folder_in_use.path.exists()
    folder_in_use.leave()
    server_folder.remove_abandoned()


def test_a_removal_that_was_interrupted_is_repeated(tmp_path, monkeypatch):
    """The lock goes last, so that the folder of an interrupted removal counts as abandoned."""
    monkeypatch.setattr(server_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = server_folder.create()
    (folder.path / "repository").mkdir()
    record = {"pid": 1, "url": "http://127.0.0.1:1", "models": {}}
    (folder.path / "server.json").write_text(json.dumps(record))
    folder.leave()

    def interrupt(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server_folder.shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server_folder.remove_abandoned()
    assert (folder.path / "lock").exists()
    server_folder.remove_abandoned()
    assert not folder.path.exists()


def test_a_folder_that_lost_its_lock_is_no_running_server(tmp_path, monkeypatch):
    monkeypatch.setattr(server_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = server_folder.create()
    record = {"pid": 1, "url": "http://127.0.0.1:1", "models": {}}
    (folder.path / "server.json").write_text(json.dumps(record))
    folder.leave()
    (folder.path / "lock").unlink()
    assert folder.path in server_folder._folders()
    server_folder.remove_abandoned()
    assert folder.path.exists()  # it may be new
    before = time.time() - 2 * server_folder.NEW_SECONDS
    os.utime(folder.path, (before, before))
    assert record["url"] not in [server.url for server in server_folder.running()]
    server_folder.remove_abandoned()
    assert not folder.path.exists()


def test_a_temporary_folder_with_a_hostile_name_is_not_used(tmp_path, monkeypatch):
    hostile = tmp_path / "a b"
    hostile.mkdir()
    monkeypatch.setattr(server_folder.tempfile, "gettempdir", lambda: str(hostile))
    folder = server_folder.create()
    assert hostile not in folder.path.parents
    folder.leave()
    server_folder.remove_abandoned()
