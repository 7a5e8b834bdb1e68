"""What an explanation is made of: stages, the rows they rest on, and how the way ends."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from podlane.compile.tables import Learnt, Route, Table
from podlane.model.addresses import Address, Family, Protocol

Tables: TypeAlias = Mapping[Table, Mapping[Any, Any]]
API_VERSION: Final = "podlane.dev/v1alpha1"


class Outcome(enum.StrEnum):
    DELIVERED = "delivered"
    REFUSED = "refused"  # TCP reset or ICMP unreachable: the sender knows at once
    DROPPED = "dropped"  # nothing comes back
    NO_ROUTE = "no route"


class Row(Struct, frozen=True, omit_defaults=True):
    """What a stage rests on. text: for people; table and row: the desired row itself, where it is one."""

    text: str
    table: str = ""
    row: Any = None


class Stage(Struct, frozen=True):
    """node: whose tables decide here; "" between the nodes."""

    stage: str
    node: str
    detail: str
    rows: list[Row] = []


class Explanation(Struct, frozen=True, rename="camel"):
    """The verdict with its reason, and stages in the packet's order. source and destination are targets;
    address: what the packet is sent to; port 0: any. denied: whether it is policy that drops it: "yes", "no",
    or "partly" when it does so for some of a service's endpoints."""

    api_version: str
    kind: str
    source: str
    destination: str
    address: str
    port: int
    protocol: Protocol
    family: Family
    verdict: Outcome
    why: str
    stages: list[Stage]
    denied: str = "no"

    def json(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str)


class WayEnds(Exception):
    """The packet goes no further. Raised and caught within observe."""

    def __init__(self, verdict: Outcome, why: str, *, denied: bool = False, partly: bool = False) -> None:
        super().__init__(why)
        self.verdict, self.why, self.denied, self.partly = verdict, why, denied, partly


def end(where: Address, port: int) -> str:
    """One end of a flow, as `10.0.0.1:80`, `[fd00::1]:80`, or the address alone without a port."""
    if not port:
        return str(where)
    return f"[{where}]:{port}" if where.version == 6 else f"{where}:{port}"


def table_row(table: Table, key: Any, row: Any, text: str = "") -> Row:
    """A row of a desired table, as JSON shows it: fields by name, the key among them."""
    return Row(text or f"{table}: {key}", table.value, {"key": _plain(key), **_plain(row)})


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        plain = [_plain(each) for each in value]
        return dict(zip(names, plain, strict=True)) if names else plain
    return value if isinstance(value, int | bool | None) else str(value)


def route_row(route: Route) -> Row:
    """The route as `ip route` shows it."""
    via = f" via {route.via}" if route.via is not None else ""
    onlink = " onlink" if route.onlink else ""
    source = f" src {route.source}" if route.source is not None else ""
    text = f"{route.destination}{via} dev {route.device}{onlink}{source}"
    return table_row(Table.ROUTES, route.destination, route, text)


def learnt_row(row: Learnt) -> Row:
    return table_row(Table.LEARNT, row.destination, row, f"{row.destination} announced by {row.via}, BGP")


def learnt(tables: Tables, to: Address) -> Learnt | None:
    """What BGP is to bring for `to`: the longest prefix."""
    rows: Iterable[Learnt] = tables.get(Table.LEARNT, {}).values()
    fitting = [r for r in rows if r.destination.version == to.version and to in r.destination]
    return max(fitting, key=lambda r: r.destination.prefixlen, default=None)


def match(tables: Tables, to: Address) -> Route | None:
    """The route for `to`: the longest prefix among podlane's rows."""
    routes: Iterable[Route] = tables.get(Table.ROUTES, {}).values()
    fitting = [r for r in routes if r.destination.version == to.version and to in r.destination]
    return max(fitting, key=lambda r: r.destination.prefixlen, default=None)


def pod_route(tables: Tables, to: Address) -> Route | None:
    """The route to a pod of this very node: for one address alone."""
    route = match(tables, to)
    return route if route is not None and route.destination.num_addresses == 1 else None
