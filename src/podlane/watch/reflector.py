"""List, then watch, for ever: a faithful copy of one kind of object, as a stream of changes.

`Reflector` is the protocol without input or output. It says what to ask next and turns answers into
`Replace`, `Upsert` and `Delete`; `follow` is the loop that does the asking.

    LISTING ──last page──> Replace, WATCHING        page with `continue`: ask for the next page
    LISTING ──410──> LISTING from the first page    the continue token is too old
    LISTING ──404──> LISTING                        of a kind that older APIs lack: nothing, asked for again
    WATCHING ──ADDED, MODIFIED──> Upsert            ──DELETED──> Delete
    WATCHING ──BOOKMARK──> the version only         ──end of stream──> WATCHING from the last version
    WATCHING ──410, ERROR event──> LISTING          what was missed shows as a difference in Replace
    any ──no answer, refusal──> the same again after a pause; everything known stays

With `streaming` (KEP-3157) the list is a watch that begins with the objects there are, up to the
bookmark annotated `k8s.io/initial-events-end`; a server that refuses it is asked for pages instead.
Sources: Kubernetes API concepts, "Efficient detection of changes"; client-go tools/cache.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from podlane.errors import ApiError, GoneError, NotFoundError
from podlane.model.objects import KINDS, EndpointSlice, Object
from podlane.model.packed import Pile

if TYPE_CHECKING:
    from podlane.watch.http import ApiHttp

log = logging.getLogger(__name__)

PAGE_OBJECTS = 500
WATCH_S = (300, 600)  # a random time within: the watches of a cluster's nodes must not end together
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

PATHS = {
    "Node": "/api/v1/nodes",
    "Namespace": "/api/v1/namespaces",
    "Pod": "/api/v1/pods",
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "ServiceCIDR": "/apis/networking.k8s.io/v1/servicecidrs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
}

# An API may be older than these; then there are none of them.
OPTIONAL = frozenset({"ServiceCIDR"})

# Annotations someone compiles from. Others are dropped on the way in: they may be large (the last applied
# configuration) or change without meaning (leases of controllers).
ANNOTATIONS = ("podlane.dev/", "service.kubernetes.io/", "kubernetes.io/", "endpoints.kubernetes.io/")

Key: TypeAlias = tuple[str, str]  # (namespace, name)
T = TypeVar("T", bound=Object)


class Replace(NamedTuple, Generic[T]):
    """Everything there is of a kind; what was known and is not here is gone.

    unreadable: keys of objects that are there but could not be read: what was known of them stands.
    """

    objects: Sequence[T]
    unreadable: frozenset[Key] = frozenset()


class Upsert(NamedTuple, Generic[T]):
    object: T


class Delete(NamedTuple):
    key: Key


News: TypeAlias = Replace[T] | Upsert[T] | Delete


class Source(NamedTuple):
    """What to follow. Selectors in the API's own notation."""

    kind: str
    label_selector: str = ""
    field_selector: str = ""

    @property
    def path(self) -> str:
        return PATHS[self.kind]


class Request(NamedTuple):
    """stream: the answer is a stream of events rather than one list."""

    path: str
    query: dict[str, str]
    stream: bool


class State(enum.Enum):
    LISTING = "listing"
    WATCHING = "watching"


class _Meta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    name: str = ""
    namespace: str = ""
    annotations: dict[str, str] | None = None
    continue_: str = msgspec.field(default="", name="continue")


class _Head(msgspec.Struct):
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None
    metadata: _Meta = msgspec.field(default_factory=_Meta)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Failure(msgspec.Struct):
    """metav1.Status inside an ERROR event."""

    message: str = ""
    reason: str = ""
    code: int = 500


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_HEAD = msgspec.json.Decoder(_Head)
_FAILURE = msgspec.json.Decoder(_Failure)


