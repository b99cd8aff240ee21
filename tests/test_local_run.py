"""The whole chain on this machine, as a user runs it: real ROOT files, real processes, a real
Triton where its wheel is installed.
"""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import storage
from evaluating.jet_columns import FRACTIONS
from serving import server_processes, triton
from serving.client import Client
from tests.servers.handling import handling
from tests.watching import Watch
from tests.weaver.conftest import synthetic_jets, write_jets

ROOT = Path(__file__).resolve().parents[1]
SMALL_SPACE = json.dumps(
    {
        "parameters": [
            {"name": "conv-dim", "type": "discrete", "list": [8, 16]},
            {
                "name": "start-lr",
                "type": "double",
                "min": 1e-3,
                "max": 1e-2,
                "distribution": "logUniform",
            },
        ]
    }
)
QUICK = [
    "--runner",
    "local",
    "--search-space",
    SMALL_SPACE,
    "--max-trials",
    "3",
    "--parallel-trials",
    "2",
    "--num-epochs",
    "3",
    "--batch-size",
    "100",
    "--min-improvement",
    "-1000000",
    "--max-closure",
    "1000",
    "--max-resolution-ratio",
    "1000",
    "--max-tail-ratio",
    "1000",
    "--max-flavour-ratio",
    "1000",
    "--max-coverage-points",
    "100",
]


