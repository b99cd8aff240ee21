"""All manifests of a run: against the controllers' rules where the checker is at hand, and against the project's contracts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusters import katib
from clusters.protocol import RUN_LABEL
from common.config import RunConfig
from common.run import Run
from operations.render import render
from exporting.export_job import evaluate_job, export_job
from serving.inference_service import inference_service
from training.experiment import METRICS_LOG, experiment

ROOT = Path(__file__).resolve().parents[2]
CHECKER = ROOT.parent / "shared" / "tools" / "check_manifests.py"

CONFIGS = {
    "defaults": {},
    "gpu": {"num_gpus": 1, "s3_bucket": "s3://jec/runs", "s3_endpoint": "https://s3.example"},
    "several": {"num_replicas": 3, "num_gpus": 2, "namespace": "physics", "algorithm": "tpe"},
    "particle net": {"network_config": "networks/particle_net_regressor_open.py", "data_config": "data/jec_particle_net_open.yaml"},
    "grid": {"algorithm": "grid", "search_space": '[{"name": "fc-dim", "type": "discrete", "list": [50, 100]}]'},
}


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def run(request):
    values = {"s3_bucket": "s3://jec/runs", "run_id": "pfn-regressor-open-0123abcd", **CONFIGS[request.param]}
    return Run(config=RunConfig(**values))


def pods(manifest):
    spec = manifest["spec"]
    spec = spec["trialTemplate"]["trialSpec"]["spec"] if "trialTemplate" in spec else spec
    return [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]


@pytest.mark.skipif(not CHECKER.exists(), reason="the checker with the real CRDs is not beside the project")
def test_every_rendered_object_passes_the_real_crds_and_admission_rules(run, tmp_path):
    files = render(run.config, tmp_path)
    answer = subprocess.run([sys.executable, CHECKER, *files], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert "4 objects, 0 findings" in answer.stdout


def test_the_experiment_passes_katibs_rules(run):
    katib.check_experiment(experiment(run))


def test_objects_and_pods_carry_the_run_id_and_no_sidecar(run):
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t"), inference_service(run)):
        assert manifest["metadata"]["labels"][RUN_LABEL] == run.id
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t")):
        for pod in pods(manifest):
            assert pod["metadata"]["labels"][RUN_LABEL] == run.id
            assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
            assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


def test_the_test_set_reaches_no_trial(run):
    text = json.dumps(experiment(run))
    assert "test.json" not in text
    assert "--data-test" not in text
    assert "test.json" not in json.dumps(export_job(run, "t"))


def test_every_trial_writes_to_its_own_folder_and_to_katibs_file(run):
    manifest = experiment(run)
    names = {p["name"]: f"v{i}" for i, p in enumerate(manifest["spec"]["parameters"])}
    trial = katib.substitute(manifest, names, "trial-7")
    container = pods(trial)[0]["spec"]["containers"][0]
    assert container["command"][-2:] == ["-m", "weaver.train"]
    assert f"--model-prefix={run.path('trials', 'trial-7')}/" in container["args"]
    assert f"--metrics-log={METRICS_LOG}" in container["args"]
    assert "${" not in json.dumps(trial)
    assert all(value in " ".join(container["args"]) for value in names.values())


def test_a_searched_flag_is_not_fixed_as_well():
    space = '[{"name": "batch-size", "type": "discrete", "list": [100, 500]}]'
    run = Run(config=RunConfig(s3_bucket="s3://b/r", run_id="a-00000000", search_space=space))
    args = pods(experiment(run))[0]["spec"]["containers"][0]["args"]
    assert [a for a in args if a.startswith("--batch-size")] == ["--batch-size=${trialParameters.batchSize}"]


def test_secrets_are_references(run):
    for pod in pods(experiment(run)):
        for entry in pod["spec"]["containers"][0]["env"]:
            assert ("SECRET" in entry["name"] or entry["name"] == "AWS_ACCESS_KEY_ID") == ("valueFrom" in entry)


def test_several_gpus_a_node_use_torchrun():
    run = Run(config=RunConfig(num_gpus=4, num_replicas=2, s3_bucket="s3://b/r", run_id="a-00000000"))
    spec = experiment(run)["spec"]["trialTemplate"]["trialSpec"]["spec"]
    assert spec["nprocPerNode"] == "4"
    assert spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    container = spec["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["torchrun", "-m", "weaver.train"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_service_is_named_as_its_model_and_reads_this_runs_repository(run):
    manifest = inference_service(run)
    assert manifest["metadata"]["name"] == run.model_name
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == run.path("model")


def test_render_writes_yaml_that_reads_back(run, tmp_path):
    for path in render(run.config, tmp_path):
        assert yaml.safe_load(path.read_text())["kind"] in ("Experiment", "PyTorchJob", "InferenceService")