class Reflector(Generic[T]):
    """The protocol of one source.

    version: resourceVersion of the last thing seen, "" before the first; synced: a full list has been
    handed out; malformed: objects the API has that could not be read, by (namespace, name). lists, watches:
    how many lists were completed, and watches begun.
    """

    def __init__(self, source: Source, kind: type[T], *, streaming: bool = False) -> None:
        self.source = source
        self.state = State.LISTING
        self.version = ""
        self.synced = False
        self.malformed: dict[Key, str] = {}
        self.lists = self.watches = 0
        self._streaming = streaming
        self._decoder = msgspec.json.Decoder(kind)
        self._continue = ""
        self._collected: Pile[T] = Pile(kind)
        self._kind = kind

    def next_request(self, watch_s: int) -> Request:
        """What to ask now. watch_s: how long the server shall keep a watch open."""
        query = {}
        if self.source.label_selector:
            query["labelSelector"] = self.source.label_selector
        if self.source.field_selector:
            query["fieldSelector"] = self.source.field_selector
        if self.state is State.LISTING and not self._streaming:
            query["limit"] = str(PAGE_OBJECTS)
            if self._continue:
                query["continue"] = self._continue
            return Request(self.source.path, query, stream=False)
        query |= {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(watch_s)}
        self.watches += 1
        if self.state is State.WATCHING:
            query["resourceVersion"] = self.version
        else:
            self._collected = Pile(self._kind)
            self.malformed.clear()
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return Request(self.source.path, query, stream=True)

    def page(self, body: bytes) -> Replace[T] | None:
        """One page of a list; the last one completes it. Raises msgspec.DecodeError."""
        answer = _LIST.decode(body)
        if not self._continue:
            self._collected = Pile(self._kind)
            self.malformed.clear()
        for raw in answer.items or ():
            found = self._decode(raw, _HEAD.decode(raw).metadata)
            if found is not None:
                self._collected.append(found)
        self._continue = answer.metadata.continue_
        return None if self._continue else self._complete(answer.metadata.resource_version)

    def event(self, line: bytes) -> News[T] | None:
        """One line of a watch. Raises ApiError for an ERROR event (see `refused`), DecodeError."""
        event = _EVENT.decode(line)
        if event.type == "ERROR":
            failure = _FAILURE.decode(event.object)
            kind = GoneError if failure.code == 410 else ApiError
            raise kind(failure.message or "the watch failed", code=failure.code, reason=failure.reason)
        meta = _HEAD.decode(event.object).metadata
        if event.type == "BOOKMARK":
            if self.state is State.LISTING:
                if (meta.annotations or {}).get(INITIAL_EVENTS_END) == "true":
                    return self._complete(meta.resource_version)
                return None
            self.version = meta.resource_version
            return None
        if event.type == "DELETED":
            self.version = meta.resource_version
            self.malformed.pop((meta.namespace, meta.name), None)
            return Delete((meta.namespace, meta.name))
        found = self._decode(event.object, meta)
        if self.state is State.LISTING:
            if found is not None:
                self._collected.append(found)
            return None
        self.version = meta.resource_version
        return Upsert(found) if found is not None else None

    def absent(self, error: ApiError) -> Replace[T] | None:
        """What an API that has no such kind holds of it; None when the error says anything else."""
        if self.state is not State.LISTING or self.source.kind not in OPTIONAL:
            return None
        if not isinstance(error, NotFoundError):
            return None
        self._complete("0")
        self.state = State.LISTING
        return Replace([])

    def refused(self, error: ApiError) -> bool:
        """The API refused, or a watch said ERROR. True: ask again at once, in another way."""
        if isinstance(error, GoneError):
            # Once at once: a relist is the cure. A list that is itself refused waits.
            again = self.state is State.WATCHING or bool(self._continue)
            self.state, self._continue = State.LISTING, ""
            return again
        if self.state is State.LISTING and self._streaming and error.code in (400, 422):
            self._streaming = False
            return True
        if self.state is State.WATCHING and error.code in (400, 422, 500):
            self.state = State.LISTING  # an ERROR event that is no 410: what it cost is unknown
        return False

    def _complete(self, version: str) -> Replace[T]:
        self.version, self.state, self.synced = version, State.WATCHING, True
        self.lists += 1
        objects, self._collected, self._continue = self._collected, Pile(self._kind), ""
        return Replace(objects, frozenset(self.malformed))

    def _decode(self, raw: msgspec.Raw, meta: _Meta) -> T | None:
        """None for an object that cannot be read: it is remembered by name, the others stand."""
        key = (meta.namespace, meta.name)
        try:
            found = self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            self.malformed[key] = str(error)
            about = {"object": f"{self.source.kind} {'/'.join(filter(None, key))}", "error": error}
            log.warning("%s cannot be read and is left out: %s", about["object"], error, extra=about)
            return None
        self.malformed.pop(key, None)
        return _slim(found)


