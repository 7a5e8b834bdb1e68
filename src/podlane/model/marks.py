"""Every bit of the packet mark, the conntrack mark and the conntrack label that podlane uses.

Bits are scarce and shared, with ourselves and with others on the machine, so they are laid out here and
nowhere else. tests/unit/test_marks.py proves that no two users overlap.

    packet mark       one bit, services.masqueradeMark (0x4000, kube-proxy's habit): set before routing on
                      a flow whose source shall be masqueraded, cleared after routing. Other bits belong
                      to others and are never touched.
    conntrack mark    all 32 bits, in the node's namespace only (a pod's namespace has its own):
                          31..28  class: what happens to the flow (Class)
                          27..18  count: which chain picks an endpoint; or the affinity slot it got
                          17..0   list:  the id of the endpoint list, bound by the driver
                      A flow keeps the mark of its first packet, so `conntrack -L -m 0x2a/0x3ffff` lists
                      the flows of list 42.
    conntrack label   bit 0: network policy has cut the flow.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Bits(NamedTuple):
    """Consecutive bits of a word, and who uses them for what."""

    user: str
    shift: int
    width: int

    @property
    def mask(self) -> int:
        return ((1 << self.width) - 1) << self.shift

    @property
    def largest(self) -> int:
        return (1 << self.width) - 1

    def of(self, word: int) -> int:
        """This field of a word."""
        return (word & self.mask) >> self.shift

    def put(self, value: int) -> int:
        """value in its place. Raises ValueError if it is too large."""
        if not 0 <= value <= self.largest:
            raise ValueError(f"{self.user}: {value} does not fit {self.width} bits")
        return value << self.shift


LIST: Final = Bits("services: id of the endpoint list", 0, 18)
COUNT: Final = Bits("services: endpoint count or affinity slot", 18, 10)
CLASS: Final = Bits("services: class of the flow", 28, 4)

CONNTRACK_MARK: Final = (LIST, COUNT, CLASS)
CONNTRACK_LABEL: Final = (Bits("policy: the flow is cut", 0, 1),)

AFFINITY: Final = 8  # added to a class: choose by client address (sessionAffinity: ClientIP)


class Class(enum.IntEnum):
    """Values of CLASS. Guarded: only some sources may come in (loadBalancerSourceRanges)."""

    NONE = 0
    INTERNAL = 1
    EXTERNAL = 2
    EXTERNAL_LOCAL = 3
    EXTERNAL_GUARDED = 4
    EXTERNAL_LOCAL_GUARDED = 5
    STICKY = AFFINITY  # affinity has chosen: COUNT holds the slot of the endpoint
    INTERNAL_AFFINITY = AFFINITY | INTERNAL
    EXTERNAL_AFFINITY = AFFINITY | EXTERNAL
    EXTERNAL_LOCAL_AFFINITY = AFFINITY | EXTERNAL_LOCAL
    EXTERNAL_GUARDED_AFFINITY = AFFINITY | EXTERNAL_GUARDED
    EXTERNAL_LOCAL_GUARDED_AFFINITY = AFFINITY | EXTERNAL_LOCAL_GUARDED
    DROP = 14
    REJECT = 15


def mark(klass: int, count: int = 0, list_id: int = 0) -> int:
    """A conntrack mark."""
    return CLASS.put(klass) | COUNT.put(count) | LIST.put(list_id)


def packet_mark(masquerade_mark: int) -> tuple[Bits, ...]:
    """The packet mark's users, given services.masqueradeMark (one bit; the configuration checks it)."""
    return (Bits("services: masquerade this flow", masquerade_mark.bit_length() - 1, 1),)
