"""Port mappings: read from the capability, and spread over the families of an attachment."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from podlane.cni.fields import Fields
from podlane.cni.host_ports import HOST_PORT_TAKEN, PortMapping, read_mappings, targets
from podlane.errors import CniError
from podlane.kernel.nft.host_ports import ANY, ONE, PODS, PORTS, HostPort, Target, elements, skeleton, version
from podlane.model.addresses import Family, Protocol

POD = ip_address("10.244.1.5"), ip_address("fd00:10:244:1::5")


def read(*entries: dict[str, object]) -> tuple[list[PortMapping], list[str]]:
    fields = Fields({"portMappings": list(entries)})
    return read_mappings(fields.objects("portMappings")), fields.faults


def test_mappings_are_read_as_runtimes_write_them() -> None:
    found, faults = read(
        {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "172.30.1.11"},
        {"hostPort": 81, "containerPort": 81, "hostIP": "0.0.0.0"},
        {"containerPort": 9},
        {"hostPort": 82, "containerPort": 82, "protocol": "", "hostIP": ""},
        # containerd's own spelling (go-cni)
        {"HostPort": 83, "ContainerPort": 83, "Protocol": "tcp", "HostIP": "172.30.1.11"},
    )
    assert faults == []
    assert found == [
        PortMapping(80, 8080),
        PortMapping(53, 53, Protocol.UDP, ip_address("172.30.1.11")),
        PortMapping(81, 81),
        PortMapping(82, 82),
        PortMapping(83, 83, Protocol.TCP, ip_address("172.30.1.11")),
    ]


def test_every_fault_is_named_with_its_entry() -> None:
    found, faults = read(
        {"hostPort": -1, "containerPort": 1},
        {"hostPort": 1},
        {"hostPort": 1, "containerPort": 1, "protocol": "gre"},
        {"hostPort": 1, "containerPort": 1, "hostIP": "x"},
    )
    assert len(faults) == 4
    assert [fault.partition(" ")[0] for fault in faults] == [
        "portMappings[0].hostPort",
        "portMappings[1].containerPort",
        "portMappings[2].protocol",
        "portMappings[3].hostIP",
    ]
    assert PortMapping(1, 1, Protocol.SCTP) not in found


def test_a_mapping_serves_each_family_and_one_with_an_address_its_own() -> None:
    six = ip_address("fd00:172:30::b")
    assert targets([PortMapping(80, 8080), PortMapping(81, 8081, host_ip=six)], POD) == {
        HostPort(Family.IPV4, Protocol.TCP, 80): Target(POD[0], 8080),
        HostPort(Family.IPV6, Protocol.TCP, 80): Target(POD[1], 8080),
        HostPort(Family.IPV6, Protocol.TCP, 81, six): Target(POD[1], 8081),
    }
    assert targets([PortMapping(81, 8081, host_ip=six)], POD[:1]) == {}


def test_one_port_for_two_container_ports_is_refused_and_said_twice_is_not() -> None:
    assert len(targets([PortMapping(80, 1), PortMapping(80, 1)], POD)) == 2
    with pytest.raises(CniError, match="mapped twice, to 1 and 2") as caught:
        targets([PortMapping(80, 1), PortMapping(80, 2)], POD)
    assert caught.value.code == HOST_PORT_TAKEN


def test_a_mapping_in_the_kernel() -> None:
    udp = HostPort(Family.IPV4, Protocol.UDP, 0x1234)
    found = {
        name: (each.key.hex(), (each.data or b"").hex()) for name, each in elements(udp, Target(POD[0], 80))
    }
    assert found == {
        ANY: ("1100000012340000", "0af4010500500000"),
        PORTS: ("1100000012340000", ""),
        PODS: ("0af401050af40105", ""),
    }
    one = udp._replace(address=ip_address("172.30.1.11"))
    assert next(elements(one, Target(POD[0], 80)))[0] == ONE


def test_each_family_has_its_own_table_and_another_text_another_version() -> None:
    four, six = skeleton(Family.IPV4), skeleton(Family.IPV6)
    assert "ip6" not in four
    assert "127.0.0.0/8" not in six
    assert version(Family.IPV4) in four
    assert version(Family.IPV4) != version(Family.IPV6)
