"""The life of programs and maps at the socket: killed, upgraded, grown, damaged, removed; what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlane.compile import socket_lb
from podlane.compile.tables import Backend, NodePortKey, SetName, Table
from podlane.delta import delta
from podlane.kernel import cgroups
from podlane.kernel.bpf import elf, installation, layout, syscall
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.model.addresses import Family, Protocol, address
from tests.netns.service_lab import PLANS, PORT, ServiceLab, service_lab
from tests.netns.socket_site import (
    DATAGRAM,
    How,
    SocketSite,
    asked,
    connect,
    line,
    running,
    service_address,
    web,
)
from tests.property.service_tables import Tables, tables

EMPTY: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}


@pytest.fixture(scope="module")
def lab() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        yield lab


@pytest.fixture
def site(lab: ServiceLab, tmp_path: Path) -> Iterator[SocketSite]:
    with running(lab, tmp_path / "bpf") as site:
        yield site


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


def test_a_driver_that_is_killed_leaves_everything_and_finds_it_again(site: SocketSite) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"))
    with connect(site, how) as before, site.socket("client", how.af, DATAGRAM) as loose:
        line(before)
        loose.sendto(b"?", how(service_address(family)))
        loose.recv(4096)
        site.driver.close()
        # Nobody is there, and still they come.
        assert asked(site, how).server == "local-1"
        loose.sendto(b"?", how(service_address(family)))
        assert loose.recvfrom(4096)[1] == how(service_address(family))
        links = link_programs(site)
        report = site.restart()
        assert report.operations == 0
        assert report.failures == ()
        assert link_programs(site) == links
        assert before.getpeername() == how(service_address(family))
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        assert sum(site.driver.chosen().values()) == 4 - 1  # two streams, one socket of datagrams


def link_programs(site: SocketSite) -> dict[str, int]:
    found = {}
    for path in site.site.directory.glob("link_*"):
        fd = syscall.pinned(str(path))
        assert fd is not None
        found[path.name] = syscall.link_info(fd).program
        os.close(fd)
    assert len(found) == 11
    return found


def test_what_went_while_nobody_was_there_ends_at_the_start(site: SocketSite) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"), *web(family, "local-1", number=11))
    with connect(site, how) as gone, connect(site, how, where=service_address(family, 11)) as kept:
        line(gone), line(kept)
        site.driver.close()
        site.know(*web(family, "local-2"))
        site.restart()
        assert site.driver.ending.wait()
        with pytest.raises(ConnectionAbortedError):
            gone.recv(4096)
        kept.sendall(b"x")  # of a service that is gone it is not known
        assert kept.recv(1) == b"x"
        assert asked(site, how).server == "local-2"


def test_other_programs_and_maps_are_exchanged_in_place(
    site: SocketSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"))
    links = link_programs(site)
    with connect(site, how) as before:
        line(before)
        # Another layout: new maps, filled before the links run programs that use them.
        monkeypatch.setattr(layout, "LAYOUT", layout.LAYOUT + 1)
        assert site.restart().failures == ()
        changed = link_programs(site)
        assert all(changed[name] != links[name] for name in links)
        assert asked(site, how).server == "local-1"
        before.sendall(b"x")
        assert before.recv(1) == b"x"
    assert site.restart().operations == 0
    # A link whose pin somebody took away is made anew.
    (site.site.directory / "link_connect4").unlink()
    assert site.restart().operations == 1
    assert asked(site, how).server == "local-1"
    assert site.driver.chosen()


def test_a_program_of_another_version_is_exchanged_and_maps_stay(
    site: SocketSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = How(Family.IPV4, in_six=False)
    site.set(*web(Family.IPV4, "local-1"))
    with connect(site, how) as stream:
        line(stream)
        links, maps = link_programs(site), map_ids(site)
        # r0 = 1; exit: a hook that lets everything go on.
        other = elf.Code(bytes.fromhex("b700000001000000" + "9500000000000000"), ())
        original = elf.programs

        def programs(image: bytes) -> dict[str, elf.Code]:
            return original(image) | {"bind4": other}

        with monkeypatch.context() as patched:
            patched.setattr(elf, "programs", programs)
            assert site.restart().operations == 1
        changed = {name for name, program in link_programs(site).items() if program != links[name]}
        assert changed == {"link_bind4"}
        assert site.restart().operations == 1  # and back again
        assert map_ids(site) == maps
        assert stream.getpeername() == how(service_address(Family.IPV4))
        assert sum(site.driver.chosen().values()) == 1


def map_ids(site: SocketSite) -> dict[str, int]:
    return {name: syscall.map_info(fd).id for name, fd in site.driver._installed.maps.items()}


def test_no_new_connection_is_lost_while_everything_changes(
    site: SocketSite, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints come and go, maps grow, agents die and upgrade: who connects is answered each time."""
    lists = [("local-1", "local-2", "remote"), ("local-2",), ("remote", "local-2"), ("local-2", "local-1")]
    site.set(*web(family, *lists[0]))
    how, plan = How(family, in_six=False), PLANS[family]
    site.kept = frozenset(map(address, (plan.pod(5), plan.pod(6), plan.remote)))
    failed: list[BaseException] = []
    made = Counter[str]()
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                made[site.lab.ask("client", *how(service_address(family))).server] += 1
                made[ask_by_datagram(site, how(service_address(family)))] += 1
        except BaseException as error:
            failed.append(error)

    with cgroups.joined(site.site.cgroup):
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for round_ in range(20):
                others = [e for n in range(20, 20 + round_ % 7) for e in web(family, "remote", number=n)]
                site.set(*web(family, *lists[round_ % len(lists)]), *others, wait=False)
                time.sleep(0.01)
                if round_ % 6 == 5:
                    monkeypatch.setattr(layout, "LAYOUT", layout.LAYOUT + round_ % 4)
                    assert site.restart().failures == ()
                if round_ % 8 == 7:
                    with site.driver._maps:
                        site.driver._installed.grow(layout.BACKENDS)
        finally:
            stop.set()
            asking.join()
    assert failed == []
    assert made["local-2"] > 10  # which is in every list
    before = sum(site.driver.chosen().values())
    asked(site, how)
    assert sum(site.driver.chosen().values()) == before + 1


