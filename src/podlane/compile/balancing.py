"""How a service's new flows are shared out: what its annotations ask for, and each endpoint's weight.

    podlane.dev/balancing     random, source-hash, maglev or least-connections; else services.balancing
    podlane.dev/hash-by       address or address-port: what the two hashes take; else services.hashBy
    podlane.dev/weights       "web-canary-*=1, *=9": of the patterns that a pod's name (or an endpoint's
                              address) fits, the first one's weight. 0: no new flows. Or "pods": as each
                              pod's own annotation podlane.dev/weight says
    podlane.dev/slow-start    "30s": how long an endpoint that came takes to its whole share

    podlane.dev/weight        on an EndpointSlice: the weight of its endpoints, unless a pattern or a pod says
                              another

A weight is how often an endpoint is in the list. Shares (model/local.py) are what the agent found out since:
that an endpoint is new, or has many connections already. They scale the weights.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

from podlane.compile import hashing
from podlane.compile.endpoints import Known, PortKey, left_alone
from podlane.compile.policy_index import ENDED
from podlane.compile.tables import Backend, BackendList
from podlane.model.addresses import Address, Protocol
from podlane.model.config import Balancing, HashBy, Services
from podlane.model.local import WHOLE_SHARE, Shares
from podlane.model.objects import HEAVIEST, WEIGHTS, WEIGHTS_BY_PODS, Pod, Service, weight_of

BALANCING: Final = "podlane.dev/balancing"
HASH_BY: Final = "podlane.dev/hash-by"
SLOW_START: Final = "podlane.dev/slow-start"

MOST_ENTRIES: Final = 1024  # a list with weights is hardly longer than this, unless its endpoints are more
LONGEST_SLOW_START_S: Final = 3600

E = TypeVar("E", bound=enum.StrEnum)

PodsAt: TypeAlias = Callable[[Address], Iterable[Pod]]
"""The pods that have an address; several on a node's own."""


class Wish(NamedTuple):
    """What one service asks for. weights: (pattern, weight), the first that fits counts. by_pods: its pods
    say their own."""

    balancing: Balancing = Balancing.RANDOM
    hash_by: HashBy = HashBy.ADDRESS
    weights: tuple[tuple[re.Pattern[str], int], ...] = ()
    slow_start_s: int = 0
    by_pods: bool = False

    @property
    def watched(self) -> bool:
        """The agent finds out shares for it."""
        return self.balancing is Balancing.LEAST_CONNECTIONS or self.slow_start_s > 0


def wish_of(service: Service, default: Services, refused: list[str] | None = None) -> Wish:
    """refused: gets a sentence for each annotation that says nothing; the default then stands."""
    notes = service.metadata.annotations
    wish = Wish(default.balancing, default.hash_by)
    for key, read in _READ.items():
        if key in notes:
            try:
                wish = read(wish, notes[key])
            except ValueError as error:
                if refused is not None:
                    where = f"service {service.namespace}/{service.name}: annotation {key}"
                    refused.append(f"{where}: {notes[key]!r}: {error}")
    return wish


def _choice(text: str, choices: type[E]) -> E:
    """Raises ValueError."""
    if text not in list(choices):
        raise ValueError(f"use {' or '.join(choices)}")
    return choices(text)


def _seconds(text: str) -> int:
    """Raises ValueError."""
    found = re.fullmatch(r"(\d{1,5})(s|m)", text)
    seconds = int(found[1]) * (60 if found[2] == "m" else 1) if found else -1
    if not 0 <= seconds <= LONGEST_SLOW_START_S:
        raise ValueError("write seconds or minutes, as 30s or 2m, one hour at most")
    return seconds


def _patterns(text: str) -> tuple[tuple[re.Pattern[str], int], ...]:
    """Raises ValueError."""
    found = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        pattern, equals, weight = (each.strip() for each in part.partition("="))
        if not equals or not pattern or not weight.isdecimal() or int(weight) > HEAVIEST:
            raise ValueError(
                f"write PATTERN=WEIGHT with weights from 0 to {HEAVIEST}, as web-canary-*=1, *=9"
            )
        found.append((re.compile(".*".join(map(re.escape, pattern.split("*")))), int(weight)))
    return tuple(found)


