"""Reading and changing set elements of one namespace, on one long-lived nfnetlink socket.

(Closing an nfnetlink socket waits for the kernel, some 13 ms: one socket lives as long as its driver.)
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from podlane.errors import KernelBusyError, KernelError, KernelNotFoundError
from podlane.kernel.netlink import NETLINK_NETFILTER, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import codec
from podlane.kernel.nft.codec import Element
from podlane.model.addresses import Family

# The kernel asks to begin again: a module was loaded meanwhile, a signal came, another commit was first.
AGAIN: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ERESTART, errno.ENOBUFS})
_ATTEMPTS: Final = 5
_DUMPS: Final = 20
_GROWS_S: Final = 0.005  # a table of a million elements takes about 0.1 s


class Operation(NamedTuple):
    """One element to add to, or delete from, a set. owner: what the caller wants it for (hashable)."""

    family: Family
    set: str
    element: Element
    add: bool
    owner: Any = None


class Refusal(NamedTuple):
    operation: Operation
    error: KernelError


class Elements:
    """The sets and maps of the tables `table` (one a family). Blocking; for one thread."""

    def __init__(self, table: str, netns_fd: int | None = None) -> None:
        self.table = table
        self._netlink = Netlink(NETLINK_NETFILTER, netns_fd)

    def close(self) -> None:
        self._netlink.close()

    def table_exists(self, family: Family) -> bool:
        return self._exists(codec.get_table(family, self.table))

    def chain_exists(self, family: Family, chain: str) -> bool:
        return self._exists(codec.get_chain(family, self.table, chain))

    def sets(self, family: Family) -> list[str]:
        """Names of the table's sets and maps. Empty if there is no table."""
        request = codec.get_sets(family, self.table)
        try:
            return [codec.unpack_set_name(message) for message in self._netlink.dump(request)]
        except KernelNotFoundError:
            return []

    def read(self, family: Family, set_: str) -> list[Element]:
        """All elements of a set or map, none if it does not exist. Raises KernelBusyError.

        A hash table that has just been filled is still growing, in a worker of the kernel's. Between two
        parts of a dump it then changes its order, which no generation and no NLM_F_DUMP_INTR tells of: the
        dump, continued at a number of elements, has some twice and others not at all. What it misses is
        as much as it repeats, so a dump without repetition is whole, and any other is begun again.
        """
        request = codec.get_elements(family, self.table, set_)
        for attempt in range(_DUMPS):
            try:
                messages = self._netlink.dump(request)
            except KernelNotFoundError:
                return []
            found = [element for message in messages for element in codec.unpack_elements(message)]
            if len({each.key for each in found}) == len(found):
                return found
            if len({(each.key, each.flags, each.last) for each in found}) == len(found):
                return found  # an interval's end may have the key of the next one's beginning
            time.sleep(_GROWS_S * attempt)
        raise KernelBusyError(errno.EBUSY, request.operation, "its table changed its size during each dump")

    def commit(self, operations: Iterable[Operation], first: Sequence[Request] = ()) -> list[Refusal]:
        """`first` and all operations as one transaction.

        operations: gone through once, and once more if one is refused. They are put together by set, in
        the order in which the sets come: of one key, a deletion goes before the addition.
        Returns which operations the kernel refused; then nothing has taken effect. Raises KernelError
        when it refuses one of `first`, or does not say what.
        """
        requests = [*first, *self._messages(operations)]
        if not requests or self._run(requests) is None:
            return []
        # Once more with a message for each element, to learn which it was.
        operations = list(operations)
        verdicts = self._run([*first, *(next(self._messages([each])) for each in operations)])
        if verdicts is None:
            return []  # what stood in the way has gone in between
        for error in verdicts[: len(first)]:
            if error is not None:
                raise error
        refused = zip(operations, verdicts[len(first) :], strict=True)
        return [Refusal(operation, error) for operation, error in refused if error is not None]

    def _messages(self, operations: Iterable[Operation]) -> Iterator[Request]:
        by_place: dict[tuple[Family, str, bool], list[bytes]] = {}
        pack = codec.pack_element
        for family, set_, element, add, _ in operations:
            place = family, set_, add
            packed = by_place.get(place)
            if packed is None:
                packed = by_place[place] = []
            packed.append(pack(element))
        for (family, set_, add), packed in by_place.items():
            yield from codec.change(family, self.table, set_, packed, add=add)

    def _run(self, requests: list[Request]) -> list[KernelError | None] | None:
        """None: committed. Otherwise a verdict a message, at least one of them an error."""
        begin, end = codec.batch()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                verdicts = self._netlink.transaction(requests, begin=begin, end=end)
            except KernelError as error:
                if error.errno not in AGAIN or attempt == _ATTEMPTS:
                    raise
                continue
            errors = [error for error in verdicts if error is not None]
            if not errors:
                return None
            if attempt == _ATTEMPTS or any(error.errno not in AGAIN for error in errors):
                break
        return verdicts

    def _exists(self, request: Request) -> bool:
        try:
            self._netlink.ask(request)
        except KernelNotFoundError:
            return False
        return True
