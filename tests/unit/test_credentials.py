"""Who we say we are and whom we believe: real TLS on loopback, files that change, programs that are run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ApiError, ConfigError
from podlane.watch import certificates, credentials, exec_plugin, kubeconfig
from podlane.watch.credentials import Credentials
from podlane.watch.http import ApiHttp, Unreachable
from podlane.watch.kubeconfig import Access
from tests.unit.stand_in import NODES, Answer, Asked, Authority, StandIn, status

Body = dict[str, Any]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("cluster-ca")


def write(where: Path, server: StandIn, user: Body, **cluster: Any) -> Path:
    """A kubeconfig."""
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path = where / "kubeconfig"
    path.write_text(json.dumps(document))
    return path


def ask(access: Access | ApiHttp, times: int = 1) -> bytes:
    async def main() -> bytes:
        api = access if isinstance(access, ApiHttp) else ApiHttp(access)
        for _ in range(times - 1):
            await api.get(NODES, {})
        return await api.get(NODES, {})

    return asyncio.run(main())


def refused(access: Access) -> str:
    with pytest.raises(ApiError) as caught:
        ask(access)
    return f"{caught.value.code} {caught.value}"


def data(content: bytes) -> str:
    return base64.b64encode(content).decode()


# --- whom we believe ------------------------------------------------------------------------------


def test_the_authority_in_the_kubeconfig_is_believed_and_no_other(
    tmp_path: Path, authority: Authority
) -> None:
    other = Authority("somebody-else")
    with StandIn(authority.server(tmp_path)) as server:
        path = write(tmp_path, server, {}, **{"certificate-authority-data": data(authority.pem)})
        assert b"items" in ask(kubeconfig.load(path))
        (tmp_path / "ca.crt").write_bytes(other.pem)
        path = write(tmp_path, server, {}, **{"certificate-authority": "ca.crt"})
        said = refused(kubeconfig.load(path))
        assert f"certificate-authority {tmp_path / 'ca.crt'} (somebody-else)" in said
        assert "kube-root-ca.crt" in said
        assert b"items" in ask(
            kubeconfig.load(write(tmp_path, server, {}, **{"insecure-skip-tls-verify": True}))
        )


def test_an_authority_that_is_replaced_on_disk_is_believed_from_then_on(
    tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "ca.crt").write_bytes(Authority("old").pem)
    with StandIn(authority.server(tmp_path)) as server:
        access = kubeconfig.load(write(tmp_path, server, {}, **{"certificate-authority": "ca.crt"}))
        api = ApiHttp(access)
        with pytest.raises(Unreachable):
            ask(api)
        (tmp_path / "ca.crt").write_bytes(authority.pem)
        assert b"items" in ask(api)


def test_a_name_the_certificate_does_not_have(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("kube-apiserver", host="kubernetes.default")
    ca = {"certificate-authority-data": data(authority.pem)}
    with StandIn(authority.server(tmp_path, pair)) as server:
        assert "tls-server-name" in refused(kubeconfig.load(write(tmp_path, server, {}, **ca)))
        named = ca | {"tls-server-name": "kubernetes.default"}
        assert b"items" in ask(kubeconfig.load(write(tmp_path, server, {}, **named)))


def test_a_servers_certificate_that_has_expired(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("kube-apiserver", days=(-3, -2))
    with StandIn(authority.server(tmp_path, pair)) as server:
        path = write(tmp_path, server, {}, **{"certificate-authority-data": data(authority.pem)})
        said = refused(kubeconfig.load(path))
        assert "certificate has expired" in said
        assert "kubeadm certs renew apiserver" in said


def test_a_ca_file_that_holds_none(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca.crt").write_text("nothing of the kind")
    with StandIn(authority.server(tmp_path)) as server:
        access = kubeconfig.load(write(tmp_path, server, {}, **{"certificate-authority": "ca.crt"}))
        with pytest.raises(ConfigError, match=r"ca\.crt holds no certificates"):
            ApiHttp(access)


# --- client certificates --------------------------------------------------------------------------


def with_certificate(where: Path, server: StandIn, authority: Authority) -> Access:
    user = {"client-certificate": "client.crt", "client-key": "client.key"}
    return kubeconfig.load(write(where, server, user, **{"certificate-authority-data": data(authority.pem)}))


def test_a_client_certificate_that_is_renewed_on_disk_is_used_for_the_next_connection(
    tmp_path: Path, authority: Authority
) -> None:
    with StandIn(authority.server(tmp_path, clients=True)) as server:
        authority.issue("node-a").write(tmp_path, "client")
        api = ApiHttp(with_certificate(tmp_path, server, authority))
        ask(api)
        authority.issue("node-a-renewed").write(tmp_path, "client")
        ask(api)
        # Only half of a pair was written so far: what fits is used on.
        (tmp_path / "client.crt").write_bytes(authority.issue("half").certificate)
        ask(api)
        assert [each.peer for each in server.asked] == ["node-a", "node-a-renewed", "node-a-renewed"]


def test_a_client_certificate_that_has_expired_is_named_with_its_file_and_the_day(
    tmp_path: Path, authority: Authority
) -> None:
    with StandIn(authority.server(tmp_path, clients=True)) as server:
        authority.issue("node-a", days=(-3, -2)).write(tmp_path, "client")
        said = refused(with_certificate(tmp_path, server, authority))
        ended = (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%d")
        assert f"client-certificate {tmp_path / 'client.crt'} (node-a) expired at {ended}" in said
        assert "have it issued anew, the file is read again by itself" in said


def test_a_401_for_an_expired_certificate_says_the_same(tmp_path: Path, authority: Authority) -> None:
    """A kube-apiserver lets the handshake pass and refuses the request."""
    with StandIn(authority.server(tmp_path)) as server:
        server.fault = lambda asked: status(401, "Unauthorized", "Unauthorized")
        authority.issue("node-a", days=(2, 3)).write(tmp_path, "client")
        said = refused(with_certificate(tmp_path, server, authority))
        assert said.startswith("401 Unauthorized (client-certificate ")
        assert "does not hold before" in said


def test_what_a_certificate_says_of_itself(authority: Authority) -> None:
    pair = authority.issue("näme", days=(-1, 30))
    (found,) = certificates.read(b"text before\n" + pair.certificate)
    assert found.subject == "näme"
    assert found.ends - found.begins == timedelta(days=31)
    assert found.fault(datetime.now(UTC)) == ""
    assert found.fault(datetime.now(UTC) + timedelta(days=40)).startswith("expired at 20")
    far = authority.issue("far", days=(-1, 365 * 60))  # GeneralizedTime from 2050 on
    assert certificates.read(far.certificate)[0].ends.year > 2080
    assert certificates.read(pair.certificate + authority.pem)[1].subject == "cluster-ca"
    broken = pair.certificate.replace(b"MII", b"MIJ", 1)
    assert certificates.read(broken) == []
    assert certificates.read(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----") == []


# --- tokens ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def bearer(found: Credentials) -> str:
    return found.headers()["Authorization"].removeprefix("Bearer ")


def test_a_token_file_is_read_again_after_a_minute_and_what_is_gone_meanwhile_is_used_on(
    tmp_path: Path,
) -> None:
    path, clock = tmp_path / "token", Clock()
    path.write_text("first\n")
    found = Credentials(Access("http://h", token_file=str(path)), now_s=clock)
    assert bearer(found) == "first"
    path.write_text("second\n")
    clock.s += 59
    assert bearer(found) == "first"
    clock.s += 2
    assert bearer(found) == "second"
    path.unlink()
    clock.s += 61
    assert bearer(found) == "second"


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"token file .*/absent: No such file") as caught:
        Credentials(Access("http://h", token_file=str(tmp_path / "absent"))).headers()
    assert caught.value.code == 401


def allows(token: str) -> Any:
    def judge(asked: Asked) -> Answer | None:
        right = asked.headers.get("authorization") == f"Bearer {token}"
        return None if right else status(401, "Unauthorized", "Unauthorized")

    return judge


def test_a_token_that_is_refused_is_read_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    with StandIn() as server:
        api = ApiHttp(kubeconfig.load(write(tmp_path, server, {"tokenFile": "token"})))
        server.fault = allows("old")
        ask(api)
        server.fault = allows("new")
        with pytest.raises(ApiError, match="Unauthorized"):
            ask(api)
        assert len(server.asked) == 2, "the same token is not tried twice"
        path.write_text("new")
        ask(api)
        assert len(server.asked) == 4
        assert api.requests["list", "nodes", "401"] == 2


# --- exec plugins ---------------------------------------------------------------------------------

PLUGIN = """#!/bin/sh
echo run >> {log}
printf '%s' "$KUBERNETES_EXEC_INFO" > {info}
cat {answer}
"""


class Plugin:
    """A program beside the kubeconfig. runs: how often it was run."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.log, self.info, self.answer = where / "log", where / "info", where / "answer"
        script = where / "login"
        script.write_text(PLUGIN.format(log=self.log, info=self.info, answer=self.answer))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    @property
    def runs(self) -> int:
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def gives(self, version: str = "v1", **given: Any) -> None:
        body = {"apiVersion": f"{exec_plugin.GROUP}/{version}", "kind": "ExecCredential", "status": given}
        self.answer.write_text(json.dumps(body))

    @staticmethod
    def user(**changes: Any) -> Body:
        found = {"apiVersion": exec_plugin.VERSIONS[0], "command": "./login", "interactiveMode": "Never"}
        return {"exec": found | changes}


