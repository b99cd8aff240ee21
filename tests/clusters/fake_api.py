"""A Kubernetes API server on 127.0.0.1 for tests.

The published clients talk HTTP to it, and scripted controllers (controllers.py) change its objects.
It has what tests of a client need: uid, resourceVersion, generation; Status objects for 401, 403,
404, 409, 410 and 422; the status subresource; label and field selectors; watches; dry runs;
admission by the rules of Katib's and the training operator's webhooks; access reviews; discovery;
finalizers and the deletion of dependents; pod logs. A client may do what clusters/permissions.py
allows and nothing else, unless a test grants or forbids it; `allowed_requests` and
`exceeded` record what it did. `fail` makes it answer with error codes or cut connections.
`compact` forgets old versions, as etcd does.

Rules of the server are those of Kubernetes 1.34.4; where none of its documentation says them, the
line of its source stands beside them (apiserver, apimachinery: k8s.io/... v0.34.4).

    with FakeApi([Katib(), TrainingOperator(), Node(play)]) as api:
        api.write_kubeconfig(path)
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import http.server
import itertools
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from clusters import permissions
from tests.clusters.admission import Refused, admit

KINDS = {  # plural -> (group/version, kind)
    "experiments": ("kubeflow.org/v1beta1", "Experiment"),
    "trials": ("kubeflow.org/v1beta1", "Trial"),
    "suggestions": ("kubeflow.org/v1beta1", "Suggestion"),
    "pytorchjobs": ("kubeflow.org/v1", "PyTorchJob"),
    "inferenceservices": ("serving.kserve.io/v1beta1", "InferenceService"),
    "workflows": ("argoproj.io/v1alpha1", "Workflow"),
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
    "secrets": ("v1", "Secret"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "resourcequotas": ("v1", "ResourceQuota"),
    "deployments": ("apps/v1", "Deployment"),
    "servingruntimes": ("serving.kserve.io/v1alpha1", "ServingRuntime"),
    "clusterservingruntimes": ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"),
    "clusterstoragecontainers": ("serving.kserve.io/v1alpha1", "ClusterStorageContainer"),
    "configmaps": ("v1", "ConfigMap"),
    "namespaces": ("v1", "Namespace"),
    "nodes": ("v1", "Node"),
}
CLUSTER_SCOPED = {"clusterservingruntimes", "clusterstoragecontainers", "namespaces", "nodes"}
REVIEW = re.compile(
    r"/apis/authorization.k8s.io/v1/(?:namespaces/[^/]+/)?(?P<kind>self|local)subjectaccessreviews$"
)
DISCOVERY = re.compile(r"/(?:api|apis)/(?P<version>v1|(?!v1/)[^/]+/[^/]+)$")
PATH = re.compile(
    r"/(?:api|apis)/(?P<version>v1|[^/]+/[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|log))?$"
)
# Kubernetes API reference, Status: the reasons of the codes (apimachinery v0.34.4
# pkg/apis/meta/v1/types.go)
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}
# (verb, resource as RBAC writes it): what the Role of deploy/ allows in the namespace
ROLE = frozenset((verb, permission.name) for permission, verb in permissions.requests())
TICK = 0.005  # seconds between two rounds of the controllers
# From the deletion of an owner to that of its dependents; seen with Kubernetes 1.34.4: about 3 s.
COLLECT_SECONDS = 0.3
# How long an Experiment that is deleted in the foreground stays; seen with Katib 0.19.0.
FOREGROUND_SECONDS = 33.0

Controller = Callable[["FakeApi"], None]


class Failure(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.reason = code, reason or REASONS[code]


@dataclasses.dataclass
class Fault:
    """Answer `times` matching requests with `code`, or cut their connection.

    `cut_connection` is 'before' or 'after': whether the server has done the work by then. `plain`
    answers as a proxy before the server does, without a Status. `seconds` is how long the answer
    takes.
    """

    method: str
    path: re.Pattern
    times: float
    code: int = 0
    cut_connection: str = ""
    plain: bool = False
    seconds: float = 0.0
    message: str = "a fault of the test"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class FakeApi:
    """The server. Objects are plain dicts; all code that reads or writes them holds `lock`."""

    def __init__(self, controllers: list[Controller] = (), namespace: str = "physics") -> None:
        self.namespace, self.controllers = namespace, list(controllers)
        self.lock = threading.RLock()
        self.kinds = dict(KINDS)
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.requests: list[tuple[str, str]] = []
        self.controller_errors: list[str] = []
        self._objects: dict[tuple[str, str, str], dict] = {}
        self._contents: dict[str, str] = {}
        self._versions, self._faults = itertools.count(1), []
        self._forbidden_rights: set[tuple[str, str]] = set()
        self._extra_rights: set[tuple[str, str]] = set()
        self._refused_users: set[tuple[str, str]] = set()
        self.reviewed: set[str] = set()  # users in access reviews; "" is the client itself
        self.allowed_requests: set[tuple[str, str]] = set()
        """Verb and resource of each request that was allowed."""
        self.exceeded: set[tuple[str, str]] = set()
        """Those that the Role does not allow and no test has forbidden."""
        self._changes: list[tuple[int, str, str, dict]] = []
        self._compacted = 0
        self._later: list[tuple[float, str, dict]] = []
        self._orphans: dict[str, float] = {}
        """Uid of each object whose owners are gone -> since when."""
        self.deletions: list[tuple[str, str, str | None]] = []
        """Plural, name and propagation policy of each deletion that a client asked for."""
        self._stop = threading.Event()

    # For tests
    # --------------------------------------------------------------------------------------------

    def __enter__(self) -> FakeApi:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        # Tests end clients on purpose; a lost connection is not worth a traceback.
        self._server.handle_error = lambda request, address: None
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True),
            threading.Thread(target=self._run_controllers, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(5)
        for controller in self.controllers:
            getattr(controller, "close", lambda: None)()

    def write_kubeconfig(self, path: Path, namespace: str | None = "physics") -> Path:
        context = {"cluster": "fake", "user": "tester"} | (
            {"namespace": namespace} if namespace else {}
        )
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "tester", "user": {"token": "not-a-secret"}}],
                    "contexts": [{"name": "fake", "context": context}],
                }
            )
        )
        return path

    def fail(self, method: str, path: str, *, times: float = 1, **how) -> Fault:
        """Add a Fault for the next `times` requests whose path matches the expression."""
        fault = Fault(method=method, path=re.compile(path), times=times, **how)
        with self.lock:
            self._faults.append(fault)
        return fault

    def forbid(self, verb: str, resource: str) -> None:
        """Forbid a verb on a resource from now on.

        '*' stands for any verb. The resource is a plural; that of pods' logs is 'pods/log'.
        """
        with self.lock:
            self._forbidden_rights.add((verb, resource))

    def forbid_user(self, user: str, resource: str) -> None:
        """Forbid a resource to another user, as an access review names it."""
        with self.lock:
            self._refused_users.add((user, resource))

    def grant(self, verb: str, resource: str) -> None:
        """Allow a verb on a resource, as RBAC writes it, in every namespace: beyond the Role."""
        with self.lock:
            self._extra_rights.add((verb, resource))

    def compact(self) -> None:
        """Forget all changes so far: a watch from an older version gets 410."""
        with self.lock:
            self._compacted = next(self._versions)
            self._changes.clear()

    def wait_for(self, predicate: Callable[[], object], seconds: float = 5.0):
        """Return the predicate's first true value; raise AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                value = predicate()
            if value:
                return value
            assert time.monotonic() < end, f"still false after {seconds} s"
            time.sleep(TICK)

    # Objects, for controllers and tests
    # -----------------------------------------------------------------------------

    def find(self, plural: str, name: str, namespace: str = "") -> dict | None:
        """Return the stored object itself, not a copy."""
        return self._objects.get((plural, namespace or self.namespace, name))

    def all(self, plural: str, selector: str = "") -> list[dict]:
        """Return the stored objects of a kind in every namespace, oldest first."""
        objects = [thing for (kind, _, _), thing in self._objects.items() if kind == plural]
        return [
            thing for thing in objects if _selected(selector, thing["metadata"].get("labels") or {})
        ]

    def create(self, plural: str, thing: dict, namespace: str = "", *, dry: bool = False) -> dict:
        """Admit and store an object; a dry run stops before it is stored.

        Another namespace: apiserver v0.34.4 pkg/registry/rest/meta.go:66. A name that exists:
        apimachinery v0.34.4 pkg/api/errors/errors.go:170. The generation 1 of a custom resource:
        apiextensions-apiserver v0.34.4 pkg/registry/customresource/strategy.go:155.
        """
        thing = copy.deepcopy(thing)
        metadata = thing.setdefault("metadata", {})
        namespace = (
            ""
            if plural in CLUSTER_SCOPED
            else namespace or metadata.get("namespace") or self.namespace
        )
        if metadata.get("namespace", namespace) != namespace:
            raise Failure(
                400,
                "the namespace of the provided object does not match the namespace sent on the"
                " request",
            )
        name = metadata.get("name", "")
        if (plural, namespace, name) in self._objects:
            raise Failure(
                409, f'{plural}.{self._group(plural)} "{name}" already exists', "AlreadyExists"
            )
        self._admit(plural, thing, None)
        api_version, kind = self.kinds[plural]
        metadata |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": now(),
        }
        thing |= {"apiVersion": api_version, "kind": kind}
        if dry:
            return thing
        with self.lock:  # tests call this without it, while the controllers' thread takes its turns
            self._objects[plural, namespace, name] = thing
            self.touch(thing)
        return thing

    def replace(self, plural: str, old: dict, thing: dict, *, status: bool = False) -> dict:
        """Replace an object's status, or the rest of it.

        The version of the object: apiserver v0.34.4 pkg/registry/generic/registry/store.go:732-736.
        The generation counts changes of the spec: apiextensions-apiserver v0.34.4
        pkg/registry/customresource/strategy.go:185. An object that was deleted goes with its last
        finalizer (Kubernetes documentation, Finalizers).
        """
        version = thing["metadata"].get("resourceVersion")
        if not version:
            raise Failure(
                422, "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
            )
        if version != old["metadata"]["resourceVersion"]:
            raise Failure(
                409,
                f'Operation cannot be fulfilled on {plural} "{old["metadata"]["name"]}": the object'
                " has been modified",
            )
        if status:
            old["status"] = copy.deepcopy(thing.get("status", {}))
        else:
            self._admit(plural, thing, old)
            if thing.get("spec") != old.get("spec"):
                old["metadata"]["generation"] += 1
            old["spec"] = copy.deepcopy(thing.get("spec"))
            for field in ("labels", "annotations", "finalizers"):
                old["metadata"][field] = copy.deepcopy(thing["metadata"].get(field) or {})
            owners = copy.deepcopy(thing["metadata"].get("ownerReferences") or [])
            old["metadata"]["ownerReferences"] = owners
        self.touch(old)
        if old["metadata"].get("deletionTimestamp") and not old["metadata"].get("finalizers"):
            self.delete(plural, old)
        return old

    def touch(self, thing: dict) -> None:
        """Give an object a new version if it has changed since its last one."""
        content = json.dumps(
            {**thing, "metadata": {**thing["metadata"], "resourceVersion": ""}}, sort_keys=True
        )
        previous = self._contents.get(thing["metadata"]["uid"])
        if previous != content:
            self._contents[thing["metadata"]["uid"]] = content
            self._change("ADDED" if previous is None else "MODIFIED", thing)

    def _change(self, event_type: str, thing: dict) -> None:
        """Give an object a new version, and record the change for watches."""
        version = next(self._versions)
        thing["metadata"]["resourceVersion"] = str(version)
        plural = next(
            plural
            for plural, kind in self.kinds.items()
            if kind == (thing["apiVersion"], thing["kind"])
        )
        self._changes.append((version, plural, event_type, copy.deepcopy(thing)))

    def changes(self, plural: str, since: int) -> list[tuple[int, str, dict]]:
        """Return the changes of a kind's objects after a version: (version, event type, object).

        Raises Failure 410 if that version is forgotten (apiserver v0.34.4
        pkg/storage/cacher/watch_cache.go:916).
        """
        if since < self._compacted:
            raise Failure(410, f"too old resource version: {since} ({self._compacted})")
        return [
            (version, event_type, thing)
            for version, kind, event_type, thing in self._changes
            if kind == plural and version > since
        ]

    def delete(self, plural: str, thing: dict) -> None:
        """Delete an object and its dependents; while it has finalizers, only mark it.

        Kubernetes documentation, Garbage Collection and Finalizers.
        """
        metadata = thing["metadata"]
        for (kind, _, _), other in list(self._objects.items()):
            if any(
                owner["uid"] == metadata["uid"]
                for owner in other["metadata"].get("ownerReferences", [])
            ):
                self.delete(kind, other)
        if metadata.get("finalizers"):
            metadata.setdefault("deletionTimestamp", now())
            self.touch(thing)
        elif self._objects.pop((plural, metadata["namespace"], metadata["name"]), None):
            self._change("DELETED", thing)

    def event(self, about: dict, reason: str, message: str, kind: str = "Warning") -> None:
        """Record an event; a repetition only raises its count.

        client-go v0.34.4 tools/record/events_cache.go:52 (which events repeat) and :323.
        """
        digest = uuid.uuid5(uuid.NAMESPACE_URL, reason + message).hex[:16]
        name = f"{about['metadata']['name']}.{digest}"
        stored_event = self.find("events", name)
        if stored_event:
            stored_event |= {"count": stored_event["count"] + 1, "lastTimestamp": now()}
            return
        involved = {
            "kind": about["kind"],
            "name": about["metadata"]["name"],
            "uid": about["metadata"]["uid"],
        }
        self.create(
            "events",
            {
                "metadata": {"name": name},
                "involvedObject": involved,
                "type": kind,
                "reason": reason,
                "message": message,
                "count": 1,
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "eventTime": None,
            },
        )

    def _admit(self, plural: str, thing: dict, old: dict | None) -> None:
        try:
            admit(self.kinds[plural][1], thing, old)
        except Refused as refused:
            raise Failure(refused.code, str(refused)) from None

    def _group(self, plural: str) -> str:
        return self.kinds[plural][0].split("/")[0]

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def _run_controllers(self) -> None:
        while not self._stop.wait(TICK):
            with self.lock:
                self._collect_garbage()
            for controller in self.controllers:
                with self.lock:
                    try:
                        controller(self)
                    # The other controllers continue; the fixture fails the test at its end.
                    except Exception as error:
                        self.controller_errors.append(f"{type(controller).__name__}: {error!r}")

    # Requests
    # --------------------------------------------------------------------------------------------

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.times > 0 and fault.method in (method, "*") and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None

    def handle(self, method: str, url: str, body: dict | None) -> dict | str:
        """Return the answer's object or text; raise Failure for anything but 2xx."""
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if review := REVIEW.match(parts.path):
            return self._review(review["kind"], body)
        if parts.path.rstrip("/") == "/version":
            fields = ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform")
            return {
                **dict.fromkeys(fields, "fake"),
                "major": "1",
                "minor": "31",
                "gitVersion": "v1.31.2",
            }
        if discovery := DISCOVERY.match(parts.path):
            return self._discover(discovery["version"])
        match = PATH.match(parts.path)
        if (
            not match
            or match["plural"] not in self.kinds
            or self.kinds[match["plural"]][0] != match["version"]
        ):
            raise Failure(404, "404 page not found")
        with self.lock:
            self._check_right(method, match, watch="watch" in query)
            if match["name"] is None:
                return self._collection(method, match, query, body)
            return self._item(method, match, query, body)

    def _check_right(self, method: str, match: re.Match, *, watch: bool) -> None:
        """Raise Failure 403 for what RBAC does not allow; record the request.

        Verbs: Kubernetes documentation, Authorization Overview. The words: apiserver v0.34.4
        pkg/endpoints/handlers/responsewriters/errors.go:73.
        """
        reading = "get" if match["name"] else "watch" if watch else "list"
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
            method, reading
        )
        resource = f"{match['plural']}/{match['sub']}" if match["sub"] else match["plural"]
        group = match["version"].rpartition("/")[0]
        namespace = match["namespace"] or ""
        name = f"{resource}.{group}" if group else resource
        if self._allows(verb, resource, group, namespace):
            self.allowed_requests.add((verb, name))
            return
        if not self._forbids(verb, resource):
            self.exceeded.add((verb, name))
        raise Failure(
            403,
            f'{name} is forbidden: User "tester" cannot {verb} resource "{resource}" in API group'
            f' "{group}" in the namespace "{namespace}"',
        )

    def _allows(self, verb: str, resource: str, group: str, namespace: str) -> bool:
        right = (verb, f"{resource}.{group}" if group else resource)
        in_role = right in ROLE and namespace == self.namespace
        return (in_role or right in self._extra_rights) and not self._forbids(verb, resource)

    def _forbids(self, verb: str, resource: str) -> bool:
        return bool({(verb, resource), ("*", resource)} & self._forbidden_rights)

    def _review(self, kind: str, body: dict) -> dict:
        """Answer a SelfSubjectAccessReview or a LocalSubjectAccessReview.

        RBAC gives no reason where it does not allow (kubernetes v1.34.4
        plugin/pkg/auth/authorizer/rbac/rbac.go:122-126).
        """
        attributes = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (attributes["resource"], attributes.get("subresource"))))
        with self.lock:
            reviews = ("create", "localsubjectaccessreviews", "authorization.k8s.io", "")
            if kind == "local" and not self._allows(*reviews):
                raise Failure(
                    403,
                    'localsubjectaccessreviews.authorization.k8s.io is forbidden: User "tester"'
                    " cannot create",
                )
            is_allowed = self._allows(
                attributes["verb"],
                resource,
                attributes.get("group") or "",
                attributes.get("namespace") or "",
            )
            user = body["spec"].get("user", "")
            self.reviewed.add(user)
            is_allowed = is_allowed and (user, resource) not in self._refused_users
        return {
            **body,
            "status": {"allowed": is_allowed, "reason": ""},
        }

    def _discover(self, version: str) -> dict:
        kinds = [
            (plural, kind)
            for plural, (version_of_kind, kind) in self.kinds.items()
            if version_of_kind == version
        ]
        if not kinds:
            raise Failure(404, "404 page not found")
        resources = [
            {
                "name": plural,
                "kind": kind,
                "singularName": "",
                "namespaced": plural not in CLUSTER_SCOPED,
                "verbs": ["get"],
            }
            for plural, kind in kinds
        ]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        }

    def _collection(self, method: str, match: re.Match, query: dict, body: dict | None) -> dict:
        plural, namespace = match["plural"], match["namespace"]
        if method == "POST":
            return copy.deepcopy(
                self.create(plural, body, namespace, dry=query.get("dryRun") == "All")
            )
        items = [
            thing
            for thing in self.all(plural, query.get("labelSelector", ""))
            if (namespace is None or thing["metadata"]["namespace"] == namespace)
            and _field_selected(query.get("fieldSelector", ""), thing)
        ]
        api_version, kind = self.kinds[plural]
        version = str(next(self._versions))
        return copy.deepcopy(
            {
                "apiVersion": api_version,
                "kind": f"{kind}List",
                "metadata": {"resourceVersion": version},
                "items": items,
            }
        )

    def _item(self, method: str, match: re.Match, query: dict, body: dict | None) -> dict | str:
        plural, name = match["plural"], match["name"]
        thing = self._objects.get((plural, match["namespace"] or "", name))
        if thing is None:
            raise Failure(404, f'{plural}.{self._group(plural)} "{name}" not found')
        if match["sub"] == "log":
            return self._log(thing, query)
        if method == "PUT":
            self.replace(plural, thing, body, status=match["sub"] == "status")
        elif method == "PATCH":
            new_thing = _merge(copy.deepcopy(thing), body)
            new_thing["metadata"]["resourceVersion"] = thing["metadata"]["resourceVersion"]
            self.replace(plural, thing, new_thing, status=match["sub"] == "status")
        elif method == "DELETE":
            self._delete_by_request(plural, thing, (body or {}).get("propagationPolicy"))
        return copy.deepcopy(thing)

    def _delete_by_request(self, plural: str, thing: dict, policy: str | None) -> None:
        """Delete an object by a client's request, with the propagation that it asks for.

        Background: the object goes at once, its dependents a moment later. Foreground: a deleted
        Experiment stays for a round of 33 s at least, because Katib's controllers create its jobs,
        Deployment and Service anew meanwhile.

        Source: seen with Katib 0.19.0 on Kubernetes 1.34.4 (rounds of 33 s, 34 s to 140 s in all;
        with Background the Experiment was gone in 1 s, its trials' pods in 3 s).
        """
        self.deletions.append((plural, thing["metadata"]["name"], policy))
        if policy == "Foreground" and plural == "experiments":
            thing["metadata"].setdefault("deletionTimestamp", now())
            self._later.append((time.monotonic() + FOREGROUND_SECONDS, plural, thing))
            self.touch(thing)
        elif policy == "Background" and not thing["metadata"].get("finalizers"):
            key = (plural, thing["metadata"]["namespace"], thing["metadata"]["name"])
            self._objects.pop(key, None)
            self._change("DELETED", thing)
        else:
            self.delete(plural, thing)

    def _collect_garbage(self) -> None:
        """Delete what was deleted in the foreground and what no owner is left of, once it is time.

        An owner counts if it exists in the namespace of its dependent: one in another namespace
        counts as absent, and the dependent is deleted.

        Source: Kubernetes documentation, Garbage Collection ("a namespaced owner must exist in the
        same namespace as the dependent. If it does not, the owner reference is treated as absent,
        and the dependent is subject to deletion"); seen on Kubernetes 1.34.4: the owner of an
        Experiment was deleted, Experiment and trial pods were gone in 3 s.
        """
        due = [entry for entry in self._later if entry[0] <= time.monotonic()]
        self._later = [entry for entry in self._later if entry not in due]
        for _, plural, thing in due:
            self.delete(plural, thing)

        there = {
            (namespace, thing["metadata"]["uid"])
            for (_, namespace, _), thing in self._objects.items()
        }
        for (plural, namespace, _), thing in list(self._objects.items()):
            uid = thing["metadata"]["uid"]
            owners = thing["metadata"].get("ownerReferences") or []
            if not owners or any((namespace, owner["uid"]) in there for owner in owners):
                self._orphans.pop(uid, None)
                continue
            since = self._orphans.setdefault(uid, time.monotonic())
            if time.monotonic() - since >= COLLECT_SECONDS:
                self.delete(plural, thing)

    def _log(self, pod: dict, query: dict) -> str:
        """A container's log: kubernetes v1.34.4 pkg/kubelet/kubelet_pods.go:1536 and :1565-1573."""
        previous = query.get("previous") in ("true", "True", "1")
        container, name = query.get("container", ""), pod["metadata"]["name"]
        text = self.logs.get((pod["metadata"]["uid"], container, previous))
        if text is None:
            message = (
                f'previous terminated container "{container}" in pod "{name}" not found'
                if previous
                else f'container "{container}" in pod "{name}" is waiting to start'
            )
            raise Failure(400, message)
        lines = text.splitlines(keepends=True)
        return "".join(lines[-int(query["tailLines"]) :] if "tailLines" in query else lines)


