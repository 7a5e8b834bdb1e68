"""What the proxy counts, by name. Pure."""

from __future__ import annotations

from typing import Final

SENT_PACKETS, SENT_BYTES = "sent_packets", "sent_bytes"
RECEIVED_PACKETS, RECEIVED_BYTES = "received_packets", "received_bytes"
MOVED: Final = {
    SENT_PACKETS: "Packets that went to other nodes in datagrams.",
    SENT_BYTES: "Bytes of them.",
    RECEIVED_PACKETS: "Packets that came from other nodes in datagrams.",
    RECEIVED_BYTES: "Bytes of them.",
}

NO_ROUTE, TIME_EXCEEDED, MULTICAST = "no_route", "time_exceeded", "multicast"
UNKNOWN_SENDER, FOREIGN_SOURCE = "unknown_sender", "foreign_source"
MALFORMED, OVERSIZED = "malformed", "oversized"
QUEUE_FULL, NOT_SENT, NOT_DELIVERED = "queue_full", "not_sent", "not_delivered"
DROPS: Final = (
    NO_ROUTE,
    TIME_EXCEEDED,
    MULTICAST,
    UNKNOWN_SENDER,
    FOREIGN_SOURCE,
    MALFORMED,
    OVERSIZED,
    QUEUE_FULL,
    NOT_SENT,
    NOT_DELIVERED,
)
COUNTERS: Final = (*MOVED, *DROPS)
