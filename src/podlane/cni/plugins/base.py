"""What a plugin type is, and what it gets: the seam between the dispatcher and one module a type.

A request of the runtime names one type and one verb. The dispatcher (cni/plugin.py) has read it, found
the type and opened CNI_NETNS; the type does its part of the verb:

    faults   everything wrong with its own keys of the configuration, before anything is touched
    add      returns the whole result: what it was given (`call.previous`) and what it made
    delete   idempotent; goes on where something is gone already, or was never there
    check    raises CniError when something is not as `add` made it
    gc       removes what `call.request.valid_attachments` does not list; never called without the list
    status   raises CniError (code 50) when `add` cannot work now

Verbs are coroutines of the agent's loop. What blocks (netlink, files, processes) goes through
`Host.run`. Every failure is a CniError; a KernelError that comes out is made one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from podlane.cni import protocol
from podlane.cni.protocol import Request
from podlane.cni.results import IpInterface, Result
from podlane.errors import CniError, PodlaneError

if TYPE_CHECKING:
    from podlane.cni.host_ports import HostPorts
    from podlane.cni.shaping import Shaping
    from podlane.kernel.rtnl import Rtnl

T = TypeVar("T")


class Owner(NamedTuple):
    """Whose something is: an attachment of a network."""

    network: str
    container_id: str
    ifname: str

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.ifname


class Masquerade(Protocol):
    """Source translation of what attachments send out of their networks (`ipMasq`).

    A packet from one of the addresses to a destination outside that address's own prefix, and not to a
    multicast group, leaves with the node's address.
    """

    async def add(self, owner: Owner, addresses: Sequence[IpInterface]) -> None:
        """Replaces what the owner had. Raises KernelError."""

    async def remove(self, owner: Owner) -> None:
        """No error if there is nothing."""

    async def has(self, owner: Owner, addresses: Sequence[IpInterface]) -> bool: ...

    async def keep_only(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        """Removes what attachments (container id, ifname) of the network that are not valid have."""


class Records(Protocol):
    """Small notes that outlive the agent, but not the boot: one a plugin type and owner."""

    def put(self, kind: str, owner: Owner, note: Mapping[str, Any]) -> None:
        """On disk when it returns. Raises CniError (IO_FAILURE)."""

    def get(self, kind: str, owner: Owner) -> dict[str, Any] | None: ...

    def remove(self, kind: str, owner: Owner) -> None: ...

    def all(self, kind: str, network: str | None = None) -> list[tuple[Owner, dict[str, Any]]]: ...


class Host(Protocol):
    """The node, as plugin types see it. netns_fd: its network namespace; None for the process's own.

    rtnl: a socket there that all threads share.
    """

    netns_fd: int | None
    state_dir: Path
    records: Records
    rtnl: Rtnl
    masquerade: Masquerade
    host_ports: HostPorts
    shaping: Shaping

    async def run(self, function: Callable[[], T]) -> T:
        """function() on a thread: for what blocks."""

    async def remove_links(self, names: Sequence[str]) -> None:
        """Deletes links of the node; those that are gone are no error. Many at once cost as much as one."""

    async def delegate(
        self, kind: str, call: Call, verb: protocol.Verb, config: Mapping[str, Any] | None = None
    ) -> Result:
        """The verb of another type, which may be an executable of CNI_PATH, for the same attachment.

        config: what the other type gets; None: the same. Its result, empty for verbs that have none.
        """


class Call(NamedTuple):
    """One verb for one attachment. netns_fd: CNI_NETNS, None if there is none or it cannot be opened.

    previous: prevResult, read; None if there is none.
    """

    request: Request
    host: Host
    environment: Mapping[str, str]
    netns_fd: int | None = None
    previous: Result | None = None

    @property
    def owner(self) -> Owner:
        return Owner(self.request.network, self.request.container_id, self.request.ifname)

    @property
    def namespace(self) -> int:
        """Raises CniError when CNI_NETNS could not be opened."""
        if self.netns_fd is None:
            what = f"CNI_NETNS {self.request.netns!r} cannot be opened"
            raise CniError(protocol.INVALID_ENVIRONMENT, what)
        return self.netns_fd

    @property
    def chained(self) -> Result:
        """prevResult of a type that only adds to others. Raises CniError when there is none."""
        if self.previous is None:
            kind = self.request.config.get("type")
            what = f"{kind} adds to another plugin's result: put it after one in `plugins` of a conflist"
            raise CniError(protocol.INVALID_CONFIG, what)
        return self.previous


class PluginType:
    """Does nothing, passes prevResult on; types override what they do."""

    name: str

    async def start(self, host: Host, lost: Sequence[tuple[Owner, dict[str, Any]]]) -> None:
        """The agent begins. lost: this type's notes of earlier boots, which end when this returns."""

    def leaked(self, host: Host, links: Collection[str]) -> list[Call]:
        """The DELs of attachments whose link is gone. links: names of the node's links now."""
        return []

    def faults(self, request: Request) -> list[str]:
        return []

    async def add(self, call: Call) -> Result:
        return call.previous or Result()

    async def delete(self, call: Call) -> None:
        pass

    async def check(self, call: Call) -> None:
        pass

    async def gc(self, call: Call) -> None:
        pass

    async def status(self, call: Call) -> None:
        pass


def read_once(read: Callable[[Request], T]) -> Callable[[Request], T]:
    """A type's reading of a configuration, done once a request: several of its steps ask for it."""

    @wraps(read)
    def remembered(request: Request) -> T:
        if read not in request.readings:
            request.readings[read] = read(request)
        found: T = request.readings[read]
        return found

    return remembered


async def gather_failures(steps: Sequence[Awaitable[None]]) -> None:
    """Takes every step, in order, whatever the others do. Raises what failed as one CniError."""
    failures: list[CniError] = []
    for step in steps:
        try:
            await step
        except CniError as error:
            failures.append(error)
        except (PodlaneError, OSError) as error:
            failures.append(CniError(protocol.KERNEL_REFUSED, str(error)))
    if failures:
        raise CniError(failures[0].code, "; ".join(failure.message for failure in failures))