_READ: Final[Mapping[str, Callable[[Wish, str], Wish]]] = {
    BALANCING: lambda wish, text: wish._replace(balancing=_choice(text, Balancing)),
    HASH_BY: lambda wish, text: wish._replace(hash_by=_choice(text, HashBy)),
    WEIGHTS: lambda wish, text: (
        wish._replace(by_pods=True) if text == WEIGHTS_BY_PODS else wish._replace(weights=_patterns(text))
    ),
    SLOW_START: lambda wish, text: wish._replace(slow_start_s=_seconds(text)),
}


def weighed(
    wish: Wish, service: Service, known: dict[PortKey, dict[Backend, Known]], pods_at: PodsAt
) -> dict[PortKey, dict[Backend, Known]]:
    """Endpoints with the names of their pods, and the weights these have where the service asks for them."""
    if not wish.by_pods and not wish.weights:
        return known

    def of(each: Known) -> Known:
        pod = next((pod for pod in pods_at(each.address) if backs(service, pod)), None)
        if pod is None:
            return each
        found = weight_of(pod) if wish.by_pods else None
        return each._replace(pod=pod.name, weight=each.weight if found is None else found)

    return {port: {key: of(each) for key, each in there.items()} for port, there in known.items()}


def backs(service: Service, pod: Pod) -> bool:
    """The pod may be what is behind an endpoint of the service that has its address."""
    selector = service.spec.selector or {}
    return (
        pod.namespace == service.namespace
        and pod.status.phase not in ENDED
        and selector.items() <= pod.metadata.labels.items()
    )


def weight(wish: Wish, each: Known) -> int:
    """An endpoint's weight before shares."""
    for pattern, number in wish.weights:
        if pattern.fullmatch(each.pod) or pattern.fullmatch(str(each.address)):
            return number
    return 1 if each.weight is None else each.weight


def entries(
    wish: Wish, members: Sequence[Known], shares: Mapping[Backend, int] | None = None
) -> tuple[Backend, ...]:
    """The endpoints in their order, each as often as it weighs.

    Weights that are all 0 mean nothing: a service is not switched off by them. A list that would become
    too long has its weights rounded, none of them to 0.
    """
    if not wish.weights and not shares and all(each.weight is None for each in members):
        return tuple(each.backend for each in members)
    weights = [weight(wish, each) for each in members]
    if not any(weights):
        weights = [1] * len(members)
    if shares:
        found = (shares.get(each.backend, WHOLE_SHARE) for each in members)
        weights = [number * share for number, share in zip(weights, found, strict=True)]
    weights = _short(weights, max(MOST_ENTRIES, len(members)))
    return tuple(each.backend for each, number in zip(members, weights, strict=True) for _ in range(number))


def _short(weights: Sequence[int], most: int) -> list[int]:
    """The same proportions in numbers whose sum is not much over `most`."""
    divisor = math.gcd(*weights)
    found = [number // divisor for number in weights]
    if (total := sum(found)) <= most:
        return found
    found = [max(1, round(number * most / total)) if number else 0 for number in found]
    divisor = math.gcd(*found)
    return [number // divisor for number in found]


class Sharing(NamedTuple):
    """All that decides on a service's lists but the endpoints themselves."""

    wish: Wish
    default: Services
    shares: Mapping[Backend, int]

    @classmethod
    def of(cls, service: Service, default: Services, shares: Shares | None, refused: list[str]) -> Sharing:
        found = {Backend(where, port): share for where, port, share in shares.endpoints} if shares else {}
        return cls(wish_of(service, default, refused), default, found)

    def row(
        self,
        members: Sequence[Known],
        known: Mapping[Backend, Known],
        protocol: Protocol,
        affinity_timeout_s: int,
    ) -> BackendList:
        """members: the endpoints to choose from, of all that are known."""
        backends = entries(self.wish, members, self.shares)
        balancing = self.wish.balancing
        hashed = balancing in (Balancing.MAGLEV, Balancing.SOURCE_HASH)
        return BackendList(
            backends,
            affinity_timeout_s,
            left_alone(known, backends, protocol),
            balancing=balancing,
            by_port=hashed and self.wish.hash_by is HashBy.ADDRESS_PORT,
            slots=self._slots(backends) if hashed and backends else 0,
        )

    def _slots(self, backends: Sequence[Backend]) -> int:
        if self.wish.balancing is Balancing.MAGLEV:
            return hashing.maglev_size(len(set(backends)), self.default.maglev_slots)
        return hashing.source_hash_size(len(backends))