def in_future(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_plugins_token_is_used_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Plugin(tmp_path)
    with StandIn() as server:
        plugin.gives(token="t1", expirationTimestamp=in_future(3600))
        user = plugin.user(args=["--x"], env=[{"name": "REGION", "value": "r"}], provideClusterInfo=True)
        extension = [{"name": f"{exec_plugin.GROUP}/exec", "extension": {"audience": "a"}}]
        api = ApiHttp(kubeconfig.load(write(tmp_path, server, user, extensions=extension)))
        ask(api, times=3)
        assert plugin.runs == 1
        info = json.loads(plugin.info.read_text())
        assert info == {
            "apiVersion": f"{exec_plugin.GROUP}/v1",
            "kind": "ExecCredential",
            "spec": {"interactive": False, "cluster": {"server": server.url, "config": {"audience": "a"}}},
        }
        plugin.gives(token="t2")
        monkeypatch.setattr(credentials, "AHEAD_S", 4000.0)  # as if the hour were almost over
        ask(api)
        assert plugin.runs == 2
        assert [each.headers["authorization"] for each in server.asked][-2:] == ["Bearer t1", "Bearer t2"]


def test_a_plugin_is_run_again_when_the_api_refuses_what_it_gave(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    with StandIn() as server:
        plugin.gives("v1beta1", token="old")
        user = plugin.user(apiVersion=exec_plugin.VERSIONS[1])
        del user["exec"]["interactiveMode"]
        api = ApiHttp(kubeconfig.load(write(tmp_path, server, user)))
        server.fault = allows("old")
        ask(api)
        server.fault = allows("new")
        plugin.gives("v1beta1", token="new")
        ask(api)
        assert plugin.runs == 2


def test_a_plugin_may_give_a_certificate(tmp_path: Path, authority: Authority) -> None:
    plugin, pair = Plugin(tmp_path), authority.issue("by-plugin")
    plugin.gives(clientCertificateData=pair.certificate.decode(), clientKeyData=pair.key.decode())
    with StandIn(authority.server(tmp_path, clients=True)) as server:
        ca = {"certificate-authority-data": data(authority.pem)}
        ask(kubeconfig.load(write(tmp_path, server, plugin.user(), **ca)))
        assert server.asked[0].peer == "by-plugin"
        assert "cluster" not in json.loads(plugin.info.read_text())["spec"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"apiVersion": "client.authentication.k8s.io/v1alpha1"}, "exec.apiVersion: 'client.auth"),
        ({"command": ""}, "exec.command: expected the name of a program"),
        ({"interactiveMode": "Always"}, "wants a terminal and a daemon has none; use a service account"),
        ({"interactiveMode": None}, "exec.interactiveMode: ''; known: Never, IfAvailable, Always"),
        ({"args": [1]}, "args are texts"),
        ({"env": [{"value": "x"}]}, "env pairs of name and value"),
    ],
)
def test_a_plugin_that_cannot_be_run_is_refused_at_the_start(
    tmp_path: Path, changes: Body, says: str
) -> None:
    with StandIn() as server:
        path = write(tmp_path, server, Plugin.user(**changes))
    with pytest.raises(ConfigError) as caught:
        kubeconfig.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("certainly not", "is no ExecCredential"),
        (
            '{"kind": "ExecCredential", "apiVersion": "v1"}',
            "is ExecCredential of v1, expected ExecCredential",
        ),
        ({}, "has no token and no client certificate in its status"),
        ({"clientKeyData": "k"}, "they come together"),
        ({"token": 7}, "is no ExecCredential"),
        ({"clientKeyData": "k", "clientCertificateData": "c"}, "cannot be used"),
    ],
)
def test_what_a_plugin_says_wrongly_is_told(
    tmp_path: Path, authority: Authority, answer: Any, says: str
) -> None:
    plugin = Plugin(tmp_path)
    if isinstance(answer, str):
        plugin.answer.write_text(answer)
    else:
        plugin.gives(**answer)
    with StandIn(authority.server(tmp_path)) as server:
        said = refused(kubeconfig.load(write(tmp_path, server, plugin.user())))
    assert said.startswith("401 ")
    assert says in said