def now() -> str:
    """Return the time as Kubernetes writes it, in whole seconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def set_condition(
    thing: dict, kind: str, value: str = "True", reason: str = "", message: str = ""
) -> None:
    """Add or change a condition of an object's status."""
    conditions = thing.setdefault("status", {}).setdefault("conditions", [])
    condition = next((entry for entry in conditions if entry["type"] == kind), None)
    if condition is None:
        condition = {"type": kind, "status": "", "lastTransitionTime": now()}
        conditions.append(condition)
    condition |= {"status": value, "reason": reason, "message": message}


def has_condition(thing: dict, *kinds: str) -> bool:
    return any(
        condition["type"] in kinds and condition["status"] == "True"
        for condition in thing.get("status", {}).get("conditions", [])
    )


def _selected(selector: str, labels: dict[str, str]) -> bool:
    """Whether labels match (Kubernetes documentation, Labels and Selectors)."""
    return all(_requirement(part, labels) for part in _requirements(selector))


def _requirements(selector: str) -> Iterator[str]:
    return (part.strip() for part in re.split(r",(?![^(]*\))", selector) if part.strip())


def _requirement(text: str, labels: dict[str, str]) -> bool:
    if match := re.fullmatch(r"(\S+) (in|notin) \(([^)]*)\)", text):
        is_in = labels.get(match[1]) in [value.strip() for value in match[3].split(",")]
        return is_in if match[2] == "in" else not is_in
    if match := re.fullmatch(r"([^=!\s]+)\s*(==|=|!=)\s*(\S*)", text):
        return (labels.get(match[1]) == match[3]) == (match[2] != "!=")
    if re.fullmatch(r"!?[\w./-]+", text):
        return (text.lstrip("!") in labels) != text.startswith("!")
    raise Failure(400, f"unable to parse requirement: {text}")


