"""Wrong command lines: each ends with one sentence and its exit code before any work.

Every case runs in this process and in an empty folder, and must leave the folder as it was.
"""

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import cli
from common.errors import ClusterError, InputError
from common.project import ROOT

pytestmark = pytest.mark.faults

PREPARE = "components.prepare --run-id r-1 --s3-bucket . --data-train x --data-val x --data-test x"
TRAIN = "weaver.train --data-config d.yaml --network-config n.py --data-train x"
CLIENT = "serving.client --model m --request r.json"
WHERE = ("--data", "x.root", "--output", "new")
NUL = "\0"
LINE = "runs\nmore"
LONG = "x" * 300
DEEP = "[" * 2000 + "]" * 2000
BOMB = "a: &a [1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES = [
    # Outputs that cannot be written: in a file, in a link to nothing, a folder in place of a file.
    ("pipeline --output file", 2, ["--output", "file", "not a folder"]),
    ("pipeline --output file/runs", 2, ["--output", "file", "not a folder"]),
    ("pipeline --output /proc/runs", 2, ["--output", "/proc"]),
    ("pipeline --output /dev/null/runs", 2, ["--output", "/dev/null"]),
    ("pipeline --output dangling/runs", 2, ["--output", "dangling"]),
    (["pipeline", "--output", LONG], 2, ["--output", "xxx"]),
    (["pipeline", "--output", LINE], 2, ["--output", r"runs\nmore"]),
    (["pipeline", "--output", f"runs{NUL}"], 2, ["--output", r"runs\x00"]),
    (["pipeline", "--output", "runs\r"], 2, ["--output", r"runs\r"]),
    (["pipeline", "--output", "run\udcffs"], 2, ["UTF-8"]),
    (["pipeline", "--output", ""], 2, ["--output", "empty"]),
    ("pipeline --output s3://bucket/runs", 2, ["--output", "address"]),
    ("pipeline --s3-bucket file/runs", 2, ["--s3-bucket", "file"]),
    ("pipeline --s3-bucket /proc/runs", 2, ["--s3-bucket", "/proc"]),
    ("pipeline --compile-to folder", 2, ["--compile-to", "folder", "a folder"]),
    ("pipeline --compile-to file/p.yaml", 2, ["--compile-to", "file"]),
    ("pipeline --compile-to /proc/p.yaml", 2, ["--compile-to", "/proc"]),
    ("pipeline --compile-to pipe", 2, ["--compile-to", "pipe", "named pipe"]),
    (["pipeline", "--compile-to", ""], 2, ["--compile-to", "empty"]),
    ("pipeline --render file", 2, ["--render", "file"]),
    ("pipeline --render /proc/objects", 2, ["--render", "/proc"]),
    (["pipeline", "--render", "a\nb"], 2, ["--render", r"a\nb"]),
    ("data.validate x.root --page folder", 2, ["--page", "folder"]),
    ("data.validate x.root --page file/page.html", 2, ["--page", "file"]),
    ("data.validate x.root --page /proc/page.html", 2, ["--page", "/proc"]),
    ("data.validate x.root --page gs://b/page.html", 2, ["--page", "gs:"]),
    (f"{TRAIN} --model-prefix file/trial", 2, ["--model-prefix", "file"]),
    (f"{TRAIN} --model-prefix /proc/trial", 2, ["--model-prefix", "/proc"]),
    (f"{TRAIN} --model-prefix trial --metrics-log folder", 2, ["--metrics-log", "folder"]),
    (f"{TRAIN} --model-prefix trial --metrics-log file/m.log", 2, ["--metrics-log", "file"]),
    (f"{TRAIN} --model-prefix trial --metrics-log /proc/m.log", 2, ["--metrics-log", "/proc"]),
    (f"{TRAIN} --model-prefix trial --metrics-log pipe", 2, ["--metrics-log", "named pipe"]),
    (f"{TRAIN} --model-prefix trial --log-file file/t.log", 2, ["--log-file", "file"]),
    (f"{TRAIN} --model-prefix trial --tensorboard-log-dir file/tb", 2, ["--tensorboard-log-dir"]),
    ([*TRAIN.split(), "--model-prefix", "a\nb"], 2, ["--model-prefix", r"a\nb"]),
    ("data.generator.generate --jets 10 --output file", 2, ["--output", "file"]),
    # Addresses, hosts and ports.
    ("pipeline --host kubeflow --compile-to p.yaml", 2, ["--host", "kubeflow", "https://"]),
    ("pipeline --host https:// --runner kubeflow", 2, ["--host", "https://"]),
    ("pipeline --host https://h:99999 --runner kubeflow", 2, ["--host", "99999"]),
    ("pipeline --host https://h:port --runner kubeflow", 2, ["--host", "port"]),
    (["pipeline", "--host", "https://a b/pipeline"], 2, ["--host", "a b"]),
    ("pipeline --host ftp://h/pipeline", 2, ["--host", "ftp://"]),
    (["pipeline", "--host", ""], 2, ["--host", "empty"]),
    ("pipeline --s3-endpoint minio:9000", 2, ["--s3-endpoint", "minio:9000", "https://"]),
    ("pipeline --s3-endpoint http://minio:port", 2, ["--s3-endpoint", "port"]),
    ("pipeline --s3-endpoint http://minio:0", 2, ["--s3-endpoint", "port 0"]),
    ("pipeline --s3-endpoint http://[::1", 2, ["--s3-endpoint", "[::1"]),
    ("pipeline --s3-endpoint http:///x", 2, ["--s3-endpoint"]),
    ("pipeline --s3-bucket s3://", 2, ["--s3-bucket", "s3://"]),
    ("pipeline --s3-bucket s3:///prefix", 2, ["--s3-bucket", "s3:///prefix", "bucket"]),
    (["pipeline", "--s3-bucket", "s3://my bucket/x"], 2, ["--s3-bucket", "my bucket"]),
    ("pipeline --s3-bucket https://server/x", 2, ["--s3-bucket", "read only"]),
    ("pipeline --data-train s3:///train/*.root", 2, ["--data-train", "bucket"]),
    ("pipeline --data-test s3://a_*/test/*.root", 2, ["--data-test", "bucket"]),
    ("pipeline --data-val ,", 2, ["--data-val", "no file"]),
    ("serving.serve run --port 0", 2, ["--port", "'0'"]),
    ("serving.serve run --port 65536", 2, ["--port", "65536"]),
    ("serving.serve run --port http", 2, ["--port", "http"]),
    ("serving.serve run --grpc-port -1", 2, ["--grpc-port"]),
    (["serving.serve", "run", "--host", ""], 2, ["--host", "empty"]),
    (f"{CLIENT} --url localhost:8000", 2, ["--url", "localhost:8000", "https://"]),
    (f"{CLIENT} --url http://h:70000", 2, ["--url", "70000"]),
    (f"{CLIENT} --url http://", 2, ["--url"]),
    (f"{CLIENT} --url http://127.0.0.1:9 --timeout 0", 2, ["--timeout", "'0'"]),
    (f"{CLIENT} --url http://127.0.0.1:9 --timeout nan", 2, ["--timeout", "nan"]),
    (f"{CLIENT} --url http://127.0.0.1:9 --timeout inf", 2, ["--timeout", "inf"]),
    (f"{CLIENT} --url http://127.0.0.1:9 --timeout -1", 2, ["--timeout", "-1"]),
    (f"{CLIENT} --url http://127.0.0.1:9", 2, ["r.json"]),
    # Numbers that cannot be meant.
    ("pipeline --max-trials 100000000000", 2, ["--max-trials 100000000000", "100,000"]),
    ("pipeline --max-trials 0", 2, ["--max-trials 0"]),
    ("pipeline --max-trials -3", 2, ["--max-trials -3"]),
    ("pipeline --max-trials 1e3", 2, ["--max-trials", "1e3"]),
    ("pipeline --sample-jets 1000000000000", 2, ["--sample-jets", "1,000,000,000"]),
    ("pipeline --sample-jets 10", 2, ["--sample-jets 10", "400"]),
    ("pipeline --seed 99999999999999999999", 2, ["--seed", "2147483647"]),
    ("pipeline --seed 2147483648", 2, ["--seed", "2147483647"]),
    ("pipeline --seed -1", 2, ["--seed", "-1"]),
    ("pipeline --seed 1.5", 2, ["--seed", "1.5"]),
    ("pipeline --seed ²", 2, ["--seed", "²"]),
    ("pipeline --num-epochs 99999999999", 2, ["--num-epochs"]),
    ("pipeline --batch-size 99999999999", 2, ["--batch-size"]),
    ("pipeline --num-replicas 99999999999", 2, ["--num-replicas"]),
    ("pipeline --num-gpus -1", 2, ["--num-gpus -1"]),
    ("pipeline --deadline-hours 1e300", 2, ["--deadline-hours"]),
    ("pipeline --deadline-hours nan", 2, ["--deadline-hours"]),
    ("pipeline --min-replicas 3 --max-replicas 2", 2, ["--min-replicas 3", "--max-replicas 2"]),
    ("pipeline --early-stopping-start-step ²", 2, ["--early-stopping-start-step"]),
    ("pipeline --early-stopping-start-step 0", 2, ["--early-stopping-start-step"]),
    ("pipeline --memory 0Gi", 2, ["--memory", "0Gi"]),
    (f"pipeline --memory {'9' * 400}Ti", 2, ["--memory"]),
    ("pipeline --steps-cpus 1e9", 2, ["--steps-cpus"]),
    (f"{TRAIN} --model-prefix t --start-lr inf", 2, ["--start-lr", "inf"]),
    (f"{TRAIN} --model-prefix t --start-lr nan", 2, ["--start-lr", "nan"]),
    (f"{TRAIN} --model-prefix t --start-lr 0", 2, ["--start-lr", "0"]),
    (f"{TRAIN} --model-prefix t --clip-grad-norm inf", 2, ["--clip-grad-norm", "inf"]),
    (f"{TRAIN} --model-prefix t --num-epochs 1e300", 2, ["--num-epochs", "1e300"]),
    (f"{TRAIN} --model-prefix t --seed 1e30", 2, ["--seed", "1e30"]),
    # Digits of other scripts, underscores and blanks, which int() and float() take.
    ("pipeline --max-trials ３", 2, ["--max-trials", "３"]),
    ("pipeline --max-trials 1_000", 2, ["--max-trials", "1_000"]),
    (["pipeline", "--num-epochs", " 5"], 2, ["--num-epochs", "' 5'"]),
    ("pipeline --max-closure ０", 2, ["--max-closure", "０"]),
    ("pipeline --goal ９", 2, ["--goal", "９"]),
    ("pipeline --goal 1_0", 2, ["--goal", "1_0"]),
    ("pipeline --steps-cpus ９", 2, ["--steps-cpus", "９"]),
    ("pipeline --serving-memory ９Gi", 2, ["--serving-memory", "９Gi"]),
    ("pipeline --ephemeral-storage ９Gi", 2, ["--ephemeral-storage", "９Gi"]),
    ("pipeline --prune --older-than ３d", 2, ["--older-than", "３d"]),
    (f"{CLIENT} --url http://127.0.0.1:9 --timeout ５", 2, ["--timeout", "５"]),
    (f"{TRAIN} --model-prefix t --num-epochs 1_0", 2, ["--num-epochs", "1_0"]),
    (f"{TRAIN} --model-prefix t --gpus ０", 2, ["--gpus", "０"]),
    (f"{TRAIN} --model-prefix t --lr-finder nan,1,10", 2, ["--lr-finder", "nan"]),
    (f"{TRAIN} --model-prefix t --lr-finder 1e-5,1,1", 2, ["--lr-finder", "STEPS"]),
    (f"{TRAIN} --model-prefix t --cross-validation x%999999999", 2, ["x%999999999"]),
    ("data.generate --jets 10 --output new --workers 99999", 2, ["--workers", "1024"]),
    ("data.generate --jets 99999999999 --output new", 2, ["--jets", "1,000,000,000"]),
    ("data.sample --storage new --workers -1", 2, ["--workers", "-1"]),
    ("data.sample --storage new --jets 10 0 10", 2, ["--jets", "0"]),
    ("data.sample --storage new --seed 99999999999", 2, ["--seed", "99999999999"]),
    ("data.derive --output new --events 99999999999", 2, ["--events", "99999999999"]),
    # Paths that no file can have.
    ("pipeline --check --output loop", 2, ["--output", "loop", "symbolic links"]),
    ("pipeline --list --output loop/runs", 2, ["--output", "loop", "symbolic links"]),
    (["pipeline", "--list", "--output", LONG], 2, ["--output", "too long"]),
    ([*PREPARE.split(), "--data-config", LONG], 2, ["xxx", "too long"]),
    ([*PREPARE.split(), "--network-config", LONG], 2, ["xxx", "too long"]),
    # Texts with line breaks or without a letter, in flags of every program.
    (["data.sample", "--storage", "a\nb"], 2, ["--storage", r"a\nb"]),
    (["data.sample", "--storage", f"a{NUL}b"], 2, ["--storage", r"a\x00b"]),
    (["data.sample", "--storage", ""], 2, ["--storage", "empty"]),
    ("data.sample --storage file/samples", 2, ["--storage", "file"]),
    (["serving.calibrate", "x.root", "--output", ""], 2, ["--output", "empty"]),
    (["serving.calibrate", "x.root", "--output", "a\nb"], 2, ["--output", r"a\nb"]),
    (["weaver.prepare", "--data-config", "a\nb", *WHERE], 2, ["--data-config", r"a\nb"]),
    (["weaver.prepare", "--data-config", "", *WHERE], 2, ["--data-config", "empty"]),
    ("weaver.prepare --data-config x --no-such y", 2, ["--data, --output"]),
    (["exporting.export", "--run", "a\x1b[2J", "--trial", "t", "--name", "n"], 2, [r"\x1b"]),
    (["evaluating.evaluate", "--run", "", "--name", "n"], 2, ["--run", "empty"]),
    (["components.deploy", "--run", "a\nb", "--passed", "true"], 2, ["--run", r"a\nb"]),
    ([*TRAIN.split(), "--model-prefix", "t", "-c", "a\nb"], 2, ["--data-config", r"a\nb"]),
    ("exporting.export --run r --trial t --name n --opset 999", 2, ["--opset 999", "20"]),
    (f"{TRAIN} --model-prefix t --export-onnx m.onnx --onnx-opset 999", 2, ["--onnx-opset", "20"]),
    ([*PREPARE.split(), "--settings", "[" * 50_000], 2, ["settings", "not JSON"]),
    ([*PREPARE.split(), "--settings", '{"a": ' + "9" * 5000 + "}"], 2, ["settings", "not JSON"]),
    (["clusters.ticket", "--principal", "a", "--secret", "b", "--keytab", LONG], 2, ["keytab"]),
    # Words that Kubernetes would refuse when the first pod is created.
    (["pipeline", "--gpu-resource", "a b"], 2, ["--gpu-resource", "a b"]),
    ("pipeline --gpu-resource nvidia/", 2, ["--gpu-resource", "nvidia/"]),
    (["pipeline", "--tolerations", "a b:NoSchedule"], 2, ["--tolerations", "a b"]),
    ("pipeline --tolerations key=a/b", 2, ["--tolerations", "a/b"]),
    ("pipeline --node-selector zone-=a", 2, ["--node-selector", "zone-"]),
    ("pipeline --weaver-image \u202eimage", 2, ["--weaver-image"]),
    ("pipeline --steps-image ../image", 2, ["--steps-image", "../image"]),
    ("pipeline --eos /var/../eos", 2, ["--eos", "/var/../eos"]),
    ("pipeline --nvidia-driver /a:b", 2, ["--nvidia-driver", "/a:b"]),
    (["pipeline", "--no-such\nflag"], 2, [r"--no-such\nflag"]),
    # Names.
    ("pipeline --namespace Team_A", 2, ["--namespace", "Team_A"]),
    (["pipeline", "--namespace", "a\nb"], 2, ["--namespace", r"a\nb"]),
    ("pipeline --s3-secret My_Secret", 2, ["--s3-secret", "My_Secret"]),
    ("pipeline --service-account a/b", 2, ["--service-account", "a/b"]),
    (["pipeline", "--weaver-image", "an image"], 2, ["--weaver-image", "an image"]),
    (["pipeline", "--experiment-name", "a\tb"], 2, ["--experiment-name", r"a\tb"]),
    # Commands that would otherwise become another one.
    (["pipeline", "--down", ""], 2, ["--down", "empty"]),
    (["pipeline", "--resume", ""], 2, ["--resume", "empty"]),
    (["pipeline", "--rerun", ""], 2, ["--rerun", "empty"]),
    (["pipeline", "--status", ""], 2, ["--status", "empty"]),
    (["pipeline", "--logs", ""], 2, ["--logs", "empty"]),
    (["pipeline", "--more-trials", "3", ""], 2, ["--more-trials", "empty"]),
    ("pipeline --storage", 2, ["--storage", "--down"]),
    ("pipeline --yes", 2, ["--yes", "--down"]),
    ("pipeline --status r-1 --storage", 2, ["--storage", "--down"]),
    ("pipeline --status r-1 --down r-1", 2, ["--status", "--down"]),
    ("pipeline --resume r-1 --rerun r-1", 2, ["--resume", "--rerun"]),
    ("pipeline --resume r-1 --more-trials 2 r-1", 2, ["--resume", "--more-trials"]),
    ("pipeline --resume r-1 --down r-1", 2, ["--resume", "--down"]),
    ("pipeline --more-trials ² r-1", 2, ["r-1"]),
    ("pipeline --resume no-such", 2, ["no-such"]),
    ("pipeline --status no-such", 2, ["no-such"]),
    ("pipeline --logs no-such", 2, ["no-such"]),
    # Search spaces.
    (f"{PREPARE} --search-space binary", 2, ["binary", "UTF-8"]),
    (f"{PREPARE} --search-space folder", 2, ["folder"]),
    (f"{PREPARE} --search-space pipe", 2, ["pipe", "named pipe"]),
    (f"{PREPARE} --search-space /dev/zero", 2, ["/dev/zero", "device"]),
    (f"{PREPARE} --search-space layers.yaml", 2, ["num-fc-layers", "100000000000"]),
    (f"{PREPARE} --search-space wide.yaml", 2, ["fc-dim", "100000000000"]),
    (f"{PREPARE} --search-space lr.yaml", 2, ["start-lr", "max"]),
    (f"{PREPARE} --search-space huge.yaml", 2, ["huge.yaml"]),
    (f"{PREPARE} --search-space number.yaml", 2, ["fc-dim", "distribution", "-1"]),
    (f"{PREPARE} --search-space lines.yaml", 2, ["fc-dim", r"in\nt"]),
    (f"{PREPARE} --search-space long.yaml", 2, ["long.yaml", "2,000,000"]),
    (f"{PREPARE} --search-space twice.yaml", 2, ["twice.yaml", "line 2", "'type'"]),
    (f"{PREPARE} --search-space deep.yaml", 2, ["deep.yaml", "nested"]),
    (f"{PREPARE} --search-space bomb.yaml", 2, ["bomb.yaml", "aliases"]),
    (f"{PREPARE} --search-space circle.yaml", 2, ["circle.yaml", "itself"]),
    (f"{PREPARE} --search-space date.yaml", 2, ["date.yaml"]),
    # Data configs and cards.
    (f"{PREPARE} --data-config binary", 2, ["binary", "UTF-8"]),
    (f"{PREPARE} --data-config twice_inputs.yaml", 2, ["twice_inputs.yaml", "'inputs'"]),
    (f"{PREPARE} --data-config deep.yaml", 2, ["deep.yaml", "nested"]),
    (f"{PREPARE} --data-config regex.yaml", 2, ["regex.yaml", "file_magic", "'qcd['"]),
    (f"{PREPARE} --data-config no_such.yaml", 2, ["no_such.yaml"]),
    (f"{PREPARE} --card twice.yaml", 2, ["twice.yaml", "'type'"]),
    (f"{PREPARE} --card deep.yaml", 2, ["deep.yaml", "nested"]),
    # Network files.
    (f"{PREPARE} --network-config binary", 2, ["binary", "UTF-8"]),
    (f"{PREPARE} --network-config pipe", 2, ["pipe", "named pipe"]),
    (f"{PREPARE} --network-config nul.py", 2, ["nul.py"]),
    (f"{PREPARE} --network-config deep.py", 2, ["deep.py"]),
    (f"{PREPARE} --network-config exits.py", 2, ["exits.py", "SystemExit"]),
    (f"{PREPARE} --network-config exits_later.py", 2, ["exits_later.py", "SystemExit"]),
    (f"{PREPARE} --network-config raises.py", 2, ["raises.py", "KeyError", "line"]),
    (f"{PREPARE} --network-config none.py", 2, ["none.py", "get_model", "NoneType"]),
    (f"{PREPARE} --network-config no_info.py", 2, ["no_info.py", "NoneType", "mapping"]),
    (f"{PREPARE} --network-config no_loss.py", 2, ["no_loss.py", "get_loss", "NoneType"]),
    (f"{PREPARE} --network-config text.py", 2, ["text.py", "get_model", "str"]),
    # Data.
    (f"{PREPARE} --data-train pipe.root", 2, ["pipe.root", "named pipe"]),
    (f"{PREPARE} --data-train pipe*", 2, ["pipe", "named pipe"]),
    (f"{PREPARE} --data-train folder/*.root", 2, ["folder/*.root"]),
]

