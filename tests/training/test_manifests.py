"""All manifests of a run: against the controllers' rules where the checker is at hand, and against
the project's contracts.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusters import katib
from clusters.manifests import RESTARTS
from clusters.pod_command import program_of
from clusters.protocol import RUN_LABEL
from common.config import RunConfig
from common.errors import InputError
from common.run import Run
from evaluating.evaluate_job import evaluate_job
from exporting.export_job import export_job
from operations.render import render
from serving.inference_service import inference_service
from tests.clusters.admission import pod_security
from training.experiment import METRICS_LOG, experiment, trial_job

ROOT = Path(__file__).resolve().parents[2]
CHECKER = ROOT.parent / "shared" / "tools" / "check_manifests.py"

CONFIGS = {
    "defaults": {},
    "gpu": {"num_gpus": 1, "s3_bucket": "s3://jec/runs", "s3_endpoint": "https://s3.example"},
    "several": {"num_replicas": 3, "num_gpus": 2, "namespace": "physics", "algorithm": "tpe"},
    "particle net": {
        "network_config": "networks/particle_net_regressor_open.py",
        "data_config": "data/jec_particle_net_open.yaml",
    },
    "everything": {
        "num_gpus": 1,
        "early_stopping": "medianstop",
        "goal": "0.07",
        "ephemeral_storage": "20Gi",
        "gpu_resource": "nvidia.com/mig-1g.5gb",
        "node_selector": "pool=gpu,kubernetes.io/arch=amd64",
        "tolerations": "nvidia.com/gpu=present:NoSchedule,spot:NoExecute,any",
        "priority_class": "high",
        "nvidia_driver": "/opt/nvidia-driver",
        "eos": "/var/eos",
        "kerberos_secret": "krb-secret",
        "xrootd_secret": "grid-login",
    },
    "grid": {
        "algorithm": "grid",
        "search_space": '[{"name": "fc-dim", "type": "discrete", "list": [50, 100]}]',
    },
}


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def run(request):
    values = {
        "s3_bucket": "s3://jec/runs",
        "run_id": "pfn-regressor-open-0123abcd",
        **CONFIGS[request.param],
    }
    return Run(config=RunConfig(**values))


def pods(manifest):
    spec = manifest["spec"]
    spec = spec["trialTemplate"]["trialSpec"]["spec"] if "trialTemplate" in spec else spec
    return [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]


@pytest.mark.skipif(
    not CHECKER.exists(), reason="the checker with the real CRDs is not beside the project"
)
def test_every_rendered_object_passes_the_real_crds_and_admission_rules(run, tmp_path):
    files = render(run.config, tmp_path)
    answer = subprocess.run(
        [sys.executable, CHECKER, *files], check=False, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout
    assert "4 objects, 0 findings" in answer.stdout


def test_the_experiment_passes_katibs_rules(run):
    katib.check_experiment(experiment(run))


def test_objects_and_pods_carry_the_run_id_and_no_sidecar(run):
    for manifest in (
        experiment(run),
        export_job(run, "t"),
        evaluate_job(run, "t"),
        inference_service(run),
    ):
        assert manifest["metadata"]["labels"][RUN_LABEL] == run.id
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t")):
        for pod in pods(manifest):
            assert pod["metadata"]["labels"][RUN_LABEL] == run.id
            assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
            assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


def test_pods_pass_pod_security_restricted_unless_they_mount_a_folder_of_the_node(run):
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t")):
        for pod in pods(manifest):
            folders = [volume["name"] for volume in pod["spec"]["volumes"] if "hostPath" in volume]
            expected = [f"volume {name} is a hostPath" for name in folders]
            assert pod_security(pod["spec"]) == expected


def test_pods_of_trials_and_jobs_have_no_token_and_the_service_s_account_decides(run):
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t")):
        for pod in pods(manifest):
            assert pod["spec"]["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in inference_service(run)["spec"]["predictor"]


def test_a_pod_without_our_fields_does_not_pass_pod_security_restricted():
    """The rules are all there: what a pod has to say is not there by default."""
    rules = ("allowPrivilegeEscalation", "capabilities.drop", "runAsNonRoot", "seccompProfile")
    pod = {"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}
    expected = ["volume v is a hostPath", *(f"{rule} of container c" for rule in rules)]
    assert pod_security(pod) == expected


def test_a_trial_may_be_restarted_as_often_as_any_job(run):
    """The operator counts restarts of all containers: in a trial's pod Katib's collector, too."""
    replicas = run.config.num_replicas
    limits = {}
    for name, manifest in (("trial", experiment(run)), ("job", export_job(run, "t"))):
        spec = manifest["spec"]
        if name == "trial":
            spec = spec["trialTemplate"]["trialSpec"]["spec"]
        limits[name] = spec["runPolicy"]["backoffLimit"]
    assert limits == {"trial": RESTARTS * (replicas + 1) + 1, "job": RESTARTS + 1}


def test_the_test_set_reaches_no_trial(run):
    text = json.dumps(experiment(run))
    assert "test.json" not in text
    assert "--data-test" not in text
    assert "test.json" not in json.dumps(export_job(run, "t"))


def test_every_trial_writes_to_its_own_folder_and_to_katibs_file(run):
    manifest = experiment(run)
    names = {p["name"]: f"v{i}" for i, p in enumerate(manifest["spec"]["parameters"])}
    trial = katib.substitute(manifest, names, "trial-7")
    program = program_of(pods(trial)[0]["spec"]["containers"][0])
    module = program.index("-m")
    assert program[module + 1] == "weaver.train"
    assert f"--model-prefix={run.path('trials', 'trial-7')}/" in program
    assert f"--metrics-log={METRICS_LOG}" in program
    assert "${" not in json.dumps(trial)
    assert all(value in " ".join(program) for value in names.values())


def test_a_resumed_trial_equals_katibs_except_for_the_collector(run):
    manifest = experiment(run)
    point = {p["name"]: f"v{i}" for i, p in enumerate(manifest["spec"]["parameters"])}
    of_katib = katib.substitute(manifest, point, "pfn-0-trial-7")
    job = trial_job(run, "pfn-0-trial-7", point)
    assert job["metadata"] == of_katib["metadata"] | run.namespace
    for ours, theirs in zip(pods(job), pods(of_katib), strict=True):
        program = program_of(ours["spec"]["containers"][0])
        of_trial = program_of(theirs["spec"]["containers"][0])
        assert set(program) - set(of_trial) == {"--metrics-log=/dev/null"}
        assert set(of_trial) - set(program) == {f"--metrics-log={METRICS_LOG}"}
        ours["spec"]["containers"][0]["args"] = theirs["spec"]["containers"][0]["args"]
    replicas = run.config.num_replicas
    policy, of_trial = job["spec"].pop("runPolicy"), of_katib["spec"].pop("runPolicy")
    assert job["spec"] == of_katib["spec"]
    assert policy | {"backoffLimit": RESTARTS * (replicas + 1) + 1} == of_trial
    assert policy["backoffLimit"] == RESTARTS * replicas + 1


def test_a_searched_parameter_has_no_fixed_flag():
    space = '[{"name": "batch-size", "type": "discrete", "list": [100, 500]}]'
    run = Run(config=RunConfig(s3_bucket="s3://b/r", run_id="a-00000000", search_space=space))
    args = program_of(pods(experiment(run))[0]["spec"]["containers"][0])
    assert [a for a in args if a.startswith("--batch-size")] == [
        "--batch-size=${trialParameters.batchSize}"
    ]


@pytest.mark.parametrize("searched", [True, False])
def test_trials_of_other_fractions_are_compared_on_the_same_jets(searched):
    space = [{"name": "data-fraction", "type": "double", "min": 0.1, "max": 1}]
    values = {"search_space": json.dumps(space)} if searched else {"data_fraction": 0.2}
    run = Run(config=RunConfig(s3_bucket="s3://b/r", run_id="a-00000000", **values))
    args = pods(experiment(run))[0]["spec"]["containers"][0]["args"]
    assert "--data-fraction-val=1" in " ".join(args).split()


def test_secrets_are_references(run):
    for pod in pods(experiment(run)):
        for entry in pod["spec"]["containers"][0]["env"]:
            assert ("SECRET" in entry["name"] or entry["name"] == "AWS_ACCESS_KEY_ID") == (
                "valueFrom" in entry
            )


def test_several_gpus_a_node_use_torchrun():
    run = Run(
        config=RunConfig(num_gpus=4, num_replicas=2, s3_bucket="s3://b/r", run_id="a-00000000")
    )
    spec = experiment(run)["spec"]["trialTemplate"]["trialSpec"]["spec"]
    assert spec["nprocPerNode"] == "4"
    assert spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    container = spec["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    assert program_of(container)[:3] == ["torchrun", "-m", "weaver.train"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_the_service_is_named_as_its_model_and_reads_this_runs_repository(run):
    manifest = inference_service(run)
    assert manifest["metadata"]["name"] == run.model_name
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == run.path("model") + "/"


@pytest.mark.parametrize("form", ["model", "triton"])
@pytest.mark.parametrize(("serving_gpus", "gpus_of_service"), [(0, None), (1, "1")])
def test_a_service_has_its_own_gpus_whatever_a_trial_has(form, serving_gpus, gpus_of_service):
    values = {"num_gpus": 4, "serving_gpus": serving_gpus, "serving_cpus": "500m"}
    manifest = inference_service(run_with(predictor_form=form, **values))
    resources = manifest["spec"]["predictor"][form]["resources"]
    assert resources["limits"].get("nvidia.com/gpu") == gpus_of_service
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"] == "500m"
    assert set(resources["limits"]) - {"nvidia.com/gpu"} == {"cpu", "memory"}


def test_render_writes_yaml_that_reads_back(run, tmp_path):
    paths = render(run.config, tmp_path)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    kinds = {path.name: yaml.safe_load(path.read_text())["kind"] for path in paths}
    assert kinds == {
        "experiment.yaml": "Experiment",
        "export_job.yaml": "PyTorchJob",
        "evaluate_job.yaml": "PyTorchJob",
        "inference_service.yaml": "InferenceService",
    }


def run_with(**values):
    return Run(config=RunConfig(s3_bucket="s3://b/r", run_id="a-00000000", **values))


def test_all_pods_get_the_clusters_settings():
    run = run_with(**CONFIGS["everything"])
    for manifest in (experiment(run), export_job(run, "t"), evaluate_job(run, "t")):
        spec = pods(manifest)[0]["spec"]
        assert spec["nodeSelector"] == {"pool": "gpu", "kubernetes.io/arch": "amd64"}
        assert spec["tolerations"] == [
            {
                "key": "nvidia.com/gpu",
                "operator": "Equal",
                "value": "present",
                "effect": "NoSchedule",
            },
            {"key": "spot", "operator": "Exists", "effect": "NoExecute"},
            {"key": "any", "operator": "Exists"},
        ]
        assert spec["priorityClassName"] == "high"
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["eos"]["hostPath"]["path"] == "/var/eos"
        assert volumes["kerberos-secret"]["secret"]["secretName"] == "krb-secret"
        mounts = {
            mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]
        }
        assert mounts["eos"] == "/eos"
        ticket = next(
            entry["value"]
            for entry in spec["containers"][0]["env"]
            if entry["name"] == "KRB5CCNAME"
        )
        assert volumes["xrootd-secret"]["secret"] == {
            "secretName": "grid-login",
            "defaultMode": 0o444,
            "optional": True,
        }
        env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
        assert env["JEC_XROOTD_LOGIN"] == mounts["xrootd-secret"]
        assert ticket.startswith(f"FILE:{mounts['kerberos-ticket']}/")
        assert spec["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "20Gi"
        assert ("nvidia-driver" in volumes) == ("trialTemplate" in manifest["spec"]), (
            "only where there are GPUs"
        )
    assert (
        pods(experiment(run))[0]["spec"]["containers"][0]["resources"]["limits"][
            "nvidia.com/mig-1g.5gb"
        ]
        == "1"
    )


def test_a_default_pod_has_no_cluster_settings():
    spec = pods(experiment(run_with()))[0]["spec"]
    assert set(spec) == {
        "volumes",
        "containers",
        "securityContext",
        "automountServiceAccountToken",
    }
    assert [volume["name"] for volume in spec["volumes"]] == ["shared-memory"]


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({}, 10),
        ({"num_epochs": 5}, 2),
        ({"early_stopping_start_step": "7"}, 7),
        ({"search_space": '[{"name": "num-epochs", "type": "int", "min": 15, "max": 60}]'}, 3),
    ],
)
def test_early_stopping_looks_at_a_trial_after_a_fifth_of_its_epochs(values, start):
    spec = experiment(run_with(early_stopping="medianstop", **values))["spec"]["earlyStopping"]
    assert spec["algorithmName"] == "medianstop"
    assert {setting["name"]: setting["value"] for setting in spec["algorithmSettings"]} == {
        "min_trials_required": "3",
        "start_step": str(start),
    }


def test_early_stopping_that_would_start_after_the_last_epoch_is_refused():
    with pytest.raises(InputError) as error:
        experiment(run_with(early_stopping="medianstop", num_epochs=2))
    for fact in ("--early-stopping medianstop", "2 epochs", "after epoch 2"):
        assert fact in str(error.value)


def test_a_grid_has_no_more_trials_than_points():
    spec = experiment(run_with(**CONFIGS["grid"]))["spec"]
    assert (spec["maxTrialCount"], spec["parallelTrialCount"], spec["maxFailedTrialCount"]) == (
        2,
        2,
        2,
    )


def test_an_experiment_that_follows_another_has_a_name_and_a_seed_of_its_own():
    run = run_with(max_trials=40, seed="1")
    first, second = experiment(run), experiment(run, earlier_trials=30)
    assert (second["metadata"]["name"], second["spec"]["maxTrialCount"]) == ("a-00000000-30", 10)
    assert first["spec"]["algorithm"] != second["spec"]["algorithm"]
    assert second["metadata"]["labels"] == first["metadata"]["labels"], "so that --down finds it"


def test_an_experiment_that_follows_a_sobol_search_draws_at_random():
    """Katib's sequence would begin again, at the same points."""
    run = run_with(max_trials=40, algorithm="sobol")
    names = [
        experiment(run, earlier_trials=earlier_trials)["spec"]["algorithm"]["algorithmName"]
        for earlier_trials in (0, 30)
    ]
    assert names == ["sobol", "random"]


