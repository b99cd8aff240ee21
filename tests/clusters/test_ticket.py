"""The Kerberos ticket: from kinit into the Secret, and a readable reason whenever that fails."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from clusters import ticket
from clusters.validate import problems
from common.config import RunConfig
from common.run import Run
from exporting.export_job import export_job
from training.experiment import experiment

KINIT = (
    '#!/bin/sh\n[ "$1 $2" = "-k -t" ] || exit 9\ncase $6 in nobody*) echo "kinit: Preauthentication'
    ' failed" >&2; exit 1;; esac\n'
)
KINIT += 'printf "ticket of $6" > "${5#FILE:}"\n'


class Secrets(BaseHTTPRequestHandler):
    """The Secrets of one namespace: PATCH changes an existing one, POST creates one."""

    objects: dict[str, dict]
    refuse = 0

    def log_message(self, *_):
        pass

    def do_PATCH(self):
        name = self.path.rsplit("/", 1)[-1]
        if not self.refuse and name in self.objects:
            self.objects[name].update(self._body()["data"])
        self._answer(self.refuse or (200 if name in self.objects else 404))

    def do_POST(self):
        body = self._body()
        self.objects[body["metadata"]["name"]] = body["data"]
        self._answer(201)

    def _body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status):
        body = json.dumps(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "message": "no such right" if status == 403 else "",
            }
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    """The Secrets of an API server to which the kubeconfig points, a fake kinit, and a keytab.

    The fake kinit knows every principal but nobody@REALM.
    """
    handler = type("Handler", (Secrets,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = {"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "jets"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [context],
        "users": [{"name": "me", "user": {}}],
        "clusters": [
            {"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    (tmp_path / "keytab").write_bytes(b"keys")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kinit").write_text(KINIT)
    (tmp_path / "bin/kinit").chmod(0o755)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    yield handler
    server.shutdown()
    server.server_close()


def renew(tmp_path, principal="user@REALM"):
    return ticket.main(
        [f"--keytab={tmp_path}/keytab", f"--principal={principal}", "--secret=krb-secret"]
    )


@pytest.mark.parametrize(
    "before",
    [{}, {"krb-secret": {"krb5cc_1000": "old", "other": "kept"}}],
    ids=["first", "renewed"],
)
def test_the_secret_holds_the_new_ticket(secrets, tmp_path, capsys, before):
    secrets.objects.update(before)
    assert renew(tmp_path) == 0
    content = secrets.objects["krb-secret"]
    assert base64.b64decode(content["krb5cc_1000"]) == b"ticket of user@REALM"
    assert content.get("other") == before.get("krb-secret", {}).get("other")
    assert re.search("krb-secret .*'jets'", capsys.readouterr().out)


def test_a_refused_ticket_leaves_the_old_one(secrets, tmp_path, capsys):
    secrets.objects["krb-secret"] = {"krb5cc_1000": "old"}
    assert renew(tmp_path, "nobody@REALM") == 1
    assert re.search("nobody@REALM: .*Preauthentication failed", capsys.readouterr().err)
    assert secrets.objects["krb-secret"] == {"krb5cc_1000": "old"}


def test_a_missing_right_is_an_error(secrets, tmp_path, capsys):
    secrets.refuse = 403
    assert renew(tmp_path) == 1
    assert re.search("krb-secret .*'jets': 403 no such right", capsys.readouterr().err)


def test_a_missing_keytab_is_an_error(secrets, tmp_path, capsys):
    (tmp_path / "keytab").unlink()
    assert renew(tmp_path) == 2
    assert str(tmp_path / "keytab") in capsys.readouterr().err


def test_pods_read_a_copy_of_their_own():
    """Files of a Secret belong to root.

    EOS takes only a ticket that belongs to the user and that nobody else may read.
    """
    run = Run(
        config=RunConfig(
            run_id="pfn-00000001",
            s3_bucket="s3://b/r",
            eos="/var/eos",
            kerberos_secret="krb-secret",
        )
    )
    for manifest in (experiment(run), export_job(run, "trial")):
        assert problems(manifest) == []
        job = manifest["spec"].get("trialTemplate", {}).get("trialSpec", manifest)
        pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        (main,), (first,) = pod["containers"], pod["initContainers"]
        assert {"name": "KRB5CCNAME", "value": "FILE:/tickets/krb5cc"} in main["env"]
        assert first["image"] == main["image"], "the same user, who has to own the copy"
        assert "kerberos-secret" not in {mount["name"] for mount in main["volumeMounts"]}
        assert {
            mount["name"] for container in (main, first) for mount in container["volumeMounts"]
        } == {volume["name"] for volume in pod["volumes"]}
    plain = export_job(Run(config=RunConfig(run_id="pfn-00000001", s3_bucket="s3://b/r")), "trial")
    assert (
        "initContainers" not in plain["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    )
