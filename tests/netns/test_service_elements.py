"""The service driver against the kernel: elements equal the tables after any history, refusals are named."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    SetMember,
    SetName,
    Table,
)
from podlane.delta import Delta, delta
from podlane.errors import KernelBusyError, KernelExistsError, KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.driver import Report
from podlane.kernel.nft import counts, skeleton
from podlane.kernel.nft.codec import Element
from podlane.kernel.nft.elements import Elements, Operation
from podlane.kernel.nft.service_elements import unpack_index
from podlane.kernel.nft.services import ServicesDriver
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family, Protocol, address, prefix
from podlane.model.config import NetworkConfig, with_settings
from tests.property.service_tables import Kernel, Tables, list_key, tables, wanted_frontends, wanted_sets

CONFIG = NetworkConfig()
EMPTY: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}


@pytest.fixture(scope="module")
def place() -> Iterator[int]:
    fd = netns.new()
    yield fd
    os.close(fd)


@pytest.fixture
def driver(place: int) -> Iterator[ServicesDriver]:
    driver = ServicesDriver(CONFIG, place)
    driver.resync(EMPTY)
    yield driver
    driver.remove()
    driver.close()


def dump(place: int) -> dict[tuple[Family, str], list[Element]]:
    elements = Elements(skeleton.TABLE, place)
    hidden = ("__", skeleton.AFFINITY, skeleton.COUNTS)
    try:
        return {
            (family, name): elements.read(family, name)
            for family in Family
            for name in elements.sets(family)
            if not name.startswith(hidden)
        }
    finally:
        elements.close()


def changes(old: Tables, new: Tables) -> dict[Table, Delta[Any, Any]]:
    return {table: found for table in EMPTY if (found := delta(new[table], old[table]))}


def says(place: int, desired: Tables) -> None:
    kernel = Kernel(dump(place))
    assert kernel.frontends() == wanted_frontends(desired)
    assert kernel.sets() == wanted_sets(desired)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(tables(), min_size=1, max_size=5))
def test_elements_say_the_tables_after_any_history(
    driver: ServicesDriver, place: int, history: list[Tables]
) -> None:
    driver.resync(EMPTY)
    last = EMPTY
    for desired in history:
        assert driver.apply(changes(last, desired)).failures == ()
        says(place, desired)
        last = desired
    assert driver.resync(last) == Report()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=tables(), new=tables())
def test_a_resync_leads_from_any_state_to_any(
    driver: ServicesDriver, place: int, old: Tables, new: Tables
) -> None:
    driver.resync(old)
    says(place, old)
    assert driver.resync(new).failures == ()
    says(place, new)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(desired=tables())
def test_a_table_loaded_as_text_is_the_same(driver: ServicesDriver, place: int, desired: Tables) -> None:
    """Another masquerade mark makes another skeleton: the tables are replaced with all that is in them."""
    driver.resync(desired)
    before = dump(place)
    other = ServicesDriver(with_settings(CONFIG, ["services.masqueradeMark=0x8000"]), place)
    try:
        assert other.resync(desired) == Report(operations=2)
        assert {p: set(each) for p, each in real(dump(place)).items()} == {
            p: set(each) for p, each in real(before).items()
        }
    finally:
        other.close()


def real(dumped: dict[tuple[Family, str], list[Element]]) -> dict[tuple[Family, str], list[Element]]:
    """Without empty sets, and without what nft itself puts at 0 of an interval set."""
    found = {p: [e for e in each if any(e.key) or not e.flags] for p, each in dumped.items()}
    return {p: each for p, each in found.items() if each}


# --- what a list may be ---------------------------------------------------------------------------

WEB = list_key("web", Protocol.TCP, Family.IPV4, "cluster")
FRONT = FrontendKey(address("10.96.0.1"), Protocol.TCP, 80)


def listed(number: int, timeout_s: int = 0) -> Tables:
    backends = tuple(Backend(address(f"10.8.{n >> 8}.{n & 255}"), 80) for n in range(number))
    return {
        **EMPTY,
        Table.BACKENDS: {WEB: BackendList(backends, timeout_s)},
        Table.FRONTENDS: {FRONT: Frontend(FrontendClass.INTERNAL, WEB)},
    }


@pytest.mark.parametrize("number", [1, 33, 512, 513, 1024, 1025, 3000])
def test_lists_of_any_length(driver: ServicesDriver, number: int, place: int) -> None:
    desired = listed(number)
    assert driver.apply(changes(EMPTY, desired)).failures == ()
    kernel = {e.key: e.data for e in dump(place)[Family.IPV4, "endpoints"]}
    shares = [list(kernel.values()).count(data) for data in set(kernel.values())]
    assert len(shares) == number
    assert max(shares) - min(shares) <= (number > 512)
    assert min(shares) >= (8 if number > 512 else 1)
    assert driver.resync(desired) == Report()


def test_a_map_that_is_still_growing_is_read_whole(driver: ServicesDriver, place: int) -> None:
    """Just filled, it changes its order between the parts of a dump."""
    elements = Elements(skeleton.TABLE, place)
    try:
        for _ in range(4):
            elements.commit([put(n) for n in range(1, 30001)])
            assert len({each.key for each in elements.read(Family.IPV4, skeleton.SHORT_CIRCUITS)}) == 30000
            elements.commit([put(n, add=False) for n in range(1, 30001)])
    finally:
        elements.close()


def test_a_list_grows_and_shrinks_past_the_exact_counts(driver: ServicesDriver) -> None:
    last = EMPTY
    for number in (510, 512, 513, 700, 699, 512, 3):
        desired = listed(number)
        assert driver.apply(changes(last, desired)).failures == ()
        assert driver.resync(desired) == Report()
        last = desired


def test_one_endpoint_less_in_a_long_list_moves_few(driver: ServicesDriver) -> None:
    driver.apply(changes(EMPTY, listed(700)))
    shorter = listed(700)
    whole = shorter[Table.BACKENDS][WEB].backends
    shorter[Table.BACKENDS][WEB] = BackendList(whole[:350] + whole[351:])
    # Its own slots go to others: one element out and one in for each of some twelve.
    assert driver.apply(changes(listed(700), shorter)).operations <= 2 * (8192 // 700 + 1)


def test_a_list_that_is_too_long_is_cut_and_reported(driver: ServicesDriver) -> None:
    report = driver.apply(changes(EMPTY, listed(32769)))
    (failure,) = report.failures
    assert (failure.table, failure.key) == (Table.BACKENDS, WEB)
    assert "the first 32768 are used" in str(failure.error)


def test_affinity_for_too_many_endpoints_is_reported_and_the_list_works_without(
    driver: ServicesDriver, place: int
) -> None:
    (failure,) = driver.apply(changes(EMPTY, listed(1025, timeout_s=60))).failures
    assert "no session affinity: 1024 is the most" in str(failure.error)
    assert len(dump(place)[Family.IPV4, "endpoints"]) == 16384
    assert driver.apply(changes(listed(1025, timeout_s=60), listed(1000, timeout_s=60))).failures == ()
    assert len(dump(place)[Family.IPV4, "slots"]) == 1000


# --- refusals -------------------------------------------------------------------------------------


def test_a_row_that_has_no_place_is_reported_and_the_others_stand(driver: ServicesDriver, place: int) -> None:
    wide = SetMember(SetName.NODE_IPS, prefix("172.30.0.0/16"))
    fine = SetMember(SetName.NODE_IPS, prefix("172.30.1.1/32"))
    desired = {**EMPTY, Table.SETS: {wide: wide, fine: fine}}
    (failure,) = driver.apply(changes(EMPTY, desired)).failures
    assert failure.key == wide
    assert "one at a time" in str(failure.error)
    assert len(dump(place)[Family.IPV4, "node-ips"]) == 1


def test_a_family_that_is_switched_off_is_refused_and_its_table_removed(
    driver: ServicesDriver, place: int
) -> None:
    six = with_settings(CONFIG, ["ipFamilies=IPv6"])
    other = ServicesDriver(six, place)
    try:
        report = other.resync(listed(1))
        assert {f.key for f in report.failures} == {WEB, FRONT}
        assert all("not in ipFamilies" in str(f.error) for f in report.failures)
        with netns.entered(place):
            shown = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
        assert shown.stdout.split("\n") == ["table ip6 podlane", ""]
    finally:
        other.close()


def test_a_generation_before_the_first_resync_is_a_mistake(place: int) -> None:
    driver = ServicesDriver(CONFIG, place)
    try:
        with pytest.raises(RuntimeError, match="resync comes first"):
            driver.apply(changes(EMPTY, listed(1)))
    finally:
        driver.close()


def mark(number: int, value: int) -> Element:
    return Element(number.to_bytes(4, "little"), value.to_bytes(4, "little"))


def put(number: int, value: int = 1, *, add: bool = True) -> Operation:
    return Operation(Family.IPV4, skeleton.SHORT_CIRCUITS, mark(number, value), add, ("row", number))


def test_a_refused_transaction_names_the_operation_and_leaves_everything(
    driver: ServicesDriver, place: int
) -> None:
    elements = Elements(skeleton.TABLE, place)
    try:
        assert elements.commit([put(1), put(2)]) == []
        refused = elements.commit([put(3), put(2, 9), put(4), put(5, add=False)])
        assert [r.operation.owner for r in refused] == [("row", 2), ("row", 5)]
        assert isinstance(refused[0].error, KernelExistsError | KernelBusyError)
        assert isinstance(refused[1].error, KernelNotFoundError)
        assert len(elements.read(Family.IPV4, skeleton.SHORT_CIRCUITS)) == 2
    finally:
        elements.close()


def test_a_transaction_in_which_a_key_goes_and_comes(driver: ServicesDriver, place: int) -> None:
    elements = Elements(skeleton.TABLE, place)
    try:
        elements.commit([put(1, 1)])
        assert elements.commit([put(1, add=False), put(1, 7)]) == []
        assert elements.read(Family.IPV4, skeleton.SHORT_CIRCUITS) == [mark(1, 7)]
    finally:
        elements.close()


def test_more_elements_than_one_message_holds(driver: ServicesDriver, place: int) -> None:
    elements = Elements(skeleton.TABLE, place)
    try:
        assert elements.commit([put(n) for n in range(1, 5001)]) == []
        assert len(elements.read(Family.IPV4, skeleton.SHORT_CIRCUITS)) == 5000
    finally:
        elements.close()


def test_what_is_not_there_reads_as_empty(place: int) -> None:
    elements = Elements("no-such-table", place)
    try:
        assert not elements.table_exists(Family.IPV4)
        assert elements.sets(Family.IPV4) == []
        assert elements.read(Family.IPV4, "endpoints") == []
        assert not elements.chain_exists(Family.IPV4, "services")
    finally:
        elements.close()


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("affinity", [False, True])
@pytest.mark.parametrize("code", [7, 608, 609])  # a draw, a hash of the address, and of the port too
def test_a_counts_chain_made_by_netlink_is_the_one_made_by_text(
    driver: ServicesDriver, place: int, family: Family, affinity: bool, code: int
) -> None:
    def listing() -> str:
        name = ("pick" if affinity else "count") + f"-{code}"
        with netns.entered(place):
            done = subprocess.run(
                ["nft", "list", "chain", family.nft, "podlane", name],
                capture_output=True,
                text=True,
                check=True,
            )
        # The protocols are what nft asks for; the kernel does without.
        return done.stdout.replace("meta l4proto { tcp, udp, sctp } ", "")

    elements = Elements(skeleton.TABLE, place)
    try:
        elements.commit([], list(counts.chain(family, code, affinity=affinity)))
        made = listing()
    finally:
        elements.close()
    text = skeleton.replace(family) + skeleton.skeleton(family, CONFIG)
    text += skeleton.count_chain(family, code, affinity=affinity)
    with netns.entered(place):
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    assert listing() == made


# --- numbers of lists -----------------------------------------------------------------------------


def numbers(place: int) -> set[int]:
    return {unpack_index(each.key)[0] for each in dump(place)[Family.IPV4, "endpoints"]}


def test_a_number_that_a_flow_carries_is_not_given_again(driver: ServicesDriver, place: int) -> None:
    """A service goes while a connection through it lives on; then another agent makes a new service."""
    with Rtnl(place) as rtnl:
        rtnl.set_up("lo")
        rtnl.add_address("lo", ip_interface("10.8.0.0/32"))
        rtnl.add_route(prefix("10.96.0.0/16"), device="lo")
    driver.apply(changes(EMPTY, listed(1)))
    (carried,) = numbers(place)
    with socket_in(place) as listener, socket_in(place) as client:
        listener.bind(("10.8.0.0", 80))
        listener.listen()
        client.connect(("10.96.0.1", 80))
        served, _ = listener.accept()
        with served:
            driver.apply(changes(listed(1), EMPTY))
            assert numbers(place) == set()
            again = ServicesDriver(CONFIG, place)
            try:
                again.resync(EMPTY)
                again.apply(changes(EMPTY, listed(1)))
                assert numbers(place)
                assert carried not in numbers(place)
                client.sendall(b"still there")
                assert served.recv(64) == b"still there"
            finally:
                again.close()


def socket_in(place: int) -> socket.socket:
    found = netns.socket_in(place, socket.AF_INET, socket.SOCK_STREAM)
    found.settimeout(5)
    return found


def test_a_freed_number_is_still_known_after_a_comparison(driver: ServicesDriver, place: int) -> None:
    driver.apply(changes(EMPTY, listed(1)))
    before = numbers(place)
    driver.apply(changes(listed(1), EMPTY))
    driver.resync(EMPTY)
    driver.apply(changes(EMPTY, listed(1)))
    assert not before & numbers(place)
