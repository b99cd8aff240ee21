"""The local runner executes compiled container components as processes, for real, with small
pipelines of its own.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from kfp import compiler, dsl

from common.errors import InterruptedRun
from components import host_runner

IMAGE = "none:latest"


@dsl.container_component
def write(text: str, out: dsl.OutputPath(str), page: dsl.Output[dsl.HTML]):
    code = (
        "import os, sys; o = sys.argv[2]; os.makedirs(os.path.dirname(o), exist_ok=True); open(o,"
        " 'w').write(sys.argv[1].upper())"
    )
    return dsl.ContainerSpec(
        image=IMAGE, command=["python", "-c", code], args=[text, out, page.path]
    )


@dsl.container_component
def leave(text: str, path: str, code: int):
    program = (
        "import sys, os; open(sys.argv[2], 'a').write(sys.argv[1] + os.environ['MARK']);"
        " sys.exit(int(sys.argv[3]))"
    )
    return dsl.ContainerSpec(
        image=IMAGE, command=["python", "-c", program], args=[text, path, code]
    )


@dsl.container_component
def sleep(path: str):
    code = "import sys, os, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    return dsl.ContainerSpec(image=IMAGE, command=["python", "-c", code], args=[path])


@dsl.pipeline(name="two")
def two_steps(text: str, path: str, code: int = 0):
    """Display names are those of the chain's steps: they are no keys."""
    output_task = write(text=text).set_display_name("1 write (first)")
    leave(text=output_task.outputs["out"], path=path, code=code).set_display_name("2 leave")


@dsl.pipeline(name="with_exit_handler")
def with_exit_handler(path: str, code: int = 0):
    last = leave(text="last ", path=path, code=0).set_display_name("last")
    with dsl.ExitHandler(last):
        failing = leave(text="first ", path=path, code=code).set_retry(2, backoff_duration="60s")
        leave(text="never ", path=path, code=0).after(failing)


@dsl.container_component
def describe(artifact: dsl.Output[dsl.Model]):
    code = (
        "import json, os, sys; arguments = json.loads(sys.argv[1])['outputs'];"
        " os.makedirs(os.path.dirname(arguments['outputFile']), exist_ok=True);"
        " model = {'artifacts': [{'metadata': {'repository': 's3://bucket/model', 'jets': 7}}]};"
        " open(arguments['outputFile'], 'w').write(json.dumps({'artifacts': {'artifact': model}}))"
    )
    return dsl.ContainerSpec(image=IMAGE, command=["python", "-c", code], args=["{{$}}"])


@dsl.container_component
def look(artifact: dsl.Input[dsl.Model], path: str):
    code = (
        "import json, sys; arguments = json.loads(sys.argv[1])['inputs']['artifacts']['artifact'];"
        " open(sys.argv[2], 'w').write(json.dumps(arguments['artifacts'][0]))"
    )
    return dsl.ContainerSpec(image=IMAGE, command=["python", "-c", code], args=["{{$}}", path])


@dsl.pipeline(name="linked")
def with_artifact(path: str):
    last = leave(text="", path=f"{path}.last", code=0).set_display_name("last")
    with dsl.ExitHandler(last):
        look(artifact=describe().outputs["artifact"], path=path)


@dsl.pipeline(name="with-sleep")
def with_sleep(path: str):
    sleep(path=path)


@pytest.fixture
def run(tmp_path):
    def run_it(pipeline, quiet=False, **parameters):
        ir = tmp_path / "ir.yaml"
        compiler.Compiler().compile(pipeline, str(ir))
        steps = []
        host_runner.run_pipeline(
            ir,
            parameters,
            work=tmp_path / "work",
            environment={"MARK": "!"},
            on_end=lambda name, command: steps.append(command),
            quiet=quiet,
        )
        return steps

    return run_it


def test_the_output_of_a_step_is_the_input_of_the_next(run, tmp_path, monkeypatch):
    """kfp's own workspace lies below ours, and nothing stays in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert len(run(two_steps, text="yes", path=str(tmp_path / "out"))) == 2
    assert (tmp_path / "out").read_text() == "YES!"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_artifact_is_the_next_steps_input_with_its_metadata(run, tmp_path):
    run(with_artifact, path=str(tmp_path / "out"))
    artifact = json.loads((tmp_path / "out").read_text())
    assert artifact["metadata"] == {"repository": "s3://bucket/model", "jets": 7}
    assert artifact["type"]["schemaTitle"] == "system.Model"


def test_a_steps_exit_code_is_the_runs(run, tmp_path):
    with pytest.raises(host_runner.StepError) as failure:
        run(two_steps, text="yes", path=str(tmp_path / "out"), code=7)
    assert failure.value.exit_code == 7


def test_a_quiet_run_shows_only_the_last_lines_of_a_step_that_failed(run, tmp_path, capfd):
    run(two_steps, quiet=True, text="yes", path=str(tmp_path / "out"))
    assert capfd.readouterr().out == ""
    with pytest.raises(host_runner.StepError):
        run(two_steps, quiet=True, text="yes", path=str(tmp_path / "none" / "out"))
    assert "FileNotFoundError" in capfd.readouterr().out


@pytest.mark.timeout(50)  # a repeated attempt would wait for 60 s
def test_the_exit_handler_runs_after_a_failure_which_is_not_repeated_and_stays_the_runs(
    run, tmp_path
):
    with pytest.raises(host_runner.StepError) as failure:
        run(with_exit_handler, path=str(tmp_path / "out"), code=7)
    assert failure.value.exit_code == 7
    assert (tmp_path / "out").read_text() == "first !last !"


def test_sigint_ends_the_running_step(run, tmp_path):
    path = tmp_path / "pid"

    def interrupt():
        while not path.exists() or not path.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(InterruptedRun):
        run(with_sleep, path=str(path))
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_a_step_ends_with_its_killed_runner(tmp_path):
    """SIGKILL leaves no time to clean up: the kernel tells the step."""
    script = textwrap.dedent(f"""
        from tests.components.test_host_runner import *
        compiler.Compiler().compile(with_sleep, "{tmp_path}/ir.yaml")
        from pathlib import Path
        here = Path("{tmp_path}")
        parameters = dict(path=str(here / "pid"))
        host_runner.run_pipeline(here / "ir.yaml", parameters, work=here / "w", environment={{}})
    """)
    runner = subprocess.Popen([sys.executable, "-c", script], cwd=host_runner.ROOT)
    path, end = tmp_path / "pid", time.monotonic() + 60
    while (not path.exists() or not path.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    pid, end = int(path.read_text()), time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