def _slim(found: T) -> T:
    """Without the annotations nobody compiles from, and without endpoints' pods: addresses say it too."""
    if isinstance(found, EndpointSlice):
        for endpoint in found.endpoints or ():
            # Just decoded, in nobody else's hands: a copy of each would take longer than the decoding.
            msgspec.structs.force_setattr(endpoint, "target_ref", None)
    annotations = found.metadata.annotations
    kept = {name: text for name, text in annotations.items() if name.startswith(ANNOTATIONS)}
    if len(kept) == len(annotations):
        return found
    metadata = msgspec.structs.replace(found.metadata, annotations=kept)
    return msgspec.structs.replace(found, metadata=metadata)


class Backoff:
    """Pauses between tries: doubling with jitter, 0.8 to 30 s; quick before the first success.

    A node that boots beside its API server should not wait out a second for a missed millisecond.
    """

    def __init__(self, rng: random.Random, first_s: float = 0.05, base_s: float = 0.8, most_s: float = 30.0):
        self._rng = rng
        self._base_s, self._most_s = base_s, most_s
        self._next_s = first_s

    def succeeded(self) -> None:
        self._next_s = self._base_s

    def next_s(self) -> float:
        pause_s = self._next_s
        self._next_s = min(pause_s * 2, self._most_s)
        return min(pause_s * self._rng.uniform(1.0, 1.5), self._most_s)


class Progress(NamedTuple):
    """What a loop tells the one who started it. error: "" when the last exchange succeeded."""

    reflector: Reflector[Object]
    error: str


async def follow(
    source: Source,
    api: ApiHttp,
    deliver: Callable[[str, News[Object]], None],
    progress: Callable[[Progress], None],
    *,
    rng: random.Random | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    kinds: Mapping[str, type[Object]] = KINDS,
) -> None:
    """Without end: deliver(kind, news) for every change, progress(...) whenever something is known."""
    rng = rng or random.Random()
    reflector: Reflector[Object] = Reflector(source, kinds[source.kind])
    backoff = Backoff(rng)
    while True:
        await _exchange(reflector, api, deliver, progress, backoff, rng, sleep)


async def _exchange(
    reflector: Reflector[Object],
    api: ApiHttp,
    deliver: Callable[[str, News[Object]], None],
    progress: Callable[[Progress], None],
    backoff: Backoff,
    rng: random.Random,
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """One request and its answer; pauses after what did not succeed."""
    kind = reflector.source.kind
    request = reflector.next_request(rng.randint(*WATCH_S))
    began_s, heard = time.monotonic(), False
    try:
        if not request.stream:
            page = reflector.page(await api.get(request.path, request.query))
            if page is not None:
                deliver(kind, page)
            heard = True
        else:
            async with aclosing(api.lines(request.path, request.query)) as lines:
                async for line in lines:
                    if not line:
                        progress(Progress(reflector, ""))
                        continue
                    news = reflector.event(line)
                    heard = True
                    backoff.succeeded()
                    if news is not None:
                        deliver(kind, news)
                    progress(Progress(reflector, ""))
    except ApiError as error:
        nothing = reflector.absent(error)
        if nothing is not None:
            deliver(kind, nothing)
        progress(Progress(reflector, "" if nothing is not None else str(error)))
        if reflector.refused(error):
            return
        log.info("%s: %s", kind, error)
    except msgspec.DecodeError as error:
        # A half-written line of a server that died, or no API server at all.
        progress(Progress(reflector, f"an answer that is no JSON of Kubernetes: {error}"))
        log.info("%s: %s", kind, error)
    else:
        progress(Progress(reflector, ""))
        # A watch that ends at once and says nothing would otherwise spin.
        if heard or time.monotonic() - began_s >= 1.0:
            backoff.succeeded()
            return
    await sleep(backoff.next_s())