NETWORK = """
import torch
class Sum(torch.nn.Module):
    def forward(self, *inputs):
        return inputs[0].flatten(1).sum(1, keepdim=True)
def get_model(data_config, **options):
    {model}
def get_loss(data_config, **options):
    {loss}
"""
GOOD = "return Sum(), {'input_names': [], 'output_names': []}"
LOSS = "return torch.nn.MSELoss()"
SPACE = "parameters:\n- {{name: {name}, type: {kind}, min: {low}, max: {high}}}\n"


def network(model=GOOD, loss=LOSS):
    return NETWORK.format(model=model, loss=loss)


FILES = {
    "file": "not a folder",
    "binary": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "layers.yaml": SPACE.format(name="num-fc-layers", kind="int", low=1, high=10**11),
    "wide.yaml": SPACE.format(name="fc-dim", kind="int", low=1, high=10**11),
    "lr.yaml": SPACE.format(name="start-lr", kind="double", low=0.001, high=".inf"),
    "huge.yaml": SPACE.format(name="fc-dim", kind="int", low=1, high="9" * 5000),
    "number.yaml": "parameters: [{name: fc-dim, type: int, min: 1, max: 2, distribution: -1}]",
    "lines.yaml": 'parameters: [{name: fc-dim, type: "in\\nt", min: 1, max: 2}]',
    "long.yaml": "# " + "x" * 2_000_000,
    "twice.yaml": "type: int\ntype: double\n",
    "deep.yaml": DEEP,
    "bomb.yaml": BOMB,
    "circle.yaml": "parameters: &a [*a]\n",
    "date.yaml": "parameters: [2001-99-99]\n",
    "twice_inputs.yaml": "inputs: {}\nlabels: {}\ninputs: {}\n",
    "nul.py": "x = 1\0",
    "deep.py": "x = " + "(" * 5000 + ")" * 5000,
    "exits.py": "import sys\nsys.exit(0)\n" + network(),
    "exits_later.py": network(model="raise SystemExit"),
    "raises.py": network(model="raise KeyError('x')"),
    "none.py": network(model="return None"),
    "no_info.py": network(model="return torch.nn.Linear(1, 1), None"),
    "no_loss.py": network(loss="return None"),
    "text.py": network(model="return 'model', {}"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the files that the cases name, as the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_ENDPOINT", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, content in FILES.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    own = ROOT / "data" / "jec_pfn_open.yaml"
    Path("regex.yaml").write_text(own.read_text() + "\nfile_magic: {is_qcd: {'qcd[': 1}}\n")
    Path("folder").mkdir()
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    for name in ("pipe", "pipe.root"):
        os.mkfifo(name)
    return tmp_path


def answer(capsys, words):
    """Run `python -m PROGRAM ARGUMENTS` in this process: exit code, stdout, stderr."""
    program, *arguments = words.split() if isinstance(words, str) else words
    try:
        code = importlib.import_module(program).main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def label(case):
    words = case if isinstance(case, str) else " ".join(case)
    return words.replace(PREPARE, "prepare").replace(TRAIN, "train").replace(CLIENT, "client")[:60]


@pytest.mark.parametrize(
    ("words", "code", "facts"), CASES, ids=[ascii(label(case[0])) for case in CASES]
)
def test_a_wrong_command_line_is_an_error_of_one_line(words, code, facts, place, capsys):
    before = sorted(place.rglob("*"))
    exit_code, out, err = answer(capsys, words)
    assert exit_code == code, out + err
    for fact in facts:
        assert fact in err
    assert "Traceback" not in out + err
    messages = [line for line in err.splitlines() if not line.startswith(("note: ", "see"))]
    assert len(messages) == 1
    assert messages[0].startswith("error: ")
    assert sorted(place.rglob("*")) == before


def test_weaver_train_refuses_missing_start_weights_before_it_opens_data(place, capsys):
    files = f"--data-config {ROOT}/data/jec_pfn_open.yaml --data-train no-such.root"
    network = f"--network-config {ROOT}/networks/pfn_regressor_open.py --model-prefix m"
    code, _, err = answer(capsys, f"weaver.train {files} {network} --load-model-weights no-such.pt")
    assert code == 2
    assert "no-such.pt" in err
    assert "no-such.root" not in err


def test_a_wrong_endpoint_of_the_environment_is_named(place, capsys, monkeypatch):
    monkeypatch.setenv("KFP_ENDPOINT", "kubeflow:8888")
    code, _, err = answer(capsys, "pipeline --compile-to p.yaml --host auto --runner kubeflow")
    assert code in (0, 2)  # compiling for any server asks none
    code, _, err = answer(capsys, "pipeline --runner kubeflow --s3-bucket s3://b/x")
    assert code == 2
    assert "KFP_ENDPOINT" in err
    assert "kubeflow:8888" in err


def test_an_unexpected_error_is_one_line_and_a_traceback_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def body():
        raise ZeroDivisionError("of https://user:hush@server/x")

    assert cli.run_main(body) == 70
    err = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    assert str(file) in err
    assert "Traceback" not in err
    text = file.read_text()
    assert "Traceback" in text
    assert "in body" in text
    assert "hush" not in text + err
    assert file.stat().st_mode & 0o077 == 0


def test_traceback_files_are_removed_after_a_month(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    stay = [tmp_path / "jec-traceback-young.txt", tmp_path / "other.txt"]
    old = tmp_path / "jec-traceback-old.txt"
    for path in (*stay, old):
        path.write_text("Traceback")
    for path in (stay[1], old):
        os.utime(path, (time.time() - 31 * 86400,) * 2)
    assert cli.run_main(lambda: {}["no such key"]) == 70
    assert str(tmp_path) in capsys.readouterr().err
    assert not old.exists()
    assert all(path.exists() for path in stay)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("variable", ["", "NB_PREFIX"])
def test_a_pod_prints_the_traceback_because_its_files_are_lost(
    variable, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("NB_PREFIX", raising=False)
    is_notebook = bool(variable)
    if is_notebook:
        monkeypatch.setenv(variable, "/notebook/team/me")

    assert cli.run_main(lambda: {}["no such key"]) == 70
    assert ("Traceback" in capsys.readouterr().err) is not is_notebook
    assert len(list(tmp_path.iterdir())) == is_notebook


def test_without_a_place_for_a_file_the_traceback_is_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert cli.run_main(lambda: {}["no such key"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_known_errors_keep_their_exit_codes(capsys):
    def body():
        raise ClusterError("job a failed")

    assert cli.run_main(body) == 1
    assert capsys.readouterr().err == "error: job a failed\n"


def test_valid_urls_are_accepted():
    for url in (
        "http://127.0.0.1:9000",
        "https://[::1]:443/x",
        "https://kubeflow.example.org/pipeline",
        "http://ml-pipeline.kubeflow.svc.cluster.local:8888",
        "http://my_minio:9000",
    ):
        cli.require_url("--url", url)


def test_valid_outputs_are_accepted(place):
    for text in ("new/folder/runs", "folder", ".", "/dev/null"):
        check = cli.output_file if text == "/dev/null" else cli.output_folder
        assert str(check(text)) == text
    assert cli.output_address("s3://bucket/page.html") == "s3://bucket/page.html"
    assert not (place / "new").exists()


def test_json_that_is_nested_too_deeply_is_refused(place, capsys):
    Path("r.json").write_text("[" * 100_000)
    code, _, err = answer(capsys, f"{CLIENT} --url http://127.0.0.1:9")
    assert code == 2
    assert "r.json" in err


def test_a_python_without_our_packages_says_how_to_use_the_projects_own(capsys):
    def body():
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    assert cli.run_main(body) == InputError.exit_code
    text = capsys.readouterr().err
    assert "psutil" in text
    assert ". .venv/bin/activate" in text


def test_a_missing_module_of_the_project_is_an_internal_error(capsys, tmp_path, monkeypatch):
    def body():
        raise ModuleNotFoundError("No module named 'common.gone'", name="common.gone")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cli.run_main(body) == cli.UNEXPECTED
    assert "unexpected" in capsys.readouterr().err


def test_closed_standard_streams_are_replaced(tmp_path):
    """Else stdout is None, and the next file that is opened gets its number."""
    program = """if True:
        import subprocess, sys
        from common import cli

        def body():
            print("lost" + sys.stdin.read())
            subprocess.run(["echo", "a program that needs its stdout"], check=True)
            with open("file", "w") as file:
                file.write(str(file.fileno()))

        raise SystemExit(cli.run_main(body))
    """
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(cli.ROOT)}
    closing = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command]
    ended = subprocess.run(closing, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert ended.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_letter_that_the_output_cannot_encode_is_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert cli.run_main(lambda: print("1 \xb1 2")) == 0
    assert content.getvalue() == rb"1 \xb1 2" + b"\n"


def test_a_working_folder_that_was_removed_is_named(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    for words in ("pipeline --list", "data.validate x.root --page page.html", "weaver.train -i x"):
        code, _, err = answer(capsys, words)
        assert code == 2
        assert "working folder was removed" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("program", ["pipeline.py", "/elsewhere/script.py"])
def test_an_interrupt_while_modules_are_imported_is_one_line(program):
    """Only in programs of this project."""
    path = os.path.join(cli.ROOT, program)
    code = f"import sys; sys.argv = [{path!r}]; import common; raise KeyboardInterrupt"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=cli.ROOT, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGINT
    assert (b"Traceback" in ended.stderr) is (program != "pipeline.py")
