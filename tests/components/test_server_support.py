"""The IR is what each supported server takes, parsed with that server's own messages."""

from __future__ import annotations

import pytest
import yaml

from common.config import RunConfig
from components import chain
from components.server_support import OLDEST, Support, limitations, support_of
from operations.server import version_numbers
from tests.components.server_messages import VERSIONS, Messages

SUPPORTED = [version for version in VERSIONS if version_numbers(version) >= OLDEST]
CONFIGS = {
    "default": RunConfig(),
    "secret": RunConfig(s3_secret="another-secret"),
    "webhook": RunConfig(webhook_secret="mattermost/url"),
    "pods": RunConfig(
        s3_secret="another-secret",
        namespace="physics",
        num_gpus=2,
        num_replicas=2,
        gpu_resource="nvidia.com/mig-1g.5gb",
        ephemeral_storage="20Gi",
        node_selector="gpu=a100,zone=b",
        tolerations="gpu=yes:NoSchedule",
        priority_class="high",
        nvidia_driver="/opt/nvidia",
        eos="/var/eos",
        kerberos_secret="krb-secret",
        xrootd_secret="grid-login",
    ),
}


def support(version: str) -> Support:
    return support_of(version_numbers(version))


@pytest.fixture(scope="module")
def compile_case(tmp_path_factory):
    """Compile once for each pair of configuration and support."""
    folder, compiled_by_case = tmp_path_factory.mktemp("irs"), {}

    def compile_for(name: str, of_server: Support):
        if (name, of_server) not in compiled_by_case:
            compiled_by_case[name, of_server] = chain.compile_to(
                folder / f"{len(compiled_by_case)}.yaml", CONFIGS[name], support=of_server
            )
        return compiled_by_case[name, of_server]

    return compile_for


def executors(ir):
    """The Kubernetes settings in the IR, by the name of the step."""
    platform = list(yaml.safe_load_all(ir.read_text()))[1]
    executor_specs = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): executor_spec for name, executor_spec in executor_specs.items()
    }


def test_the_tested_versions_lie_around_every_change():
    assert VERSIONS == ["2.4.1", "2.5.0", "2.14.0", "2.14.4", "2.15.0", "2.16.0", "2.17.0"]
    assert len(SUPPORTED) == 6


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("version", SUPPORTED)
def test_each_server_accepts_the_ir_that_is_compiled_for_it(compile_case, version, name):
    assert Messages(version).refusals(compile_case(name, support(version))) == []


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("version", SUPPORTED)
def test_every_server_accepts_the_ir_for_an_unknown_version(compile_case, version, name):
    assert Messages(version).refusals(compile_case(name, chain.ANY_SERVER)) == []


def test_a_server_that_is_too_old_would_refuse_it(compile_case):
    (refusal, *_) = Messages("2.4.1").refusals(compile_case("default", chain.ANY_SERVER))
    assert "secretNameParameter" in refusal


@pytest.mark.parametrize(
    ("field", "features", "oldest"),
    [
        ("optional", Support(optional_secret=True), "2.15.0"),
        ("securityContext", Support(non_root=True), "2.16.0"),
    ],
)
def test_exactly_the_servers_that_do_not_get_a_field_would_refuse_it(
    compile_case, field, features, oldest
):
    """Otherwise a server would lose what it could do."""
    ir = compile_case("default", features)
    for version in SUPPORTED:
        refusals = Messages(version).refusals(ir)
        too_old = version_numbers(version) < version_numbers(oldest)
        assert bool(refusals) == too_old, version
        assert all(field in refusal for refusal in refusals)
        executor_text = str(executors(compile_case("default", support(version))))
        assert (f"'{field}'" in executor_text) != too_old, version


@pytest.mark.parametrize("version", SUPPORTED)
def test_labels_are_written_only_for_servers_that_keep_them_per_step(compile_case, version):
    executor_specs = executors(compile_case("default", support(version)))
    labels = {
        step: executor_spec["podMetadata"].get("labels", {})
        for step, executor_spec in executor_specs.items()
    }
    if version == "2.5.0":
        assert set(map(str, labels.values())) == {"{}"}
    else:
        assert labels == {step: {"jec/step": step} for step in executor_specs}
    for executor_spec in executor_specs.values():  # this one is the same for all steps
        assert executor_spec["podMetadata"]["annotations"] == {chain.SAFE_TO_EVICT: "false"}
        assert executor_spec["secretAsEnv"][0]["secretNameParameter"]
        assert int(executor_spec["activeDeadlineSeconds"]) > 0


@pytest.mark.parametrize(
    ("version", "facts"),
    [
        ("2.5.0", ["--resume", "jec/step", "s3-keys"]),
        ("2.14.4", ["s3-keys"]),
        ("2.15.0", []),
        ("2.17.0", []),
    ],
)
def test_features_that_a_server_lacks_are_reported(version, facts):
    sentences = limitations(support(version), "s3-keys")
    assert len(sentences) == len(facts)
    for sentence, fact in zip(sentences, facts, strict=True):
        assert fact in sentence


def test_servers_without_optional_secrets_need_the_webhooks_secret():
    (_, sentence) = limitations(support("2.14.4"), "s3-keys", "mattermost/url")
    assert "mattermost" in sentence
    assert limitations(support("2.15.0"), "s3-keys", "mattermost/url") == []