def test_a_plugin_that_fails_or_is_not_there(tmp_path: Path) -> None:
    with StandIn() as server:
        script = tmp_path / "login"
        script.write_text("#!/bin/sh\necho session expired, log in again >&2\nexit 3\n")
        script.chmod(0o755)
        said = refused(kubeconfig.load(write(tmp_path, server, Plugin.user())))
        assert "ended with status 3: session expired, log in again" in said
        absent = Plugin.user(command="no-such-program-here", installHint="get it from your cloud")
        said = refused(kubeconfig.load(write(tmp_path, server, absent)))
        assert "the program no-such-program-here is not there: get it from your cloud" in said
        assert server.asked == []


def test_many_readers_at_once_run_a_plugin_once(tmp_path: Path) -> None:
    plugin = Plugin(tmp_path)
    with StandIn() as server:
        plugin.gives(token="t")
        access = kubeconfig.load(write(tmp_path, server, plugin.user()))

        async def main() -> None:
            api = ApiHttp(access)
            await asyncio.gather(*(api.get(NODES, {}) for _ in range(8)))

        asyncio.run(main())
        assert plugin.runs == 1


# --- several servers ------------------------------------------------------------------------------


def test_the_next_server_is_asked_when_one_is_away_and_the_good_one_stays_preferred(tmp_path: Path) -> None:
    with StandIn() as one, StandIn() as two, StandIn() as three:
        path = write(tmp_path, one, {})
        servers = [each.url for each in (one, two, three)]
        api = ApiHttp(kubeconfig.load(path, servers=servers))
        one.stop()
        two.stop()
        for _ in range(3):
            ask(api)
        assert len(three.asked) == 3
        assert api.requests["list", "nodes", "none"] <= 2, "who is away is not asked first again"
        three.stop()
        with pytest.raises(Unreachable) as caught:
            ask(api)
        assert all(url in str(caught.value) for url in servers)
        assert not caught.value.connected
        two.start()
        ask(api)
        assert len(two.asked) == 1