@pytest.mark.parametrize(
    ("algorithm", "seed", "earlier_trials", "reproducible", "expected"),
    [
        ("random", "auto", 0, False, None),
        ("tpe", "auto", 0, False, None),
        ("cmaes", "auto", 0, False, None),
        ("random", "auto", 5, False, None),
        # goptuna's own seed is fixed: the second experiment would draw the first one's points
        ("cmaes", "auto", 5, False, "6"),
        ("random", "7", 0, False, "7"),
        ("random", "7", 5, False, "12"),
        ("random", "auto", 0, True, "1"),
        ("grid", "7", 0, True, None),
    ],
)
def test_the_algorithm_has_a_seed_only_if_the_user_or_the_mode_asks_for_one(
    algorithm, seed, earlier_trials, reproducible, expected
):
    ranges = [{"name": name, "type": "int", "min": 1, "max": 99} for name in ("fc-dim", "phi-dim")]
    config = {"algorithm": algorithm, "seed": seed, "search_space": json.dumps(ranges)}
    manifest = experiment(
        run_with(**config), earlier_trials=earlier_trials, reproducible=reproducible
    )
    settings = [] if expected is None else [{"name": "random_state", "value": expected}]
    assert manifest["spec"]["algorithm"]["algorithmSettings"] == settings
    program = program_of(pods(manifest)[0]["spec"]["containers"][0])
    [training_seed] = [word for word in program if word.startswith("--seed=")]
    assert training_seed == f"--seed={1 if seed == 'auto' else seed}"


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"seed": "one"}, ["--seed", "'one'", "auto"]),
        ({"seed": "-1"}, ["--seed", "'-1'", "auto"]),
        ({"early_stopping": "median"}, ["--early-stopping", "'median'", "'medianstop'"]),
        ({"early_stopping_start_step": "0"}, ["--early-stopping-start-step", "'0'", "auto"]),
        ({"goal": "low"}, ["--goal", "'low'", "number"]),
        ({"node_selector": "gpu"}, ["--node-selector", "'gpu'", "key=value"]),
        ({"tolerations": "gpu:NoShedule"}, ["--tolerations", "'NoShedule'", "'NoSchedule'"]),
        ({"ephemeral_storage": "lots"}, ["--ephemeral-storage", "'lots'"]),
        ({"memory": "1Gi"}, ["--shared-memory 1Gi", "--memory 1Gi"]),
        ({"eos": "eos"}, ["--eos", "'eos'", "begins with /"]),
        ({"kerberos_secret": "krb-secret"}, ["--kerberos-secret", "--eos"]),
        ({"parallel_trials": 31}, ["--parallel-trials 31", "--max-trials 30"]),
    ],
)
def test_contradictory_options_are_refused(values, facts):
    with pytest.raises(InputError) as error:
        RunConfig(**values)
    for fact in facts:
        assert fact in str(error.value)


def test_trials_take_the_precision_of_the_run():
    def args_of(run):
        return program_of(pods(experiment(run))[0]["spec"]["containers"][0])

    assert "--precision=float32" in args_of(run_with())
    assert "--precision=auto" in args_of(run_with(precision="auto"))
    space = '[{"name": "precision", "type": "categorical", "list": ["float32", "bf16"]}]'
    searched = [arg for arg in args_of(run_with(search_space=space)) if "precision" in arg]
    assert searched == ["--precision=${trialParameters.precision}"]
    with pytest.raises(InputError, match="--precision"):
        RunConfig(precision="half")