def pipeline(*args, check=True, **options):
    answer = subprocess.run(
        [sys.executable, "pipeline.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        **options,
    )
    assert not check or answer.returncode == 0, answer.stdout + answer.stderr
    return answer


def data_flags(folder):
    return [
        part
        for split in ("train", "val", "test")
        for part in (f"--data-{split}", f"{folder}/{split}/*.root")
    ]


def processes_of(folder):
    """Command lines of living processes that name the folder."""
    hits = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if str(folder) in line and path.parent.name != str(os.getpid()):
            hits.append(line)
    return hits


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    for seed, (name, count) in enumerate(
        {"train/a": 700, "train/b": 500, "val/a": 300, "test/a": 1500}.items(), start=11
    ):
        write_jets(folder / f"{name}.root", synthetic_jets(count, seed))
    return folder


CANARY = "canary-7f3a"
SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "BEARER_TOKEN"),
    *("KFP_TOKEN", "KFP_USERNAME", "KFP_PASSWORD", "MLFLOW_TRACKING_PASSWORD"),
)
"""Variables in which a user keeps a secret."""
SECRET_FILES = (
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"),
    *("BEARER_TOKEN_FILE", "X509_USER_PROXY", "NETRC"),
)
"""Variables with the path of a file that holds one."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
"""Variables with an address that may have a login."""


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook whose address is a secret."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hook():
    with handling(Hook, paths=[]) as server:
        yield server


@pytest.fixture(scope="module")
def secrets(hook, tmp_path_factory):
    """The environment of a user who has a secret in every place that may hold one."""
    folder = tmp_path_factory.mktemp("secrets")
    files = {}
    for variable in SECRET_FILES:
        files[variable] = folder / variable.lower()
        files[variable].write_text(f"# {CANARY}\n")
    keys = f"[default]\naws_access_key_id = x\naws_secret_access_key = {CANARY}\n"
    files["AWS_SHARED_CREDENTIALS_FILE"].write_text(keys)
    (folder / "site.yaml").write_text(f"# the token is {CANARY}\nseed: 42\n")
    return {
        **os.environ,
        **dict.fromkeys(SECRETS, CANARY),
        **{variable: str(path) for variable, path in files.items()},
        # no process listens there; requests to this machine go there directly
        **dict.fromkeys(PROXIES, f"http://user:{CANARY}@127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        "JEC_CONFIG": str(folder / "site.yaml"),
        "JEC_WEBHOOK": f"http://127.0.0.1:{hook.server_port}/{CANARY}",
    }


@pytest.fixture(scope="module")
def watched_run(jets, secrets, tmp_path_factory):
    """A finished run: what it printed, its folder, and what its processes showed."""
    output = tmp_path_factory.mktemp("runs")
    with Watch(output) as watch:
        answer = pipeline(*QUICK, *data_flags(jets), "--output", output, env=secrets)
    return answer, output, watch


@pytest.fixture(scope="module")
def finished_run(watched_run):
    """A finished run: what it printed, and its folder."""
    return watched_run[:2]


@pytest.mark.faults
def test_all_processes_of_a_run_listen_on_this_machine_only(watched_run):
    watch = watched_run[2]
    for program in ("components.search", "weaver.train", "components.deploy", "--http-port="):
        assert any(program in line for line in watch.arguments), program
    assert watch.addresses <= {"127.0.0.1", "::1"}
    assert watch.addresses, "the model server listens"


@pytest.mark.faults
def test_no_argument_of_any_process_has_a_secret(watched_run):
    assert [line for line in watched_run[2].arguments if CANARY in line] == []


@pytest.mark.faults
def test_the_webhook_is_called_and_no_secret_is_kept_anywhere(finished_run, hook):
    answer, output = finished_run
    assert hook.paths == [f"/{CANARY}"]
    status = pipeline("--status", "latest", "--output", output, check=False)
    assert CANARY not in answer.stdout + answer.stderr + status.stdout + status.stderr
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_the_runs_folder_has_all_results(finished_run):
    run = finished_run[1] / "latest"
    name = json.loads((run / "service.json").read_text())["name"]
    expected = [
        "run.json",
        "search.json",
        "metrics.json",
        "report.html",
        "config/data.yaml",
        "config/network.py",
        "config/search_space.json",
        f"model/{name}/config.pbtxt",
        f"model/{name}/1/model.onnx",
        f"golden/{name}/request.json",
    ]
    assert [path for path in expected if not (run / path).is_file()] == []
    assert not list(run.rglob(".partial-*"))
    assert (run / "config" / "data.yaml").read_bytes() == (
        ROOT / "data" / "jec_pfn_open.yaml"
    ).read_bytes()
    for trial in (run / "trials").iterdir():
        assert {"metrics.log", "checkpoint.pt", "best.pt", "options.json"} <= {
            path.name for path in trial.iterdir()
        }
    assert len(list((run / "trials").iterdir())) == 3


def test_the_last_lines_name_the_results_and_the_next_commands(finished_run):
    text = finished_run[0].stdout
    for words in ("best trial", "gain", "served by", "answer", "next: look at"):
        assert words in text
    calibrate, train = text.rstrip().splitlines()[-2:]
    folder = (finished_run[1] / "latest").resolve()
    assert "python -m serving.calibrate" in calibrate
    assert calibrate.split("--model ")[1].split()[0].endswith(folder.name)
    assert f"--rerun {folder.name} --data-train" in train


def test_the_network_is_compared_with_trees_on_the_files_columns(finished_run):
    metrics = json.loads((finished_run[1] / "latest" / "metrics.json").read_text())
    # These files have no kinds of candidates, of which the shares of the pT would be made.
    assert set(FRACTIONS) <= set(metrics["trees"]["missing"])
    assert "QG_mult" in metrics["trees"]["columns"]
    assert metrics["gain_over_trees"]["low"] < metrics["gain_over_trees"]["high"]
    assert {group["name"] for group in metrics["importances"]["groups"]} == {
        "pf (particles)",
        "jet_features",
    }
    assert "resolution gain over boosted trees: " in finished_run[0].stdout


def test_run_json_is_the_configuration_as_it_ran(finished_run, jets):
    record = json.loads((finished_run[1] / "latest" / "run.json").read_text())
    assert record["run_id"] == (finished_run[1] / "latest").resolve().name
    assert re.fullmatch(r"pfn-regressor-open-[0-9a-f]{8}", record["run_id"])
    assert record["config"]["num_epochs"] == 3
    assert record["config"]["data_test"] == f"{jets}/test/*.root"
    assert record["versions"]["torch"].startswith("2.")
    assert record["data"]["train"]["files"] == 2


def test_the_best_trial_has_the_least_validation_loss(finished_run):
    search = json.loads((finished_run[1] / "latest" / "search.json").read_text())
    losses = {trial["name"]: trial["metrics"]["AvgLoss"]["min"] for trial in search["trials"]}
    assert len(losses) == 3
    assert search["optimal"] == min(losses, key=losses.get)


def test_the_served_model_is_pytorchs_best_checkpoint(finished_run):
    """model.onnx against best.pt on the test jets, which the export never saw."""
    import onnxruntime
    import torch

    from weaver.feed.dataset import Dataset
    from weaver.predict import load_model

    run = finished_run[1] / "latest"
    search = json.loads((run / "search.json").read_text())
    model, _, data_config = load_model(str(run / "trials" / search["optimal"]), str(run / "config"))
    dataset = Dataset.open(str(run / "data" / "test.json"), data_config)
    batch = dataset.batch(np.arange(len(dataset)))
    with torch.no_grad():
        expected = model(*(batch.inputs[name] for name in data_config.input_names)).numpy()
    session = onnxruntime.InferenceSession(next(run.glob("model/*/1/model.onnx")))
    answers = session.run(None, {name: values.numpy() for name, values in batch.inputs.items()})[0]
    difference = np.abs(answers - expected)
    assert np.mean(difference <= 1e-5) >= 0.999
    assert difference.max() <= 1e-3
    assert np.std(expected) > 1e-3, (
        "a model that says the same of all jets would pass without being compared"
    )


def test_the_service_gave_the_golden_answer_and_is_gone(finished_run):
    service = json.loads((finished_run[1] / "latest" / "service.json").read_text())
    assert max(service["golden"]["max_difference"].values()) <= 1e-5
    assert service["kind"] in ("triton", "kserve-server")
    end = time.monotonic() + 10
    while processes_of(finished_run[1]) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(finished_run[1]) == []


def test_the_test_set_reached_no_trial(finished_run, jets):
    record = json.loads((finished_run[1] / "latest" / "run.json").read_text())
    for log in finished_run[1].glob("latest/trials/*/options.json"):
        assert record["data"]["test"]["dataset"] not in log.read_text()
    for line in finished_run[1].glob("latest/trials/*/metrics.log"):
        assert len([row for row in line.read_text().splitlines() if " AvgLoss=" in row]) == 3, (
            "one validation loss an epoch, no other"
        )


def test_resuming_a_finished_run_trains_nothing_again(finished_run):
    output = finished_run[1]
    run_id = (output / "latest").resolve().name
    before = {path: path.stat().st_mtime_ns for path in output.glob("latest/trials/*/best.pt")}
    jobs = [
        step["job_id"]
        for step in json.loads((output / "latest/status.json").read_text())["steps"].values()
    ]
    answer = pipeline("--output", output, "--resume", run_id, "--runner", "local")
    again = [
        step["job_id"]
        for step in json.loads((output / "latest/status.json").read_text())["steps"].values()
    ]
    assert len(set(jobs)) == len(set(again)) == 1, (
        "each step of a job notes that it was there, prepare too"
    )
    assert set(jobs) != set(again)
    assert {
        path: path.stat().st_mtime_ns for path in output.glob("latest/trials/*/best.pt")
    } == before
    assert "started:" not in answer.stdout
    assert "served by" in answer.stdout


@pytest.mark.slow
def test_a_run_that_starts_at_deploy_keeps_its_model_and_its_verdict(finished_run):
    run = (finished_run[1] / "latest").resolve()
    files = [run / "metrics.json", *run.glob("model/*/1/model.onnx"), *run.glob("trials/*/best.pt")]
    before = [path.stat().st_mtime_ns for path in files]
    service_time = (run / "service.json").stat().st_mtime_ns
    words = ["--output", finished_run[1], "--resume", run.name, "--start-at", "deploy"]
    answer = pipeline(*words, "--runner", "local")
    assert [path.stat().st_mtime_ns for path in files] == before
    assert (run / "service.json").stat().st_mtime_ns > service_time
    assert "served by" in answer.stdout


def test_a_run_on_the_same_data_ends_before_its_training(finished_run):
    output = finished_run[1]
    latest = (output / "latest").resolve()
    before = set(output.iterdir())
    answer = pipeline("--rerun", "latest", "--if-data-changed", "--output", output)
    assert latest.name in answer.stdout.splitlines()[-1]
    assert (output / "latest").resolve() == latest
    (new_run,) = set(output.iterdir()) - before
    assert json.loads((new_run / "summary.json").read_text())["state"] == "unchanged"
    assert not (new_run / "trials").exists()
    table = pipeline("--list", "--output", output).stdout
    assert any(
        line.split()[0] == new_run.name and "unchanged" in line for line in table.splitlines()
    )
    status = pipeline("--status", new_run.name, "--output", output)
    assert f"unchanged: run {latest.name} " in status.stdout
    pipeline("--down", new_run.name, "--storage", "--yes", "--output", output)
    assert not new_run.exists()


def test_serving_a_run_that_has_ended_only_starts_the_server(finished_run):
    output = finished_run[1]
    run = (output / "latest").resolve()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process = subprocess.Popen(
        [sys.executable, "pipeline.py", "--output", output, "--resume", run.name, "--serve"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(
            match[0]
            for line in process.stdout
            if (match := re.search(r"(?<=served by )\S+ at \S+", line))
        )
        name, address = url.split(" at ")
        assert name in ("triton", "kserve-server")
        service_time = Client(address, run.name.rsplit("-", 1)[0])
        assert service_time.ready()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stdout.close()
    assert process.returncode == 0
    assert not service_time.ready()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_server_comes_back_and_goes_with_its_killed_command(finished_run):
    output = finished_run[1]
    run = (output / "latest").resolve()
    flags = ["--output", output, "--resume", run.name, "--start-at", "deploy", "--serve"]
    process = subprocess.Popen(
        [sys.executable, "pipeline.py", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line.startswith("serving until"):
                break
        before = json.loads((run / "service.json").read_text())
        os.kill(before["details"]["pid"], signal.SIGKILL)
        lines = next(process.stdout), next(process.stdout)
        assert str(before["details"]["pid"]) in lines[0]
        assert before["url"] in lines[1]
        after = json.loads((run / "service.json").read_text())
        assert after["url"] == before["url"]
        assert triton.is_running(after["details"]["pid"])
        assert Client(after["url"], after["name"]).ready()
        assert (
            f"served as {after['name']}"
            in pipeline("--status", "latest", "--output", output).stdout
        )
        process.kill()
    end = time.monotonic() + 20
    while server_processes.members(after["details"]["pid"]) and time.monotonic() < end:
        time.sleep(0.1)
    assert server_processes.members(after["details"]["pid"]) == {}
    while processes_of(output) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of(output) == []


def test_resuming_a_run_that_does_not_exist_is_refused(finished_run):
    run_id = (finished_run[1] / "latest").resolve().name
    answer = pipeline(
        "--output", finished_run[1], "--resume", run_id[:-1], "--runner", "local", check=False
    )
    assert answer.returncode == 2
    assert f"'{run_id}'" in answer.stderr


def test_resuming_with_other_data_is_refused(finished_run, jets):
    run_id, path = (finished_run[1] / "latest").resolve().name, jets / "val" / "a.root"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(path, (1, 1))
    try:
        answer = pipeline(
            "--output", finished_run[1], "--resume", run_id, "--runner", "local", check=False
        )
    finally:
        os.utime(path, ns=times)
    assert answer.returncode == 2
    assert "--data-val have changed" in answer.stdout + answer.stderr


def test_resuming_with_other_parameters_is_refused(finished_run):
    answer = pipeline(
        "--output",
        finished_run[1],
        "--resume",
        (finished_run[1] / "latest").resolve().name,
        "--runner",
        "local",
        "--batch-size",
        "64",
        check=False,
    )
    assert answer.returncode == 2
    assert re.search("batch-size .*100.*64", answer.stdout + answer.stderr)
    assert "succeeded" not in answer.stdout, "that was the job before"


@pytest.mark.parametrize(
    "has_study",
    [
        pytest.param(True, id="with its study"),
        pytest.param(False, id="after --down", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_stops_everything_and_the_run_goes_on_later_up_to_its_gate(
    jets, tmp_path, has_study
):
    flags = [
        *QUICK,
        *data_flags(jets),
        "--output",
        str(tmp_path),
        "--num-epochs",
        "30",
        "--max-trials",
        "2",
        "--min-improvement",
        "1000",
    ]
    running = subprocess.Popen(
        [sys.executable, "pipeline.py", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    text = ""
    for line in running.stdout:
        text += line
        if "001 started" in line:
            break
    end = time.monotonic() + 60  # until each trial has a checkpoint to resume from
    while len(list(tmp_path.glob("latest/trials/*/checkpoint.pt"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    text += running.communicate(timeout=60)[0]
    assert running.returncode == 130, text
    run_id = (tmp_path / "latest").resolve().name
    assert f"--resume {run_id}" in text
    assert json.loads((tmp_path / run_id / "status.json").read_text())["state"] == "interrupted"
    assert processes_of(tmp_path) == []
    assert not (tmp_path / run_id / "search.json").exists()

    if not has_study:
        pipeline("--down", run_id, "--yes", "--output", tmp_path)
        assert list((tmp_path / run_id / "local" / "search").glob("*")) == []
    answer = pipeline(*flags, "--resume", run_id)
    assert ("resumed" in answer.stdout) == has_study
    search = json.loads((tmp_path / run_id / "search.json").read_text())
    assert [trial["status"] for trial in search["trials"]] == ["Succeeded"] * 2
    assert search["carried"] == (0 if has_study else 2)
    assert json.loads((tmp_path / run_id / "status.json").read_text())["state"] == "done"
    for history in tmp_path.glob("latest/trials/*/history.json"):
        assert [epoch["epoch"] for epoch in json.loads(history.read_text())] == list(range(30))
    assert "not deployed" in answer.stdout
    assert not (tmp_path / run_id / "service.json").exists()
    assert json.loads((tmp_path / run_id / "metrics.json").read_text())["passed"] is False


@pytest.mark.slow
def test_data_and_results_on_s3(jets, s3_bucket, tmp_path):
    storage.upload(jets, f"{s3_bucket}/jets")
    storage_uri = f"{s3_bucket}/calibrations"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("AWS_ENDPOINT_URL", "S3_ENDPOINT")
    }
    where = [
        "--output",
        tmp_path,
        "--s3-bucket",
        storage_uri,
        "--s3-endpoint",
        os.environ["AWS_ENDPOINT_URL"],
    ]
    answer = pipeline(
        *QUICK, *data_flags(f"{s3_bucket}/jets"), *where, "--max-trials", "2", env=environment
    )
    run_id = (tmp_path / "latest").resolve().name
    assert f"{storage_uri}/{run_id}" in answer.stdout
    files = {
        entry.uri.removeprefix(f"{storage_uri}/{run_id}/")
        for entry in storage.entries(f"{storage_uri}/{run_id}")
    }
    assert {
        "run.json",
        "search.json",
        "metrics.json",
        "report.html",
        "service.json",
        "model/pfn-regressor-open/1/model.onnx",
    } <= files
    assert sum(path.endswith("/checkpoint.pt") for path in files) == 2
    assert (tmp_path / run_id / "report.html").stat().st_size > 10_000
    assert "testing" not in answer.stdout + answer.stderr, "no secret is printed"

    # as the last lines say
    again = pipeline("--runner", "local", "--output", tmp_path, "--resume", run_id, env=environment)
    assert f"{storage_uri}/{run_id}" in again.stdout
    assert "the search has already ended" in again.stdout
    assert not (tmp_path / run_id / "trials").exists(), "the run stays where it was"


def columns_below(uri):
    """SHA-256 of every prepared column below an address."""
    return sorted(
        storage.digest(storage.read_bytes(entry.uri))
        for entry in storage.entries(uri)
        if entry.uri.endswith(".npy")
    )


@pytest.mark.slow
def test_data_and_results_on_xrootd(jets, finished_run, xrootd_server, tmp_path):
    place = f"{xrootd_server.uri}/{tmp_path.name}"
    storage.upload(jets, f"{place}/jets")
    where = ["--output", tmp_path, "--s3-bucket", f"{place}/runs"]
    answer = pipeline(*QUICK, *data_flags(f"{place}/jets"), *where, "--max-trials", "2")
    run = f"{place}/runs/{(tmp_path / 'latest').resolve().name}"
    assert run in answer.stdout
    for name in ("search.json", "metrics.json", "report.html", "service.json"):
        assert storage.exists(f"{run}/{name}"), name
    assert columns_below(f"{place}/runs/cache") == columns_below(str(finished_run[1] / "cache"))
    storage.delete(place)


@pytest.mark.slow
def test_particle_net(jets, tmp_path):
    space = json.dumps(
        [
            {"name": "k", "type": "discrete", "list": [4]},
            {"name": "conv-dim", "type": "discrete", "list": [8]},
        ]
    )
    pipeline(
        *QUICK,
        *data_flags(jets),
        "--output",
        tmp_path,
        "--search-space",
        space,
        "--max-trials",
        "1",
        "--parallel-trials",
        "1",
        "--network-config",
        "networks/particle_net_regressor_open.py",
        "--data-config",
        "data/jec_particle_net_open.yaml",
    )
    assert (tmp_path / "latest" / "model" / "particle-net-regress" / "1" / "model.onnx").exists()
    service = json.loads((tmp_path / "latest" / "service.json").read_text())
    assert max(service["golden"]["max_difference"].values()) <= 1e-5


# -------------------------------------------------------------------------------------- bad input


def _truncated_file(jets, folder):
    path = folder / "cut.root"
    path.write_bytes((jets / "train" / "a.root").read_bytes()[:40_000])
    return path


def _no_root(jets, folder):
    path = folder / "text.root"
    path.write_text("not a ROOT file")
    return path


def _without_a_branch(jets, folder):
    columns = synthetic_jets(50, 1)
    columns["QG_mul"] = columns.pop("QG_mult")
    return write_jets(folder / "other.root", columns)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda jets, folder: folder / "none*.root", "none*.root", id="no match"),
        # The tests of the readers hold the rest.
        pytest.param(_no_root, "text.root", id="no ROOT file", marks=pytest.mark.slow),
        pytest.param(_truncated_file, "cut.root", id="truncated", marks=pytest.mark.slow),
        pytest.param(_without_a_branch, "QG_mul", id="missing branch", marks=pytest.mark.slow),
    ],
)
def test_bad_data_ends_with_2_before_anything_is_written(jets, tmp_path, make, expected):
    output = tmp_path / "runs"
    flags = [*data_flags(jets), "--data-val", make(jets, tmp_path)]
    answer = pipeline(*QUICK, *flags, "--output", output, check=False)
    text = answer.stdout + answer.stderr
    assert answer.returncode == 2, text
    assert len([line for line in text.splitlines() if "error:" in line]) == 1
    assert expected in text
    assert "Traceback" not in text
    assert [path.name for path in output.iterdir()] == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param(
            ["--search-space", '[{"name": "conv-dimm", "type": "int", "min": 1, "max": 2}]'],
            "'conv-dim'",
            id="unknown option",
        ),
        # The tests of the search space, the data config and the network file hold the rest.
        pytest.param(
            ["--search-space", '[{"name": "conv-dim", "type": "int", "min": 3, "max": 2}]'],
            "min 3",
            id="empty range",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--search-space", "nowhere.yaml"],
            "nowhere.yaml",
            id="no file",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--algorithm", "grid"], "start-lr", id="no grid", marks=pytest.mark.slow),
        pytest.param(
            ["--data-config", "README.md"], "README.md", id="no data config", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--network-config", "weaver/fit/allocator.py"],
            "get_model",
            id="no network",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_configurations_end_with_2_before_anything_is_written(jets, tmp_path, flags, expected):
    answer = pipeline(*QUICK, *data_flags(jets), "--output", tmp_path / "runs", *flags, check=False)
    text = answer.stdout + answer.stderr
    assert answer.returncode == 2, text
    assert expected in text
    assert "Traceback" not in text
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []


def test_one_file_in_two_sets_is_refused(jets, tmp_path):
    answer = pipeline(
        *QUICK,
        *data_flags(jets),
        "--data-test",
        jets / "val" / "a.root",
        "--output",
        tmp_path,
        check=False,
    )
    assert answer.returncode == 2
    assert re.search("--data-val .*--data-test", answer.stdout + answer.stderr)