def _field_selected(selector: str, thing: dict) -> bool:
    for part in _requirements(selector):
        path, _, expected = part.partition("=")
        value = thing
        for key in path.split("."):
            value = (value or {}).get(key)
        if value != expected:
            return False
    return True


def _merge(old: dict, patch: dict) -> dict:
    """JSON merge patch (RFC 7386)."""
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        else:
            old[key] = _merge(old.get(key) or {}, value) if isinstance(value, dict) else value
    return old


def _handler(api: FakeApi) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer takes two writes; Nagle's algorithm would hold the second one back for the
        # client's delayed ACK, 40 ms.
        disable_nagle_algorithm = True
        timeout = 10

        def log_message(self, *_) -> None:
            pass

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fault = api.fault(self.command, self.path)
            if fault:
                time.sleep(fault.seconds)
            if fault and fault.cut_connection == "before":
                return self.cut_connection()
            try:
                if fault and fault.code:
                    raise Failure(fault.code, fault.message)
                if self.command == "GET" and "watch=" in self.path:
                    return self.watch()
                answer = api.handle(self.command, self.path, body)
            except Failure as failure:
                plain = fault is not None and fault.plain
                answer = f"<html>{failure}</html>" if plain else _status(failure)
                self.send(failure.code, answer, fault.headers if fault else {})
            else:
                if fault and fault.cut_connection == "after":
                    return self.cut_connection()
                self.send(201 if self.command == "POST" else 200, answer, {})

        def watch(self) -> None:
            """Write each change as one line of JSON, for `timeoutSeconds`."""
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            match = PATH.match(parts.path)
            with api.lock:
                api._check_right("GET", match, watch=True)
            since, end = (
                int(query.get("resourceVersion") or 0),
                time.monotonic() + float(query.get("timeoutSeconds", 30)),
            )
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            while time.monotonic() < end and not api.stopping:
                with api.lock:
                    try:
                        changes = api.changes(match["plural"], since)
                    except Failure as failure:
                        self.wfile.write(
                            json.dumps({"type": "ERROR", "object": _status(failure)}).encode()
                            + b"\n"
                        )
                        return
                for version, event_type, thing in changes:
                    since = version
                    if _selected(
                        query.get("labelSelector", ""), thing["metadata"].get("labels") or {}
                    ):
                        self.wfile.write(
                            json.dumps({"type": event_type, "object": thing}).encode() + b"\n"
                        )
                        self.wfile.flush()
                time.sleep(TICK)

        def cut_connection(self) -> None:
            self.close_connection = True
            self.connection.close()

        def send(self, code: int, answer: dict | str, headers: dict[str, str]) -> None:
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header(
                "Content-Type", "text/plain" if isinstance(answer, str) else "application/json"
            )
            self.send_header("Content-Length", str(len(data)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    return Handler


def _status(failure: Failure) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "message": str(failure),
        "reason": failure.reason,
        "code": failure.code,
    }
