"""Addresses and node ports of Services, as the API server hands them out.

An address is taken when an IPAddress object of its name exists: it is made in the transaction that stores
the Service, so both are there or neither. Node ports are read off the Services themselves; an index of them
is built at start and follows the store's commits.

Chosen by the server, both come at random from the upper part of their range first, so that the lower part
stays for those who ask for a number (KEP-3070, KEP-3668).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from typing import Any

from podlane.errors import ApiError, InvalidError
from podlane.lab.api import allocation_fields as fields
from podlane.lab.api import metadata
from podlane.lab.api import validation_field as field
from podlane.lab.api.store import LogEvent, Store, Transaction
from podlane.lab.api.validation_field import FieldError
from podlane.lab.client import Obj
from podlane.model.addresses import Address, Family, Prefix, address, family_of, prefix
from podlane.model.config import NetworkConfig

SERVICES = "services"
ADDRESSES = "ipaddresses.networking.k8s.io"
CIDRS = "servicecidrs.networking.k8s.io"
DEFAULT_CIDR = "kubernetes"

_FAMILY_LABEL = "ipaddress.kubernetes.io/ip-family"
_MANAGER_LABEL = "ipaddress.kubernetes.io/managed-by"
_MANAGER = "ipallocator.k8s.io"
_OUT_OF_RANGE = "the provided network does not match the current range"
_TAKEN = "provided IP is already allocated"
_NO_IP = "range is full"


class ServiceAllocator:
    """One of a store. pick: random.Random-like, for tests."""

    def __init__(self, store: Store, config: NetworkConfig, pick: random.Random | None = None) -> None:
        self._config = config
        self._families = tuple(config.cluster_services)
        self._cidrs = list(config.cluster_services.values())
        first, _, last = config.services.node_port_range.partition("-")
        self._ports = range(int(first), int(last) + 1)
        self._pick = pick or random.Random()
        self._owners: dict[int, tuple[str, str]] = {}
        for record in store.records(SERVICES):
            self._owners.update(dict.fromkeys(ports_of(record.obj), record.key))
        store.subscribe(self._follow)

    def ensure_default(self, transaction: Transaction) -> None:
        """The ServiceCIDR `kubernetes`, with the configuration's prefixes."""
        if transaction.get(CIDRS, "", DEFAULT_CIDR) is None:
            transaction.put(CIDRS, cidr_object(self._config))

    # --- what the registry calls, inside the transaction that stores the Service -------------------

    def create(self, transaction: Transaction, service: Obj) -> None:
        """Fills in families, addresses and ports. Raises InvalidError, and then nothing is to be stored."""
        self._allocate(transaction, service, None)

    def update(self, transaction: Transaction, new: Obj, old: Obj) -> None:
        """The same for what is new in `new`; gives back what only `old` had."""
        fields.trim_to_single(new.get("spec", {}), old.get("spec", {}))
        self._allocate(transaction, new, old)
        kept = set(ips_of(new))
        for ip in ips_of(old):
            if ip not in kept:
                self._release(transaction, ip, old)

    def delete(self, transaction: Transaction, service: Obj) -> None:
        for ip in ips_of(service):
            self._release(transaction, ip, service)

    # --- addresses --------------------------------------------------------------------------------

    def prefixes(self, transaction: Transaction) -> list[Prefix]:
        """The default ones, then those of ServiceCIDRs that are ready and are not being deleted."""
        found = list(self._cidrs)
        for record in transaction.records(CIDRS):
            if record.obj["metadata"].get("deletionTimestamp") or not _is_ready(record.obj):
                continue
            for text in record.obj.get("spec", {}).get("cidrs", []):
                if (cidr := prefix(text)) not in found:
                    found.append(cidr)
        return found

    def _allocate(self, transaction: Transaction, service: Obj, old: Obj | None) -> None:
        spec = service.setdefault("spec", {})
        if errors := list(fields.set_families(spec, self._families)):
            raise _invalid(service, errors)
        if fields.needs_cluster_ip(spec) and not fields.headless(spec):
            held = set(ips_of(old)) if old else set()
            self._cluster_ips(transaction, service, held)
        self._node_ports(transaction, service)

    def _cluster_ips(self, transaction: Transaction, service: Obj, held: set[str]) -> None:
        spec = service["spec"]
        wanted: list[str] = spec.get("clusterIPs", [])
        prefixes = self.prefixes(transaction)
        chosen: list[str] = []
        for i, family in enumerate(spec["ipFamilies"]):
            if i < len(wanted) and wanted[i] in held:
                chosen.append(wanted[i])
                continue
            if i < len(wanted) and wanted[i]:
                if why := self._refused(transaction, wanted[i], prefixes):
                    detail = f"failed to allocate IP {wanted[i]}: {why}"
                    raise _invalid(service, [field.invalid("spec.clusterIPs", wanted, detail)])
                ip = wanted[i]
            else:
                ip = self._free(transaction, [p for p in prefixes if family_of(p) == family])
            transaction.put(ADDRESSES, address_object(address(ip), service))
            chosen.append(ip)
        spec["clusterIPs"], spec["clusterIP"] = chosen, chosen[0]

    def _refused(self, transaction: Transaction, text: str, prefixes: list[Prefix]) -> str:
        """Why an address that was asked for cannot be had; "" when it can."""
        ip = address(text)
        inside = [p for p in prefixes if p.version == ip.version and ip in p]
        if not inside or not any(_first(p) <= int(ip) <= _last(p) for p in inside):
            return _OUT_OF_RANGE
        return _TAKEN if transaction.get(ADDRESSES, "", str(ip)) else ""

    def _free(self, transaction: Transaction, prefixes: list[Prefix]) -> str:
        """Raises ApiError (500, as the API server does) when every prefix is full."""
        for cidr in prefixes:
            for number in self._candidates(_first(cidr), _last(cidr), shift=16, most=256):
                ip = str(type(cidr.network_address)(number))
                if transaction.get(ADDRESSES, "", ip) is None:
                    return ip
        raise ApiError(f"Internal error occurred: failed to allocate a serviceIP: {_NO_IP}")

    def _candidates(self, first: int, last: int, *, shift: int, most: int) -> Iterator[int]:
        """Every number of first..last: the upper part from a random one on, then the lower part."""
        size = last - first + 1
        offset = min(max(16, size // shift), most)
        upper = first + offset if offset < size else first
        for low, high in ((upper, last), (first, upper - 1)):
            if low <= high:
                start = self._pick.randint(low, high)
                yield from range(start, high + 1)
                yield from range(low, start)

    def _release(self, transaction: Transaction, ip: str, service: Obj) -> None:
        """Only if the address is this Service's."""
        name = str(address(ip))
        record = transaction.get(ADDRESSES, "", name)
        if record is not None and record.obj.get("spec", {}).get("parentRef") == _reference(service):
            transaction.delete(ADDRESSES, "", name)

    # --- node ports -------------------------------------------------------------------------------

    def _follow(self, events: list[LogEvent]) -> None:
        for event in events:
            if event.resource == SERVICES:
                _record_ports(self._owners, event)

    def _node_ports(self, transaction: Transaction, service: Obj) -> None:
        spec, me = service["spec"], _key(service)
        pending = [e for e in transaction.events if e.resource == SERVICES]
        owners = self._owners
        if pending:
            owners = dict(owners)
            for event in pending:
                _record_ports(owners, event)
        mine: set[int] = set()
        by_port: dict[int, int] = {}

        def take(path: str, number: int) -> int:
            if number not in self._ports:
                ports = f"{self._ports[0]}-{self._ports[-1]}"
                why = f"provided port is not in the valid range. The range of valid ports is {ports}"
            elif owners.get(number, me) != me:
                why = "provided port is already allocated"
            else:
                mine.add(number)
                return number
            raise _invalid(service, [field.invalid(path, number, why)])

        def choose() -> int:
            for number in self._candidates(self._ports[0], self._ports[-1], shift=32, most=128):
                if number not in owners and number not in mine:
                    mine.add(number)
                    return number
            raise ApiError("Internal error occurred: failed to allocate a nodePort: range is full")

        if fields.may_have_node_port(spec):
            ports = spec.get("ports", [])
            for i, port in enumerate(ports):
                if asked := port.get("nodePort"):
                    by_port.setdefault(port["port"], take(f"spec.ports[{i}].nodePort", asked))
            if fields.needs_node_port(spec):
                for port in ports:
                    if not port.get("nodePort"):
                        # TCP and UDP of one port share the number.
                        if port["port"] not in by_port:
                            by_port[port["port"]] = choose()
                        port["nodePort"] = by_port[port["port"]]
        if fields.needs_health_check(spec):
            asked = spec.get("healthCheckNodePort")
            if asked and asked in mine:
                taken = field.invalid("spec.healthCheckNodePort", asked, "provided port is already allocated")
                raise _invalid(service, [taken])
            spec["healthCheckNodePort"] = take("spec.healthCheckNodePort", asked) if asked else choose()


def _record_ports(owners: dict[int, tuple[str, str]], event: LogEvent) -> None:
    key = event.record.key
    if event.before is not None:
        for port in ports_of(event.before):
            if owners.get(port) == key:
                del owners[port]
    if event.type == "DELETED":
        for port in ports_of(event.record.obj):
            if owners.get(port) == key:
                del owners[port]
    else:
        owners.update(dict.fromkeys(ports_of(event.record.obj), key))


def ports_of(service: Obj) -> Iterator[int]:
    """Node ports a Service holds, that of its health check among them."""
    spec: dict[str, Any] = service.get("spec", {})
    for port in spec.get("ports", []):
        if port.get("nodePort"):
            yield port["nodePort"]
    if spec.get("healthCheckNodePort"):
        yield spec["healthCheckNodePort"]


def ips_of(service: Obj) -> list[str]:
    """Cluster addresses a Service holds."""
    return [ip for ip in service.get("spec", {}).get("clusterIPs", []) if ip and ip != fields.HEADLESS]


def _first(cidr: Prefix) -> int:
    """The network's own address is not handed out."""
    return int(cidr.network_address) + 1


def _last(cidr: Prefix) -> int:
    """IPv4's broadcast address is not handed out."""
    return int(cidr.broadcast_address) - (1 if family_of(cidr) is Family.IPV4 else 0)


def _key(obj: Obj) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _reference(service: Obj) -> Obj:
    namespace, name = _key(service)
    return {"group": "", "resource": SERVICES, "namespace": namespace, "name": name}


def _new(kind: str, name: str, labels: dict[str, str], spec: Obj) -> Obj:
    meta: Obj = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": metadata.timestamp()}
    if labels:
        meta["labels"] = labels
    return {"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": meta, "spec": spec}


def cidr_object(config: NetworkConfig) -> Obj:
    """The ServiceCIDR that is there from the start. Its controller says that it is ready."""
    return _new(
        "ServiceCIDR", DEFAULT_CIDR, {}, {"cidrs": [str(p) for p in config.cluster_services.values()]}
    )


def _is_ready(cidr: Obj) -> bool:
    """One of which nobody has said anything yet may be used, as in the API server."""
    found = cidr.get("status", {}).get("conditions", [])
    return all(each["status"] == "True" for each in found if each["type"] == "Ready")


def address_object(ip: Address, service: Obj) -> Obj:
    labels = {_FAMILY_LABEL: family_of(ip).value, _MANAGER_LABEL: _MANAGER}
    return _new("IPAddress", str(ip), labels, {"parentRef": _reference(service)})


def _invalid(service: Obj, errors: list[FieldError]) -> InvalidError:
    return field.invalid_error("v1", "Service", service["metadata"]["name"], errors)
