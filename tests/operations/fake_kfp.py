"""The KFP API at the HTTP edge, as far as kfp's real client needs it to submit, look up, clone and
end runs.

Versions and runs are kept as they were sent. `login` has every request that does not carry the
right header answered as a gateway would: '401', 'redirect' to a login page, or 'page' (the login
page itself, with 200).

Paths and fields are those of kfp 2.15.0 backend/api/v2beta1/*.proto; other sources stand beside
their rules.
"""

from __future__ import annotations

import email
import http.server
import json
import re
import threading
import urllib.parse
import uuid


class FakeKfp:
    """A server on 127.0.0.1.

    `version` is that of the health pages; `states` the states of a run at each look;
    `workflows` the Argo Workflow of a run, which the older API alone gives (seen with KFP 2.15.0).
    With `multi_user` it refuses experiments and runs that name no namespace, otherwise it names no
    namespace of anything, whatever a request names (seen with KFP 2.15.0).
    """

    def __init__(self, version: str = "2.17.0") -> None:
        self.version, self.login, self.valid_headers = version, "", {}
        self.multi_user: bool | None = False
        self.pipelines, self.versions, self.experiments, self.runs = [], [], [], []
        self.recurring: list[dict] = []
        self.requests: list[tuple[str, str]] = []
        self.states: dict[str, list[str]] = {}
        self.canceling_looks = 1
        self.failures: list[int] = []
        self.workflows: dict[str, dict] = {}

    def __enter__(self) -> FakeKfp:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str, query: dict[str, str]) -> dict | None:
        if path in ("/apis/v2beta1/healthz", "/apis/v1beta1/healthz"):
            health = {} if self.multi_user is None else {"multi_user": self.multi_user}
            return {**health, **({"tag_name": self.version} if self.version else {})}
        if path == "/apis/v2beta1/pipelines":
            return {"pipelines": _filter(self.pipelines, query)}
        if path == "/apis/v2beta1/experiments":
            self._check_namespace(query)
            return {"experiments": _filter(self.experiments, query)}
        if match := re.fullmatch(r"/apis/v2beta1/experiments/([^/]+)", path):
            by_id = {experiment["experiment_id"]: experiment for experiment in self.experiments}
            return by_id.get(match[1])
        if path == "/apis/v2beta1/runs":
            self._check_namespace(query)
            return _page("runs", list(reversed(self.runs)), query)
        if path == "/apis/v2beta1/recurringruns":
            self._check_namespace(query)
            return _page("recurringRuns", list(reversed(self.recurring)), query)
        if match := re.fullmatch(r"/apis/v2beta1/pipelines/([^/]+)/versions", path):
            mine = [
                version for version in reversed(self.versions) if version["pipeline_id"] == match[1]
            ]
            return _page("pipeline_versions", mine, query)
        return self.run(path)

    def run(self, path: str) -> dict | None:
        if match := re.fullmatch(r"/apis/v1beta1/runs/([^/]+)", path):
            if match[1] not in self.workflows:
                return None
            manifest = json.dumps(self.workflows[match[1]])
            return {"run": {}, "pipeline_runtime": {"workflow_manifest": manifest}}
        if match := re.fullmatch(r"/apis/v2beta1/runs/([^/]+)", path):
            run = next((entry for entry in self.runs if entry["run_id"] == match[1]), None)
            remaining = self.states.get(match[1])
            if run and remaining:
                run["state"] = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return run
        return None

    def post(self, path: str, query: dict[str, str], body: dict) -> dict | None:
        if path == "/apis/v2beta1/pipelines":
            if self.multi_user is False:
                body.pop("namespace", None)
            self.pipelines.append({**body, "pipeline_id": f"p{len(self.pipelines)}"})
            return self.pipelines[-1]
        if path == "/apis/v2beta1/pipelines/upload_version":
            # seen with KFP 2.15.0: uploads, versions, runs
            version = {
                "pipeline_id": query["pipelineid"],
                "pipeline_version_id": f"v{len(self.versions)}",
                "display_name": query["name"],
                "text": body["file"],
            }
            self.versions.append(version)
            return {key: value for key, value in version.items() if key != "text"}
        if path == "/apis/v2beta1/experiments":
            self._check_namespace(body)
            self.experiments.append({**body, "experiment_id": f"e{len(self.experiments)}"})
            return self.experiments[-1]
        if path == "/apis/v2beta1/runs":
            self.runs.append({**body, "run_id": str(uuid.uuid4()), "state": "PENDING"})
            return self.runs[-1]
        if path == "/apis/v2beta1/recurringruns":
            return self.create_recurring(body)
        if match := re.fullmatch(r"/apis/v2beta1/recurringruns/([^/:]+):(enable|disable)", path):
            (schedule,) = [
                entry for entry in self.recurring if entry["recurring_run_id"] == match[1]
            ] or [{}]
            schedule.update(status=f"{match[2].upper()}D", mode=match[2].upper())
            return {} if schedule.get("recurring_run_id") else None
        if match := re.fullmatch(r"/apis/v2beta1/runs/([^/:]+):terminate", path):
            # seen with KFP 2.15.0: a terminated run is CANCELING, then FAILED, never CANCELED
            # (kfp 2.15.0 backend/src/apiserver/resource/resource_manager.go:1317)
            self.states[match[1]] = ["CANCELING"] * self.canceling_looks + ["FAILED"]
            return {}
        return None

    def delete(self, path: str, query: dict[str, str]) -> dict | None:
        match = re.fullmatch(r"/apis/v2beta1/recurringruns/([^/:]+)", path)
        remaining = [
            schedule
            for schedule in self.recurring
            if not match or schedule["recurring_run_id"] != match[1]
        ]
        if len(remaining) == len(self.recurring):
            return None
        self.recurring = remaining
        return {}

    def create_recurring(self, body: dict) -> dict:
        """kfp 2.15.0 backend/src/apiserver/server/api_converter.go:1942-1980, and the text that
        MySQL takes (client_manager.go:345).
        """
        if not body.get("display_name"):
            raise ValueError("Recurring run's name cannot be empty")
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise ValueError("Max concurrency of a recurring run must be at least 1 and at most 10")
        words = body["trigger"]["cron_schedule"]["cron"].split()
        if not 5 <= len(words) <= 6:
            raise ValueError(f"Expected 5 to 6 fields, found {len(words)}")
        # robfig/cron 1.2.0 spec.go:40: the weekday ends at 6
        weekday = words[5] if len(words) == 6 else "*"
        if re.search(r"\b7\b", weekday):
            raise ValueError(f"End of range (7) above maximum (6): {weekday}")
        known_ids = {experiment["experiment_id"] for experiment in self.experiments}
        if body.get("experiment_id") not in known_ids:
            raise ValueError("invalid experimentId and namespace combination")
        version_id = body["pipeline_version_reference"]["pipeline_version_id"]
        if version_id not in {version["pipeline_version_id"] for version in self.versions}:
            raise ValueError(f"pipeline version {version_id} not found")
        if len(body.get("description", "")) > 255 or len(body["display_name"]) > 255:
            raise ValueError("Data too long for column")
        is_on = body.get("mode") == "ENABLE"
        schedule = {
            **body,
            "recurring_run_id": str(uuid.uuid4()),
            "status": "ENABLED" if is_on else "DISABLED",
            "created_at": "2026-11-30T00:00:00Z",
        }
        self.recurring.append(schedule)
        return schedule

    def _check_namespace(self, request: dict) -> None:
        if self.multi_user is False:
            request.pop("namespace", None)
        elif self.multi_user and not request.get("namespace"):
            raise ValueError("the namespace is empty in multi-user mode")

    def login_refusal(self, headers) -> tuple[int, dict[str, str], bytes] | None:
        """The gateway's answer to a request without the right header; else None. The fake's own."""
        if not self.login or all(
            headers.get(key) == value for key, value in self.valid_headers.items()
        ):
            return None
        if self.login == "401":
            return 401, {}, b'{"error": "unauthenticated"}'
        if self.login == "redirect":
            return 302, {"Location": f"{self.url}/dex/auth?client_id=kubeflow"}, b""
        return (
            200,
            {"Content-Type": "text/html"},
            b"<!doctype html><html><form><input name=password></form></html>",
        )


