"""The API server as programs meet it: plain HTTP, and the `kubernetes` client library."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from kubernetes import client, config, watch
from kubernetes.stream import stream

from podlane.errors import ApiError
from podlane.lab.api import auth
from podlane.lab.api.streams import LogOptions
from tests.unit.api_lab import Lab, pod, running

Obj = dict[str, Any]


class Command:
    """An ExecSession over a real process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._chunks: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._pumps = [
            asyncio.create_task(self._pump(n, s)) for n, s in ((1, process.stdout), (2, process.stderr))
        ]
        self._open = len(self._pumps)

    async def _pump(self, number: int, source: Any) -> None:
        while data := await source.read(4096):
            await self._chunks.put((number, data))
        await self._chunks.put(None)

    async def read(self) -> tuple[int, bytes] | None:
        while self._open:
            chunk = await self._chunks.get()
            if chunk is not None:
                return chunk
            self._open -= 1
        return None

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def resize(self, columns: int, rows: int) -> None:
        await self._chunks.put((1, f"{columns}x{rows}".encode()))

    async def wait(self) -> int:
        return await self._process.wait()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._pumps)
        RUNTIME.killed.set()


class Runtime:
    """Kubelets whose containers are this machine. asked: the options of the last call."""

    def __init__(self) -> None:
        self.asked: Obj = {}
        self.closed, self.killed = threading.Event(), threading.Event()

    async def logs(
        self, namespace: str, pod: str, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        self.asked = {"pod": f"{namespace}/{pod}", "container": container, **msgspec.structs.asdict(options)}
        if options.previous:
            message = f'previous terminated container "{container}" in pod "{pod}" not found'
            raise ApiError(message, code=400, reason="BadRequest")
        try:
            yield b"one\n"
            while options.follow:
                await asyncio.sleep(0.05)
                yield b"more\n"
        finally:
            self.closed.set()

    async def exec(
        self, namespace: str, pod: str, container: str, command: list[str], **options: Any
    ) -> Command:
        self.asked = {"pod": f"{namespace}/{pod}", "container": container, **options}
        pipe = asyncio.subprocess.PIPE
        try:
            return Command(
                await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
            )
        except FileNotFoundError:
            raise ApiError(f"exec: {command[0]!r}: executable file not found in $PATH", code=500) from None


RUNTIME = Runtime()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("api"), RUNTIME) as found:
        yield found


@pytest.fixture(scope="module")
def api(lab: Lab) -> Iterator[client.CoreV1Api]:
    with config.new_client_from_config(str(lab.kubeconfig)) as made:
        yield client.CoreV1Api(made)


@pytest.fixture
def namespace(api: client.CoreV1Api) -> str:
    made = api.create_namespace({"metadata": {"generateName": "t-"}})
    return str(made.metadata.name)


class Answer:
    def __init__(self, response: HTTPResponse) -> None:
        self.code, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    lab: Lab, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
) -> Answer:
    place = urlsplit(lab.url)
    context = ssl.create_default_context(cadata=lab.pki.ca_pem)
    connection = HTTPSConnection(place.hostname or "", place.port, context=context, timeout=20)
    bearer = lab.pki.token if token is None else token
    sent = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, sent)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def lines(lab: Lab, path: str) -> list[Obj]:
    """The events of a watch that ends by itself."""
    return [json.loads(line) for line in call(lab, "GET", path).body.splitlines()]


# --- who may come in ------------------------------------------------------------------------------


def test_only_the_token_opens_the_door(lab: Lab) -> None:
    for token in ("", "wrong", lab.pki.token + "x"):
        answer = call(lab, "GET", "/api/v1/pods", token=token)
        assert answer.code == 401
        assert answer.json["reason"] == "Unauthorized"
    for path in ("/healthz", "/livez", "/readyz"):
        assert call(lab, "GET", path, token="").body == b"ok"
    assert call(lab, "GET", "/version", token="").json["gitVersion"].startswith("v1.36")


def test_keys_are_private_and_made_once(lab: Lab) -> None:
    again = auth.make_pki(lab.pki.directory, ["other"], ["10.0.0.1"])
    assert (again.token, again.ca_pem) == (lab.pki.token, lab.pki.ca_pem)
    for file in lab.pki.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(lab.pki.directory.stat().st_mode) == 0o700


# --- what is there --------------------------------------------------------------------------------


def test_discovery_old_and_aggregated_agree(lab: Lab) -> None:
    old: set[str] = set()
    groups = call(lab, "GET", "/apis").json["groups"]
    paths = ["/api/v1", *(f"/apis/{v['groupVersion']}" for g in groups for v in g["versions"])]
    for path in paths:
        found = call(lab, "GET", path).json
        old |= {f"{found['groupVersion']}/{r['name']}" for r in found["resources"]}
    new: set[str] = set()
    for version in ("v2", "v2beta1"):
        accept = (
            f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
        )
        for path in ("/api", "/apis"):
            answer = call(lab, "GET", path, Accept=accept)
            assert "as=APIGroupDiscoveryList" in answer.headers["Content-Type"]
            assert call(lab, "GET", path, Accept=accept, If_None_Match=answer.headers["ETag"]).code == 304
            for group in answer.json["items"]:
                for item in group["versions"]:
                    name = group["metadata"].get("name") or ""
                    prefix = f"{name}/{item['version']}" if name else item["version"]
                    for resource in item["resources"]:
                        new.add(f"{prefix}/{resource['resource']}")
                        for sub in resource.get("subresources", ()):
                            new.add(f"{prefix}/{resource['resource']}/{sub['subresource']}")
    assert old == new
    assert {"v1/pods/exec", "apps/v1/deployments/scale", "networking.k8s.io/v1/ipaddresses"} <= old


def test_openapi_documents_are_whole(lab: Lab) -> None:
    index = call(lab, "GET", "/openapi/v3").json["paths"]
    for path in ("api/v1", "apis/apps/v1", "apis/networking.k8s.io/v1"):
        document = call(lab, "GET", index[path]["serverRelativeURL"]).json
        text = json.dumps(document)
        for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
            assert reference in document["components"]["schemas"], (path, reference)
    v2 = call(lab, "GET", "/openapi/v2").json
    assert v2["swagger"] == "2.0"