def ask_by_datagram(site: SocketSite, where: tuple[str, int], again: int = 5) -> str:
    """Who answers. A socket whose endpoint leaves the list while its answer is awaited ends, and rightly,
    with ECONNABORTED: it asks again."""
    try:
        return site.lab.ask("client", *where, Protocol.UDP).server
    except ConnectionAbortedError:
        if not again:
            raise
        return ask_by_datagram(site, where, again - 1)


@pytest.fixture
def small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        name: spec._replace(entries=2) if name in layout.DESIRED else spec
        for name, spec in layout.SPECS.items()
    }
    monkeypatch.setattr(layout, "SPECS", small)


@pytest.mark.usefixtures("small_maps")
def test_maps_grow_when_they_are_full(site: SocketSite) -> None:
    family, how = Family.IPV4, How(Family.IPV4, in_six=False)
    for count in (1, 5, 9):
        wanted = [each for n in range(10, 10 + count) for each in web(family, "local-1", "remote", number=n)]
        site.set(*wanted)
        for number in range(10, 10 + count):
            assert asked(site, how, where=service_address(family, number)).server in ("local-1", "remote")
    assert sum(site.driver.chosen().values()) == 15
    says(site.driver, site.tables)
    assert site.restart().operations == 0


def test_pins_are_made_again_for_what_is_held(site: SocketSite) -> None:
    """A driver that still runs has its maps: nothing in them is lost with their names."""
    site.set(*web(Family.IPV4, "local-1"))
    with connect(site, How(Family.IPV4, in_six=False)) as stream:
        line(stream)
        maps = map_ids(site)
        for name in ("members", "connected", "link_connect4"):
            (site.site.directory / name).unlink()
        assert site.driver.resync(site.tables).operations == 1
        assert map_ids(site) == maps
        assert {path.name for path in site.site.directory.iterdir()} >= set(installation.PINS)
        assert stream.getpeername() == (service_address(Family.IPV4), 80)
        assert sum(site.driver.chosen().values()) == 1
        assert site.restart().operations == 0


def test_removal_leaves_nothing_and_connections_go_on(site: SocketSite) -> None:
    family, how = Family.IPV4, How(Family.IPV4, in_six=False)
    site.set(*web(family, "local-1"))
    with connect(site, how) as stream:
        line(stream)
        assert installation.remove(site.site.directory)
        assert not installation.remove(site.site.directory)
        assert not [path for path in site.site.directory.iterdir() if not path.name.endswith(".debug")]
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        assert stream.getpeername() == (PLANS[family].pod(5), PORT)
    assert asked(site, how).server == "local-1"  # by nftables
    assert sum(site.driver.chosen().values()) == 1