def test_a_server_that_answers_with_a_fault_of_its_own_is_passed_over_the_next_time(tmp_path: Path) -> None:
    with StandIn() as one, StandIn() as two:
        api = ApiHttp(kubeconfig.load(write(tmp_path, one, {}), servers=[one.url, two.url]))
        one.fault = lambda asked: status(503, "ServiceUnavailable", "etcd is away")
        for _ in range(4):
            with contextlib.suppress(ApiError):
                ask(api)
        assert len(one.asked) <= 1
        assert len(two.asked) >= 3


def test_servers_are_urls(tmp_path: Path) -> None:
    with StandIn() as server:
        path = write(tmp_path, server, {})
    for wrong in ("10.0.0.1:6443", "ftp://h", "https://", "https://h:x"):
        with pytest.raises(ConfigError, match=r"API server: .* is no http or https URL"):
            kubeconfig.load(path, servers=[wrong])


def test_a_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_plugin, "TIMEOUT_S", 0.1)
    with StandIn() as server:
        script = tmp_path / "login"
        script.write_text("#!/bin/sh\nexec sleep 60\n")
        script.chmod(0o755)
        began_s = time.monotonic()
        assert "did not end within 0.1 s" in refused(kubeconfig.load(write(tmp_path, server, Plugin.user())))
        assert time.monotonic() - began_s < 30