def test_openapi_v2_speaks_protobuf_to_those_who_ask(lab: Lab) -> None:
    well_formed = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    for accept, media_type in (
        (asked, well_formed),
        (well_formed, well_formed),
        (f"{asked}, application/json", well_formed),
        (f"application/json, {asked}", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
    ):
        answer = call(lab, "GET", "/openapi/v2", Accept=accept)
        assert (answer.code, answer.headers["Content-Type"].partition(";")[0]) == (200, media_type)
        assert answer.headers["Vary"] == "Accept"
        again = call(lab, "GET", "/openapi/v2", Accept=accept, If_None_Match=answer.headers["ETag"])
        assert (again.code, again.body) == (304, b"")
    tags = {call(lab, "GET", "/openapi/v2", Accept=a).headers["ETag"] for a in (asked, "application/json")}
    assert len(tags) == 2
    assert call(lab, "GET", "/openapi/v2", Accept="application/yaml").code == 406
    assert call(lab, "GET", "/openapi/v3/api/v1", Accept=asked).code == 406


@pytest.mark.parametrize(
    ("method", "path", "code", "message"),
    [
        ("GET", "/api/v1/namespaces/default/pods/none", 404, 'pods "none" not found'),
        (
            "GET",
            "/apis/apps/v1/namespaces/default/deployments/none",
            404,
            'deployments.apps "none" not found',
        ),
        ("GET", "/api/v1/gadgets", 404, "the server could not find the requested resource"),
        (
            "GET",
            "/api/v1/namespaces/default/pods/a/b/c",
            404,
            "the server could not find the requested resource",
        ),
        ("GET", "/elsewhere", 404, "the server could not find the requested resource"),
        ("POST", "/api/v1/namespaces/default/pods/a", 405, "the server does not allow this method"),
        ("DELETE", "/api/v1/namespaces", 405, "the server does not allow this method"),
        ("GET", "/api/v1/pods?limit=x", 400, "limit: 'x' is not an integer"),
        ("GET", "/api/v1/pods?resourceVersion=x", 400, "resourceVersion: Invalid value"),
        ("GET", "/api/v1/pods?resourceVersion=99999999", 504, "Too large resource version: 99999999"),
        ("GET", "/api/v1/pods?fieldSelector=a", 400, "invalid selector"),
    ],
)
def test_refusals_are_statuses(lab: Lab, method: str, path: str, code: int, message: str) -> None:
    answer = call(lab, method, path)
    assert (answer.code, answer.json["kind"], answer.json["code"]) == (code, "Status", code)
    assert message in answer.json["message"]


@pytest.mark.parametrize(
    ("content_type", "body", "code", "message"),
    [
        ("application/json", b"{", 400, "couldn't decode the body"),
        ("application/json", b"[]", 400, "the body of the request is not an object"),
        ("application/json", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400, "nested too deeply"),
        ("application/json", b'{"data":' * 400 + b"{}" + b"}" * 400, 400, "cannot unmarshal object"),
        ("application/vnd.kubernetes.protobuf", b"k8s", 400, "does not begin with the magic number"),
        ("application/yaml", b"a: [", 400, "error converting YAML"),
        ("text/html", b"<a>", 415, "in an unknown format"),
        ("application/json", b" " * (3 * 1024 * 1024 + 1), 413, "Request entity too large: limit is 3145728"),
    ],
)
def test_bodies_that_are_refused(lab: Lab, content_type: str, body: bytes, code: int, message: str) -> None:
    answer = call(lab, "POST", "/api/v1/namespaces/default/configmaps", body, Content_Type=content_type)
    assert answer.code == code
    assert message in answer.json["message"]


def test_yaml_in_and_yaml_out(lab: Lab, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    body = b"metadata: {name: y}\ndata: {when: 2024-01-01, answer: 'no'}\n"
    answer = call(lab, "POST", path, body, Content_Type="application/yaml")
    assert answer.json["data"] == {"when": "2024-01-01", "answer": "no"}
    answer = call(lab, "GET", f"{path}/y", Accept="application/yaml")
    assert answer.headers["Content-Type"].startswith("application/yaml")
    assert b"when: '2024-01-01'" in answer.body


def test_field_validation(lab: Lab, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services"
    body = b'{"metadata":{"name":"s"},"spec":{"ports":[{"port":80,"port":81,"prot":"TCP"}]}}'
    json_type = {"Content_Type": "application/json"}
    strict = call(lab, "POST", f"{path}?fieldValidation=Strict", body, **json_type)
    assert strict.code == 400
    assert "strict decoding error" in strict.json["message"]
    warned = call(lab, "POST", f"{path}?fieldValidation=Warn&dryRun=All", body, **json_type)
    assert warned.code == 201
    warnings = warned.headers.get_all("Warning") or []
    assert any(w.startswith('299 - "unknown field \\"spec.ports[0].prot\\"') for w in warnings)
    assert any("duplicate field" in w for w in warnings)
    quiet = call(lab, "POST", f"{path}?fieldValidation=Ignore", body, **json_type)
    assert quiet.code == 201
    assert not quiet.headers.get_all("Warning")
    assert call(lab, "POST", f"{path}?fieldValidation=Maybe", body, **json_type).code == 422


def test_server_side_apply_is_refused_clearly(lab: Lab) -> None:
    path = "/api/v1/namespaces/default/configmaps/a?fieldManager=me"
    answer = call(lab, "PATCH", path, b"{}", Content_Type="application/apply-patch+yaml")
    assert answer.code == 415
    assert "server-side apply is not supported" in answer.json["message"]


def test_invalid_objects_in_the_words_clients_know(lab: Lab, namespace: str) -> None:
    body = {"metadata": {"name": "x"}, "spec": {"ports": [{"port": 70000, "targetPort": 80}]}}
    answer = call(lab, "POST", f"/api/v1/namespaces/{namespace}/services", body)
    assert answer.code == 422
    assert answer.json["message"] == (
        'Service "x" is invalid: spec.ports[0].port: Invalid value: 70000: '
        "must be between 1 and 65535, inclusive"
    )
    assert answer.json["details"]["causes"][0]["field"] == "spec.ports[0].port"
    listed = call(lab, "GET", "/apis/networking.k8s.io/v1/ipaddresses").json["items"]
    assert not [i for i in listed if i["spec"]["parentRef"]["namespace"] == namespace]


# --- lists, tables, watches -----------------------------------------------------------------------


def test_lists_in_pages(api: client.CoreV1Api, namespace: str) -> None:
    for i in range(5):
        api.create_namespaced_config_map(namespace, {"metadata": {"name": f"c{i}"}})
    names, token = [], None
    while token != "":
        page = api.list_namespaced_config_map(namespace, limit=2, _continue=token)
        names += [c.metadata.name for c in page.items]
        token = page.metadata._continue or ""
    assert names == [f"c{i}" for i in range(5)]


def test_tables_for_people(lab: Lab, namespace: str) -> None:
    call(lab, "POST", f"/api/v1/namespaces/{namespace}/pods", pod("web", nodeName="n1"))
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    path = f"/api/v1/namespaces/{namespace}/pods"
    table = call(lab, "GET", path, Accept=accept).json
    assert table["kind"] == "Table"
    columns = [c["name"] for c in table["columnDefinitions"]]
    row = dict(zip(columns, table["rows"][0]["cells"], strict=True))
    assert (row["Name"], row["Ready"], row["Status"], row["Node"]) == ("web", "0/1", "Pending", "n1")
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    answer = call(lab, "GET", f"{path}?watch=1&timeoutSeconds=1", Accept=accept)
    event = json.loads(answer.body.splitlines()[0])
    assert event["object"]["rows"][0]["cells"][0] == "web"
    only = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    metadata = call(lab, "GET", path, Accept=only).json
    assert metadata["kind"] == "PartialObjectMetadataList"
    assert set(metadata["items"][0]) == {"kind", "apiVersion", "metadata"}


def test_a_streaming_list_ends_with_its_bookmark(lab: Lab, api: client.CoreV1Api, namespace: str) -> None:
    for name in "ab":
        api.create_namespaced_config_map(namespace, {"metadata": {"name": name}})
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    events = lines(lab, f"/api/v1/namespaces/{namespace}/configmaps?{query}&timeoutSeconds=1")
    assert [e["type"] for e in events] == ["ADDED", "ADDED", "BOOKMARK", "BOOKMARK"]
    first, last = (e["object"]["metadata"] for e in events[2:])
    assert first["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert "annotations" not in last
    assert int(first["resourceVersion"]) >= int(events[1]["object"]["metadata"]["resourceVersion"])
    refused = call(lab, "GET", "/api/v1/configmaps?watch=1&sendInitialEvents=true")
    assert refused.code == 422


def test_a_watch_that_is_too_old_is_told(lab: Lab) -> None:
    events = lines(lab, "/api/v1/pods?watch=1&resourceVersion=99999999")
    assert [e["type"] for e in events] == ["ERROR"]
    assert events[0]["object"]["code"] == 504


def test_the_client_library_watches_and_changes(api: client.CoreV1Api, namespace: str) -> None:
    listed = api.list_namespaced_pod(namespace)
    api.create_namespaced_pod(namespace, pod("a"))
    api.patch_namespaced_pod("a", namespace, {"metadata": {"labels": {"x": "y"}}})
    api.patch_namespaced_pod_status("a", namespace, {"status": {"phase": "Running"}})
    api.delete_namespaced_pod("a", namespace)
    found = []
    version = listed.metadata.resource_version
    for event in watch.Watch().stream(
        api.list_namespaced_pod, namespace, resource_version=version, timeout_seconds=10
    ):
        found.append((event["type"], event["object"].status.phase))
        if event["type"] == "DELETED":
            break
    assert found == [
        ("ADDED", "Pending"),
        ("MODIFIED", "Pending"),
        ("MODIFIED", "Running"),
        ("DELETED", "Running"),
    ]


def test_bindings_evictions_and_scales(lab: Lab, api: client.CoreV1Api, namespace: str) -> None:
    api.create_namespaced_pod(namespace, pod("a"))
    path = f"/api/v1/namespaces/{namespace}/pods/a"
    assert call(lab, "POST", f"{path}/binding", {"target": {"kind": "Node", "name": "n1"}}).code == 201
    again = call(lab, "POST", f"{path}/binding", {"target": {"kind": "Node", "name": "n2"}})
    assert (again.code, again.json["reason"]) == (409, "Conflict")
    assert "already assigned to node" in again.json["message"]
    assert call(lab, "POST", f"{path}/eviction", {"metadata": {"name": "a"}}).code == 201
    assert api.read_namespaced_pod("a", namespace).metadata.deletion_grace_period_seconds == 30
    apps = client.AppsV1Api(api.api_client)
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod()["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    apps.create_namespaced_deployment(namespace, {"metadata": {"name": "d"}, "spec": spec})
    apps.patch_namespaced_deployment_scale("d", namespace, {"spec": {"replicas": 4}})
    scale = apps.read_namespaced_deployment_scale("d", namespace)
    assert (scale.spec.replicas, scale.status.selector) == (4, "a=b")
    assert apps.read_namespaced_deployment("d", namespace).metadata.generation == 2


def test_a_budget_may_refuse_an_eviction(lab: Lab, api: client.CoreV1Api, namespace: str) -> None:
    body = pod("a", nodeName="n1")
    body["metadata"]["labels"] = {"app": "db"}
    api.create_namespaced_pod(namespace, body)
    api.patch_namespaced_pod_status("a", namespace, {"status": {"phase": "Running"}})
    policy = client.PolicyV1Api(api.api_client)
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "db"}}}
    policy.create_namespaced_pod_disruption_budget(namespace, {"metadata": {"name": "b"}, "spec": spec})
    answer = call(lab, "POST", f"/api/v1/namespaces/{namespace}/pods/a/eviction", {"metadata": {"name": "a"}})
    assert answer.code == 429
    assert "disruption budget" in answer.json["message"]


def test_questions_about_rights(api: client.CoreV1Api) -> None:
    review = client.AuthorizationV1Api(api.api_client).create_self_subject_access_review(
        {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}
    )
    assert review.status.allowed is True


# --- logs and exec --------------------------------------------------------------------------------


@pytest.fixture
def running_pod(api: client.CoreV1Api, namespace: str) -> str:
    spec = {
        "nodeName": "n1",
        "containers": [{"name": "web", "image": "nginx"}, {"name": "log", "image": "busybox"}],
        "initContainers": [{"name": "init", "image": "busybox"}],
    }
    api.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": spec})
    return "p"


def test_logs(lab: Lab, api: client.CoreV1Api, namespace: str, running_pod: str) -> None:
    found = api.read_namespaced_pod_log(
        running_pod, namespace, container="web", tail_lines=5, timestamps=True, limit_bytes=9, since_seconds=7
    )
    assert found == "one\n"
    asked = RUNTIME.asked
    assert asked["pod"] == f"{namespace}/p"
    assert (asked["tail_lines"], asked["timestamps"], asked["limit_bytes"], asked["since_s"]) == (
        5,
        True,
        9,
        7.0,
    )
    path = f"/api/v1/namespaces/{namespace}/pods/p/log"
    answer = call(lab, "GET", path)
    assert answer.code == 400
    assert answer.json["message"] == (
        "a container name must be specified for pod p, choose one of: [web log] "
        "or one of the init containers: [init]"
    )
    assert (
        call(lab, "GET", f"{path}?container=none").json["message"] == "container none is not valid for pod p"
    )
    answer = call(lab, "GET", f"{path}?container=init&previous=true")
    assert (answer.code, answer.json["reason"]) == (400, "BadRequest")
    assert call(lab, "GET", f"{path}?container=web&tailLines=-1").code == 422


def test_a_follower_that_leaves_lets_the_log_go(
    lab: Lab, api: client.CoreV1Api, namespace: str, running_pod: str
) -> None:
    RUNTIME.closed.clear()
    response = api.read_namespaced_pod_log(
        running_pod, namespace, container="web", follow=True, _preload_content=False
    )
    assert response.read(10) == b"one\nmore\nm"
    response.close()
    response.release_conn()
    assert RUNTIME.closed.wait(10)


@contextmanager
def execute(api: client.CoreV1Api, namespace: str, command: list[str], **options: Any) -> Iterator[Any]:
    defaults = {"stdin": False, "stdout": True, "stderr": True, "tty": False, "container": "web"}
    # A client of its own: kubernetes.stream patches the one it is given.
    call = client.CoreV1Api(api.api_client).connect_get_namespaced_pod_exec
    session = stream(call, "p", namespace, command=command, _preload_content=False, **(defaults | options))
    try:
        yield session
    finally:
        session.sock.shutdown()


def test_exec(api: client.CoreV1Api, namespace: str, running_pod: str) -> None:
    with execute(api, namespace, ["sh", "-c", "echo out; echo err >&2; exit 3"]) as session:
        session.run_forever(timeout=20)
        assert (session.read_stdout(), session.read_stderr(), session.returncode) == ("out\n", "err\n", 3)
    assert RUNTIME.asked["container"] == "web"
    with execute(api, namespace, ["true"]) as session:
        session.run_forever(timeout=20)
        assert session.returncode == 0


def test_exec_reads_stdin_and_is_killed_with_its_client(
    api: client.CoreV1Api, namespace: str, running_pod: str
) -> None:
    with execute(api, namespace, ["cat"], stdin=True) as session:
        session.write_stdin("hello\n")
        assert session.readline_stdout(timeout=20) == "hello"
        session.write_channel(4, json.dumps({"Width": 80, "Height": 24}))
        session.update(timeout=20)
        assert session.read_stdout() == "80x24"
    assert RUNTIME.killed.wait(10)


def test_exec_of_nothing(lab: Lab, api: client.CoreV1Api, namespace: str, running_pod: str) -> None:
    with execute(api, namespace, ["/no/such/program"]) as session:
        session.run_forever(timeout=20)
        status = json.loads(session.read_channel(3))
    assert status["status"] == "Failure"
    assert "executable file not found" in status["message"]
    path = f"/api/v1/namespaces/{namespace}/pods/p/exec?command=x&stdout=1"
    assert (
        call(lab, "GET", f"{path}&container=none").json["message"] == "container none is not valid for pod p"
    )
    answer = call(lab, "POST", f"{path}&container=web")
    assert answer.code == 400
    assert "use kubectl 1.31 or newer" in answer.json["message"]


def test_the_server_stops_with_watchers_open(tmp_path: Path) -> None:
    received = b""

    def read(secure: ssl.SSLSocket) -> None:
        nonlocal received
        with secure:
            while chunk := secure.recv(1000):
                received += chunk

    with running(tmp_path) as own:
        place = urlsplit(own.url)
        raw = socket.create_connection((place.hostname, place.port), timeout=20)
        context = ssl.create_default_context(cadata=own.pki.ca_pem)
        secure = context.wrap_socket(raw, server_hostname="127.0.0.1")
        head = (
            f"GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {own.pki.token}\r\n\r\n"
        )
        secure.sendall(head.encode())
        assert secure.recv(100).startswith(b"HTTP/1.1 200")
        reader = threading.Thread(target=read, args=(secure,))
        reader.start()
    reader.join()
    assert received.endswith(b"0\r\n\r\n")


def test_a_watch_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "api.sqlite"
    with running(tmp_path, database=database) as first:
        start = call(first, "GET", "/api/v1/configmaps").json["metadata"]["resourceVersion"]
        for name in "ab":
            call(first, "POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": name}})
        seen = lines(first, f"/api/v1/configmaps?watch=1&resourceVersion={start}&timeoutSeconds=1")
        uid = call(first, "GET", "/api/v1/namespaces/default").json["metadata"]["uid"]
    with running(tmp_path, database=database) as second:
        call(second, "DELETE", "/api/v1/namespaces/default/configmaps/a")
        path = "/api/v1/configmaps?watch=1&timeoutSeconds=1&resourceVersion="
        after = seen[0]["object"]["metadata"]["resourceVersion"]
        again = lines(second, path + after)
        assert [(e["type"], e["object"]["metadata"]["name"]) for e in again] == [
            ("ADDED", "b"),
            ("DELETED", "a"),
        ]
        assert again[0] == seen[1]
        assert call(second, "GET", "/api/v1/namespaces/default").json["metadata"]["uid"] == uid
        second.run(lambda: _write_often(second, 12_000))
        expired = lines(second, path + start)
        assert [(e["type"], e["object"]["code"], e["object"]["reason"]) for e in expired] == [
            ("ERROR", 410, "Expired")
        ]


async def _write_often(lab: Lab, times: int) -> None:
    for i in range(times):
        with lab.server.store.transaction() as transaction:
            transaction.put(
                "leases.coordination.k8s.io", {"metadata": {"name": "l", "namespace": "x"}, "i": i}
            )