def test_what_cannot_be_is_refused_by_name_and_with_what_works() -> None:
    """Here for want of rights, as a kernel without the feature would."""
    script = "from podlane.kernel.bpf import installation; installation.require()"
    caps = "-sys_admin,-bpf,-perfmon,-net_admin"
    command = ["setpriv", f"--bounding-set={caps}", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "services.mode=socket: this kernel refuses (create BPF map" in done.stderr
    assert "services.mode=nftables works without" in done.stderr


# --- maps and tables ------------------------------------------------------------------------------


def wanted(desired: Any) -> dict[Any, Any]:
    """(address or family, protocol, port) -> endpoints and timeout, as the tables say; only what is held."""
    found = {}
    for table in (Table.FRONTENDS, Table.NODE_PORTS):
        for key, row in desired[table].items():
            at = socket_lb.at_socket(key.protocol, row, desired[Table.BACKENDS])
            if at.list is not None:
                place = key.family if isinstance(key, NodePortKey) else key.address
                row = desired[Table.BACKENDS][at.list]
                found[place, key.protocol, key.port] = Counter(row.backends), row.affinity_timeout_s
    return found


def read(driver: SocketDriver) -> tuple[dict[Any, Any], set[Any]]:
    """The same from the kernel's maps, and the node's addresses; members are checked on the way."""
    maps = {name: driver._installed.read(name) for name in layout.DESIRED}
    lists = {}
    for key, head in maps[layout.LISTS].items():
        count, timeout_s = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        ends = [maps[layout.BACKENDS].pop(key + i.to_bytes(8, "little")) for i in range(count)]
        for end in set(ends):
            del maps[layout.MEMBERS][key + end + bytes(4)]
        lists[key] = Counter(layout.unpack_end(each) for each in ends), timeout_s
    assert maps[layout.BACKENDS] == maps[layout.MEMBERS] == {}
    found: dict[Any, Any] = {}
    protocols = {6: Protocol.TCP, 17: Protocol.UDP}
    for key, number in maps[layout.FRONTENDS].items():
        where = layout.unpack_end(key[:18] + bytes(2))
        found[where.address, protocols[key[18]], where.port] = lists[number]
    for key, number in maps[layout.NODE_PORTS].items():
        family = {4: Family.IPV4, 6: Family.IPV6}[key[0]]
        found[family, protocols[key[1]], int.from_bytes(key[2:], "big")] = lists[number]
    return found, {layout.unpack_end(key + bytes(4)).address for key in maps[layout.NODE_ADDRESSES]}


def says(driver: SocketDriver, desired: Any) -> None:
    found, addresses = read(driver)
    assert found == wanted(desired)
    rows = (row for row in desired[Table.SETS] if row.set is SetName.NODE_PORT_IPS)
    assert addresses == {row.value.network_address for row in rows if row.value.num_addresses == 1}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(tables(), min_size=1, max_size=4), again=st.booleans())
def test_maps_say_the_tables_after_any_history(site: SocketSite, history: list[Tables], again: bool) -> None:
    driver = site.driver
    driver.resync(EMPTY)
    last = EMPTY
    for desired in history:
        changes = {t: delta(desired[t], last[t]) for t in EMPTY}
        assert driver.apply({t: d for t, d in changes.items() if d}).failures == ()
        says(driver, desired)
        last = desired
    # Fresh equals incremental: what a start finds is what it wants.
    assert driver.resync(last).operations == 0
    says(driver, last)
    if again:
        says_nothing = driver.resync(EMPTY)
        assert says_nothing.failures == ()
        says(driver, EMPTY)


def test_a_cgroup_that_is_another_one_is_attached_to(site: SocketSite) -> None:
    site.set(*web(Family.IPV4, "local-1"))
    how = How(Family.IPV4, in_six=False)
    other = site.site.cgroup.with_name(site.site.cgroup.name + "-b")
    other.mkdir()
    try:
        site.site = site.site._replace(cgroup=other)
        assert site.restart().operations == 11
        with cgroups.joined(other):
            assert site.lab.ask("client", service_address(Family.IPV4)).server == "local-1"
        assert sum(site.driver.chosen().values()) == 1
        site.site = site.site._replace(cgroup=other.with_name(f"podlane-test-{os.getpid()}"))
        site.restart()
        assert asked(site, how).server == "local-1"
    finally:
        other.rmdir()


def test_backends_are_octets_in_both_families() -> None:
    for text in ("10.1.2.3", "fd00::7", "::fffe:a01:203"):
        backend = Backend(address(text), 8080)
        assert layout.unpack_end(layout.end(backend)) == backend