def _filter(entries: list[dict], query: dict[str, str]) -> list[dict]:
    """By a filter (kfp 2.15.0 backend/api/v2beta1/filter.proto; EQUALS only) and a namespace."""
    predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
    space = query.get("namespace")
    return [
        entry
        for entry in entries
        if all(entry.get(p["key"]) == p["stringValue"] for p in predicates)
        and (not space or entry.get("namespace") == space)
    ]


def _page(name: str, entries: list[dict], query: dict[str, str]) -> dict:
    """One page of a list: kfp 2.15.0 backend/src/apiserver/list/list.go:384-395."""
    start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
    rest = {"next_page_token": str(start + size)} if start + size < len(entries) else {}
    return {
        name: [
            {k: v for k, v in entry.items() if k != "text"}
            for entry in entries[start : start + size]
        ],
        **rest,
    }


def _handler(fake: FakeKfp) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            self._do(fake.get)

        def do_DELETE(self) -> None:
            self._do(fake.delete)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._do(lambda path, query: fake.post(path, query, self._body(raw)))

        def _body(self, raw: bytes) -> dict:
            kind = self.headers.get("Content-Type", "")
            if not kind.startswith("multipart"):
                return json.loads(raw or b"{}")
            parts = email.message_from_bytes(
                f"Content-Type: {kind}\r\n\r\n".encode() + raw
            ).get_payload()
            return {
                "file": (
                    next(part for part in parts if "uploadfile" in part["Content-Disposition"])
                    .get_payload(decode=True)
                    .decode()
                )
            }

        def _do(self, act) -> None:
            parts = urllib.parse.urlsplit(self.path)
            fake.requests.append((self.command, parts.path))
            if refusal := fake.login_refusal(self.headers):
                self._send(*refusal)
                return
            if fake.failures and parts.path.startswith("/apis/v2beta1/runs"):
                message = {"message": "the fake was told to fail"}
                self._send(fake.failures.pop(0), {}, json.dumps(message).encode())
                return
            try:
                content = act(parts.path, dict(urllib.parse.parse_qsl(parts.query)))
            except ValueError as error:
                self._send(400, {}, json.dumps({"code": 3, "message": str(error)}).encode())
                return
            if content is None:
                self._send(404, {}, b'{"code": 5, "message": "not found"}')
                return
            self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

        def _send(self, code: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler
