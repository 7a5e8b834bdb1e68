"""List, then watch, for ever: a faithful copy of one kind of object, as a stream of changes.

`Reflector` is the protocol without input or output. It says what to ask next and turns answers into
`Part`, `Replace`, `Upsert` and `Delete`; `follow.Follower` is the loop that does the asking.

    LISTING ──last page──> Replace, WATCHING        page with `continue`: ask for the next page
    LISTING ──410──> LISTING from the first page    the continue token is too old
    LISTING ──404──> LISTING                        of a kind that older APIs lack: nothing, asked for again
    WATCHING ──ADDED, MODIFIED──> Upsert            ──DELETED──> Delete
    WATCHING ──BOOKMARK──> the version only         ──end of stream──> WATCHING from the last version
    WATCHING ──410, ERROR event──> LISTING          what was missed shows as a difference in Replace
    WATCHING ──a version below the last──> LISTING  the API's database is an older one: restored from a copy
    WATCHING ──broken off, or silent──> one object is listed for the version it shows; then as above
    any ──no answer, refusal──> the same again after a pause; everything known stays

The list is a watch that begins with the objects there are, up to the bookmark annotated
`k8s.io/initial-events-end` (KEP-3157): the API server has it in memory and neither side ever holds it whole.
A server that refuses it, or does not know it, is asked for pages instead, of a size that keeps a page's
JSON within a few MiB.
Sources: Kubernetes API concepts, "Efficient detection of changes"; client-go tools/cache.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from podlane.errors import ApiError, GoneError, NotFoundError
from podlane.model.objects import EndpointSlice
from podlane.model.packed import Pile, key_of
from podlane.watch import wire
from podlane.watch.wire import ItemList, Meta

log = logging.getLogger(__name__)

PAGE_OBJECTS = (20, 100, 500)  # least, of the first page, most
PAGE_BYTES = 2 * 1024 * 1024
PART_OBJECTS = 100  # of a streaming list
STREAM_SILENCE_S = 20.0
"""A streaming list that sends nothing for so long is none: older servers take it for a plain watch."""

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
ANNOTATIONS = (
    "podlane.dev/",
    "service.kubernetes.io/",
    "kubernetes.io/",
    "endpoints.kubernetes.io/",
    "flannel.alpha.coreos.com/",
)

Key: TypeAlias = tuple[str, str]  # (namespace, name)
T = TypeVar("T")


class Part(NamedTuple, Generic[T]):
    """Some objects of a list that is still being read. They are there, whatever becomes of it."""

    objects: Sequence[T]


class Replace(NamedTuple, Generic[T]):
    """Everything there is of a kind; what was known and is not here is gone.

    unreadable: keys of objects that are there but could not be read: what was known of them stands.
    told: keys of the objects that were handed out before, in parts.
    """

    objects: Sequence[T]
    unreadable: frozenset[Key] = frozenset()
    told: Sequence[Key] = ()

    @property
    def keys(self) -> Iterator[Key]:
        """Of all that is there, read or unreadable."""
        yield from self.told
        yield from map(key_of, self.objects)
        yield from self.unreadable


class Upsert(NamedTuple, Generic[T]):
    object: T


class Delete(NamedTuple):
    key: Key


News: TypeAlias = Part[T] | Replace[T] | Upsert[T] | Delete


class Source(NamedTuple):
    """What to follow. Selectors in the API's own notation. collection: the path, if kind is none of PATHS."""

    kind: str
    label_selector: str = ""
    field_selector: str = ""
    collection: str = ""

    @property
    def path(self) -> str:
        return self.collection or PATHS[self.kind]


class Request(NamedTuple):
    """stream: the answer is a stream of events rather than one list."""

    path: str
    query: dict[str, str]
    stream: bool


class State(enum.Enum):
    LISTING = "listing"
    WATCHING = "watching"


