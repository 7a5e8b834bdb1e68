"""Puts the addresses this node answers for on its uplink, and tells the network.

The kernel itself answers ARP and NDP for an address of a link, so a killed agent costs nothing. Our
addresses (protocol 85, /32 and /128, without a route of their own, for IPv6 never chosen as a source) are
lent for a time, and lent again while the agent lives: of one that does not come back nothing is left.

    rows, heartbeats heard ──Election──> addresses on the uplink, gratuitous ARP and NA when one is new
    a candidate for anything ──> a heartbeat every half second

All of it is done under one lock, by the reconciler's thread when rows change and by a thread of our own as
time passes: a busy agent must not seem dead.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from podlane.compile.tables import Announcement, Table
from podlane.delta import Delta, merge
from podlane.errors import KernelError, KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.announce import frames
from podlane.kernel.announce.election import HEARTBEAT_S, Election
from podlane.kernel.driver import Failure, Report
from podlane.kernel.rtnl import PROTOCOL, Rtnl
from podlane.model.addresses import Address, Interface, host_prefix

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
LENT_S: Final = 30
"""How long an address outlives its agent where another node takes it over meanwhile."""
LENT_ALONE_S: Final = 600
"""And where no other node may."""
LEND_AGAIN_S: Final = 5.0
BURST: Final = 6
"""A new address is announced with so many heartbeats; frames get lost."""
REMIND_S: Final = 10.0

_SOL_PACKET, _ADD_MEMBERSHIP, _MULTICAST = 263, 1, 0


class AnnounceDriver:
    """The Driver of kernel/driver.py for ANNOUNCEMENTS, in namespace netns_fd (None: the caller's).

    It closes with its last owner's `close`; the reconciler's calls after that do nothing.
    """

    def __init__(self, netns_fd: int | None = None) -> None:
        self._changed: Callable[[Address, bool], None] = lambda *_: None
        self._rt = Rtnl(netns_fd)
        self._netns_fd = netns_fd
        self._lock = threading.Lock()
        self._election = Election()
        self._rows: dict[Address, Announcement] = {}
        self._held: dict[Address, _Held] = {}
        self._failures: dict[Address, KernelError] = {}
        self._wire: _Wire | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._operations = 0

    @property
    def tables(self) -> tuple[Table, ...]:
        return (Table.ANNOUNCEMENTS,)

    def listen(self, changed: Callable[[Address, bool], None]) -> None:
        """changed(address, held): called on some thread when this node begins or ceases to answer."""
        with self._lock:
            self._changed = changed
            for where in self._held:
                changed(where, True)

    def close(self) -> None:
        """Leaves the addresses: they go when their time is over, or an agent lends them again."""
        with self._lock:
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._wire is not None:
                self._wire.close()
            self._rt.close()
            os.close(self._wake)

    # --- Driver ---

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        with self._lock:
            if self._closed:
                return Report()
            there = self._read()
            for where, held in there.items():
                if where not in self._held:
                    self._held[where] = held
                    self._changed(where, True)
            for where in [w for w in self._held if w not in there]:
                del self._held[where]  # somebody took it away; it comes back, if it is ours
            return self._set(dict(desired.get(Table.ANNOUNCEMENTS, {})))

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        with self._lock:
            if self._closed:
                return Report()
            rows = dict(self._rows)
            merge(rows, changes[Table.ANNOUNCEMENTS])
            return self._set(rows)

    def _set(self, rows: dict[Address, Announcement]) -> Report:
        now_s = time.monotonic()
        began = not self._rows and rows
        self._rows = rows
        self._election.set_rows(rows, self._held, now_s)
        self._operations = 0
        self._listen()
        if self._wire is not None:
            self._hear(self._wire, now_s)
        if began:
            self._beat()
        self._settle(now_s)
        if rows and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="announce", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)
        failures = tuple(Failure(Table.ANNOUNCEMENTS, w, e) for w, e in self._failures.items())
        return Report(self._operations, failures)

    def _read(self) -> dict[Address, _Held]:
        """Addresses of ours, on whichever link."""
        return {
            each.address.ip: _Held(each.link)
            for each in self._rt.addresses()
            if each.protocol == PROTOCOL and each.address.network.num_addresses == 1
        }

    # --- the addresses ---

    def _settle(self, now_s: float) -> None:
        mine = self._election.mine(now_s)
        self._failures = {}
        for where in [w for w in self._held if w not in mine]:
            self._drop(where)
        for where, row in mine.items():
            try:
                self._hold(where, row, now_s)
            except KernelError as error:
                self._failures[where] = error

    def _hold(self, where: Address, row: Announcement, now_s: float) -> None:
        held = self._held.get(where)
        if held is not None and now_s < held.lend_again_s:
            return
        link = self._rt.link_index(row.device)
        if held is not None and held.link != link:
            self._drop(where)
            held = None
        valid_s = LENT_S if len(row.candidates) > 1 else LENT_ALONE_S
        self._operations += held is None
        self._rt.lend_address(link, interface(where), valid_s=valid_s)
        if held is None:
            log.info("this node answers for %s now", where)
            held = self._held[where] = _Held(link, burst=BURST)
            self._announce(held, where, now_s)
            self._changed(where, True)
        held.lend_again_s = now_s + LEND_AGAIN_S

    def _drop(self, where: Address) -> None:
        held = self._held.pop(where)
        log.info("this node does not answer for %s any more", where)
        self._operations += 1
        try:
            self._rt.delete_address(held.link, interface(where))
        except KernelNotFoundError:
            pass  # with its link
        except KernelError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                self._failures[where] = error
        self._changed(where, False)

    # --- the wire ---

    def _run(self) -> None:
        next_look_s = next_beat_s = time.monotonic() + HEARTBEAT_S
        while True:
            with self._lock:
                sources = [self._wake] + ([self._wire.socket.fileno()] if self._wire is not None else [])
            try:
                ready = select.select(sources, [], [], TICK_S if self._rows else None)[0]
            except (ValueError, OSError):
                continue  # the socket was closed just now
            with self._lock:
                if self._closed:
                    return
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                now_s = time.monotonic()
                if self._wire is not None and len(ready) > (self._wake in ready):
                    self._hear(self._wire, now_s)
                if now_s >= next_beat_s:
                    next_beat_s = now_s + HEARTBEAT_S
                    self._listen()
                    self._beat()
                    for where, held in self._held.items():
                        self._announce(held, where, now_s)
                if now_s >= next_look_s:  # not with every heartbeat heard: there may be many
                    next_look_s = now_s + TICK_S
                    self._settle(now_s)

    def _listen(self) -> None:
        """A socket on the uplink, while there is anything to say on it."""
        device = next((row.device for row in self._rows.values()), "")
        if self._wire is not None and self._wire.device != device:
            self._wire.close()
            self._wire = None
        if device and self._wire is None:
            try:
                self._wire = _Wire(device, self._netns_fd)
            except OSError as error:
                log.warning("no packet socket on %s: %s; trying again", device, error.strerror)

    def _beat(self) -> None:
        identity = next((row.me.identity for row in self._rows.values()), "")
        if identity and self._wire is not None:
            self._send(self._wire, frames.heartbeat(identity, self._wire.mac))

    def _announce(self, held: _Held, where: Address, now_s: float) -> None:
        if self._wire is not None and (held.burst or now_s >= held.remind_s):
            held.burst = max(0, held.burst - 1)
            held.remind_s = now_s + REMIND_S
            for frame in frames.announcements(where, self._wire.mac):
                self._send(self._wire, frame)

    def _insist(self) -> None:
        """Somebody else may have answered for our addresses meanwhile."""
        for where, held in self._held.items():
            held.burst = BURST
            self._changed(where, True)

    def _send(self, wire: _Wire, frame: bytes) -> None:
        try:
            wire.socket.send(frame)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                log.info("%s: %s", wire.device, error.strerror)
                wire.close()
                self._wire = None  # made anew with the next heartbeat

    def _hear(self, wire: _Wire, now_s: float) -> None:
        try:
            while True:
                identity = frames.heard(wire.socket.recv(512))
                if identity is not None and self._election.heard(identity, now_s):
                    self._insist()
        except BlockingIOError:
            pass
        except OSError as error:
            log.info("%s: %s", wire.device, error.strerror)
            wire.close()
            self._wire = None


class _Held:
    """An address on our uplink. link: index; burst: announcements still due with the next heartbeats."""

    def __init__(self, link: int, burst: int = 0) -> None:
        self.link, self.burst = link, burst
        self.lend_again_s = self.remind_s = 0.0


class _Wire:
    """A packet socket for heartbeats on one link, which announcements are sent by, too. Raises OSError."""

    def __init__(self, device: str, netns_fd: int | None) -> None:
        self.device = device
        make = socket.socket if netns_fd is None else None
        protocol = socket.htons(frames.HEARTBEAT)
        if make is not None:
            self.socket = make(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        else:
            assert netns_fd is not None
            self.socket = netns.socket_in(netns_fd, socket.AF_PACKET, socket.SOCK_RAW, protocol)
        try:
            self.socket.setblocking(False)
            self.socket.bind((device, frames.HEARTBEAT))
            self.mac: bytes = self.socket.getsockname()[4]
            index = self._index(netns_fd)
            request = struct.pack("=iHH8s", index, _MULTICAST, 6, frames.HEARTBEAT_MAC)
            self.socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
        except OSError:
            self.socket.close()
            raise

    def _index(self, netns_fd: int | None) -> int:
        if netns_fd is None:
            return socket.if_nametoindex(self.device)
        return netns.inside(netns_fd, lambda: socket.if_nametoindex(self.device))

    def close(self) -> None:
        self.socket.close()


def interface(where: Address) -> Interface:
    return ipaddress.ip_interface(str(host_prefix(where)))
