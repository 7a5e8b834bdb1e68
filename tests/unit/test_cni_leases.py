"""Leases of pod addresses: who gets which, what survives, and what is refused."""

from __future__ import annotations

import os
import sqlite3
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from podlane.cni.foreign import ForeignLeases
from podlane.cni.leases import Lease, Leases
from podlane.errors import CniError, PodlaneError

V4, V6 = ip_network("10.244.1.0/29"), ip_network("fd00:1::/64")


def lease(name: str) -> Lease:
    return Lease(name, "eth0", "podlane", f"pl{name}", "02:00:00:00:00:01", (), "default", name)


@pytest.fixture
def leases():
    with Leases(":memory:", "boot-1") as made:
        yield made


def test_the_first_pod_gets_the_third_address_of_each_pool(leases):
    taken = leases.take(lease("a"), [V4, V6])
    assert taken.addresses == (ip_address("10.244.1.2"), ip_address("fd00:1::2"))
    assert leases.get("a", "eth0") == taken
    assert leases.all() == [taken]


def test_the_order_of_the_pools_is_the_order_of_the_addresses(leases):
    taken = leases.take(lease("a"), [V6, V4])
    assert [a.version for a in taken.addresses] == [6, 4]
    assert leases.get("a", "eth0") == taken


def test_addresses_go_round_before_one_comes_again(leases):
    given = []
    for number in range(8):
        given.append(str(leases.take(lease(f"c{number}"), [V4]).addresses[0])[-1])
        leases.release(f"c{number}", "eth0")
    # .0 and .1 are kept back, and .7 is the broadcast address of the /29.
    assert given == list("23456234")


def test_an_address_in_use_is_passed_over(leases):
    for name in "abcde":
        leases.take(lease(name), [V4])
    leases.release("c", "eth0")
    assert leases.take(lease("f"), [V4]).addresses == (ip_address("10.244.1.4"),)


def test_the_last_address_of_an_ipv6_pool_is_given_out(leases):
    pool = ip_network("fd00:1::/126")
    given = [str(leases.take(lease(name), [pool]).addresses[0]) for name in "ab"]
    assert given == ["fd00:1::2", "fd00:1::3"]


def test_exhaustion_is_told_and_takes_nothing(leases):
    for name in "abcde":
        leases.take(lease(name), [V6, V4])
    with pytest.raises(CniError, match=r"no address left in 10.244.1.0/29: all 5 are in use") as caught:
        leases.take(lease("f"), [V6, V4])
    assert caught.value.code == 11
    assert leases.get("f", "eth0") is None
    leases.release("b", "eth0")
    # The IPv6 address that the failed request would have had went to nobody.
    assert leases.take(lease("g"), [V6, V4]).addresses == (ip_address("fd00:1::7"), ip_address("10.244.1.3"))


@pytest.mark.parametrize("pool", ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"])
def test_pools_of_no_use_are_refused_or_used_to_the_end(leases, pool):
    network = ip_network(pool)
    if network.prefixlen == 30:
        assert leases.take(lease("a"), [network]).addresses == (ip_address("10.0.0.2"),)
    else:
        with pytest.raises(CniError, match="too small"):
            leases.take(lease("a"), [network])


def test_an_attachment_has_one_lease(leases):
    leases.take(lease("a"), [V4])
    with pytest.raises(CniError, match="has a lease for eth0 already"):
        leases.take(lease("a"), [V4])
    assert len(leases.all()) == 1
    assert leases.take(lease("b"), [V4]).addresses == (ip_address("10.244.1.3"),)


def test_releasing_what_is_not_leased_is_no_error(leases):
    leases.release("a", "eth0")


def test_leases_outlive_the_agent_but_not_the_boot(tmp_path):
    path = tmp_path / "leases.sqlite"
    with Leases(path, "boot-1") as first:
        taken = first.take(lease("a"), [V4, V6])
    with Leases(path, "boot-1") as again:
        assert again.all() == [taken]
    with Leases(path, "boot-2") as rebooted:
        assert rebooted.all() == []
        assert rebooted.take(lease("b"), [V4]).addresses == (ip_address("10.244.1.3"),)


def test_the_database_itself_refuses_a_second_holder(tmp_path):
    path = tmp_path / "leases.sqlite"
    with Leases(path, "boot-1") as leases:
        taken = leases.take(lease("a"), [V4])
        leases.take(lease("b"), [V4])
        other = sqlite3.connect(path)
        with pytest.raises(sqlite3.IntegrityError):
            other.execute("INSERT INTO address VALUES (4, ?, 0, 'b', 'eth0')", (taken.addresses[0].packed,))
        other.close()


@pytest.mark.parametrize("content", [b"this is no database, " * 100])
def test_a_file_that_is_no_database_is_refused_by_name(tmp_path, content):
    path = tmp_path / "leases.sqlite"
    path.write_bytes(content)
    with pytest.raises(PodlaneError, match=r"leases.sqlite: .*move the file away"):
        Leases(path, "boot-1")


def test_a_directory_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(PodlaneError, match=r"nowhere/leases.sqlite"):
        Leases(tmp_path / "nowhere" / "leases.sqlite", "boot-1")


def test_addresses_of_pods_of_another_plugin_are_passed_over(tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    for network, name in (("cbr0", "10.244.1.2"), ("cbr0", "lock"), ("kubenet", "10.244.1.4")):
        (networks / network).mkdir(parents=True, exist_ok=True)
        (networks / network / name).write_text("old\r\neth0")
    stale = networks / "cbr0" / "10.244.1.3"
    stale.write_text("before the boot")
    os.utime(stale, (500, 500))
    pool = ip_network("10.244.1.0/29")
    with Leases(":memory:", "boot-1", ForeignLeases(networks, booted_s=1000).has) as leases:
        given = [str(leases.take(lease(name), [pool]).addresses[0]) for name in "abc"]
        assert given == ["10.244.1.3", "10.244.1.5", "10.244.1.6"]
        with pytest.raises(CniError, match="no address left"):
            leases.take(lease("d"), [pool])
        (networks / "cbr0" / "10.244.1.2").unlink()  # its DEL came
        assert str(leases.take(lease("d"), [pool]).addresses[0]) == "10.244.1.2"
    assert not ForeignLeases(tmp_path / "nowhere").has(ip_address("10.244.1.2"))
    assert not ForeignLeases("").has(ip_address("10.244.1.2"))
    assert ForeignLeases(networks).has(ip_address("10.244.1.4"))