class Reflector(Generic[T]):
    """The protocol of one source.

    kind: a Struct that has the fields somebody reads, or dict for objects as they are.
    version: resourceVersion of the last thing seen, "" before the first; synced: a full list has been
    handed out; malformed: objects the API has that could not be read, by (namespace, name). lists, watches:
    how many lists were completed, and watches begun; pauses, paused_s: how often and for how long in all the
    loop put a try off.
    piecemeal: a list is handed out as it comes, in parts, and kept by nobody: it may be half a gigabyte.
    """

    def __init__(
        self, source: Source, kind: type[T], *, streaming: bool = True, piecemeal: bool = False
    ) -> None:
        self.source = source
        self.state = State.LISTING
        self.version = ""
        self.synced = False
        self.malformed: dict[Key, str] = {}
        self.lists = self.watches = self.pauses = 0
        self.paused_s = 0.0
        self._can_stream = self._streaming = streaming
        self._decoder = msgspec.json.Decoder(kind)
        event: Any = msgspec.defstruct(f"{source.kind}Event", [("object", kind)])
        self._event_decoder: Any = msgspec.json.Decoder(event)
        self._continue = ""
        self._page_objects = PAGE_OBJECTS[1]
        self._kind, self._piecemeal = kind, piecemeal
        self._begin()
        self._doubtful = False
        self._said_error = False

    # --- asking ---

    def next_request(self, watch_s: int) -> Request:
        """What to ask now. watch_s: how long the server shall keep a watch open."""
        self._said_error = False
        query = {}
        if self.source.label_selector:
            query["labelSelector"] = self.source.label_selector
        if self.source.field_selector:
            query["fieldSelector"] = self.source.field_selector
        if self.state is State.WATCHING and self._doubtful:
            return Request(self.source.path, query | {"limit": "1"}, stream=False)
        if self.state is State.LISTING and not self._streaming:
            query["limit"] = str(self._page_objects)
            if self._continue:
                query["continue"] = self._continue
            return Request(self.source.path, query, stream=False)
        query |= {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(watch_s)}
        self.watches += 1
        if self.state is State.WATCHING:
            query["resourceVersion"] = self.version
            return Request(self.source.path, query, stream=True)
        self._begin()
        query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return Request(self.source.path, query, stream=True)

    def doubt(self) -> None:
        """The API was away, a watch broke off or said nothing for long: its database may have been put back
        to an older state, of which a watch from our version would hear nothing. Asked before it goes on.
        """
        self._doubtful = self.state is State.WATCHING

    # --- answers ---

    def page(self, body: bytes) -> Part[T] | Replace[T] | None:
        """One page of a list; the last one completes it. Raises msgspec.DecodeError."""
        answer = wire.LIST.decode(body)
        if self.state is State.WATCHING:
            self._doubtful = False
            if _older(answer.metadata.resource_version, self.version):
                self.state = State.LISTING
            return None
        if not self._continue:
            self._begin()
        for raw in answer.items or ():
            found = self._read(self._decoder.decode, raw, wire.HEAD.decode(raw).metadata, answer)
            if found is not None:
                self._collected.append(found)
        least, _, most = PAGE_OBJECTS
        fitting = self._page_objects * PAGE_BYTES // max(1, len(body))
        self._page_objects = max(least, min(fitting, most))
        self._continue = answer.metadata.continue_
        return self._part(1) if self._continue else self._complete(answer.metadata.resource_version)

    def event(self, line: bytes) -> News[T] | None:
        """One line of a watch. Raises ApiError for an ERROR event (see `refused`), DecodeError."""
        event = wire.EVENT.decode(line)
        if event.type == "ERROR":
            self._said_error = True
            failure = wire.FAILURE.decode(line).object
            kind = GoneError if failure.code == 410 else ApiError
            raise kind(failure.message or "the watch failed", code=failure.code, reason=failure.reason)
        meta = event.object.metadata
        if self.state is State.LISTING:
            return self._initial(event.type, meta, line)
        if _older(meta.resource_version, self.version):
            raise GoneError(
                f"after resourceVersion {self.version} came {meta.resource_version}: the API's database is "
                "an older one"
            )
        if event.type == "BOOKMARK":
            self.version = meta.resource_version
            return None
        if event.type == "DELETED":
            self.version = meta.resource_version
            self.malformed.pop((meta.namespace, meta.name), None)
            return Delete((meta.namespace, meta.name))
        if event.type not in ("ADDED", "MODIFIED"):
            log.debug("%s: an event of type %r is not known here", self.source.kind, event.type)
            return None
        found = self._read(self._event_object, line, meta)
        self.version = meta.resource_version
        return Upsert(found) if found is not None else None

    def _initial(self, kind: str, meta: Meta, line: bytes) -> Part[T] | Replace[T] | None:
        """An event of a streaming list."""
        if kind != "BOOKMARK":
            found = self._read(self._event_object, line, meta)
            if found is not None:
                self._collected.append(found)
            return self._part(PART_OBJECTS)
        if meta.marks_end:
            return self._complete(meta.resource_version)
        raise ApiError("a bookmark before the end of a streaming list: the API does not know them", code=422)

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
        if self.state is State.LISTING:
            return self._refused_list(error.code)
        if self._doubtful and 400 <= error.code < 500 and error.code != 429:
            self._doubtful = False  # it will not say; the watch may
        elif error.code == 504:
            self.doubt()  # "Too large resource version": of a server that lags, or of an older database
        elif error.code in (400, 422) or (self._said_error and error.code not in (429, 503)):
            self.state = State.LISTING  # an ERROR event that is no 410: what it cost is unknown
        return False

    def silent(self) -> bool:
        """A stream was accepted and nothing came. True: ask again at once, in another way."""
        return self.state is State.LISTING and self._refused_list(422)

    def _refused_list(self, code: int) -> bool:
        """A streaming list is asked for in pages instead; if it was for want of a right, this once."""
        if not self._streaming or code not in (400, 403, 422):
            return False
        self._streaming = False
        self._can_stream = self._can_stream and code == 403
        return True

    # --- collecting ---

    def _begin(self) -> None:
        self._collected: Pile[Any] | list[Any] = [] if self._piecemeal else _collection(self._kind)
        self._told: list[Key] = []
        self.malformed.clear()

    def _part(self, least: int) -> Part[T] | None:
        """What has been collected, if it is to be handed out before the end and worth it."""
        if not self._piecemeal or len(self._collected) < least:
            return None
        objects, self._collected = self._collected, []
        self._told += map(key_of, objects)
        return Part(objects)

    def _complete(self, version: str) -> Replace[T]:
        self.version, self.state, self.synced = version, State.WATCHING, True
        self.lists += 1
        self._streaming, self._doubtful = self._can_stream, False
        self._continue = ""
        found: Replace[T] = Replace(self._collected, frozenset(self.malformed), self._told)
        self._collected, self._told = [], []
        return found

    def _event_object(self, line: bytes) -> Any:
        return self._event_decoder.decode(line).object

    def _read(
        self, decode: Callable[[Any], Any], raw: bytes | msgspec.Raw, meta: Meta, page: ItemList | None = None
    ) -> T | None:
        """None for an object that cannot be read: it is remembered by name, the others stand."""
        key = (meta.namespace, meta.name)
        try:
            found = decode(raw)
        except msgspec.ValidationError as error:
            self.malformed[key] = str(error)
            about = {"object": f"{self.source.kind} {'/'.join(filter(None, key))}", "error": error}
            log.warning("%s cannot be read and is left out: %s", about["object"], error, extra=about)
            return None
        self.malformed.pop(key, None)
        if not isinstance(found, dict):
            return _slim(found)  # type: ignore[no-any-return]
        if page is not None:  # a list says of what kind its items are, and they do not
            kind = {"apiVersion": page.api_version, "kind": page.kind.removesuffix("List")}
            return kind | found  # type: ignore[return-value]
        return found  # type: ignore[return-value]


def _collection(kind: Any) -> Pile[Any] | list[Any]:
    """Typed objects are many, and packed; others as they are."""
    return [] if kind is dict else Pile(kind)


def _older(version: str, known: str) -> bool:
    """Versions of other shapes than numbers say nothing (KEP-5504: of Kubernetes' own kinds they are)."""
    return version.isdigit() and known.isdigit() and int(version) < int(known)


def _slim(found: Any) -> Any:
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
