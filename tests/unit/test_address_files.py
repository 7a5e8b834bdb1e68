"""Leases in files: what is kept in memory is what is on disk, whoever wrote it."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

from podlane.cni.address_files import AddressFiles

ONE, TWO, THREE = (ip_address(f"10.0.0.{n}") for n in (1, 2, 3))


def put(files: AddressFiles, name: str, text: str) -> None:
    """As another plugin does."""
    (files.path / name).write_text(text, newline="")


def hide(files: AddressFiles, before: os.stat_result) -> None:
    """The directory looks as if nothing had changed: a clock that ticks slowly."""
    os.utime(files.path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_others_write_and_remove_is_seen(tmp_path: Path):
    files, other = AddressFiles(tmp_path, "net"), AddressFiles(tmp_path, "net")
    with files.locked():
        assert files.take(ONE, "a", "eth0", 0)
        assert files.of("a", "eth0") == [ONE]
    with other.locked():
        assert other.of("a", "eth0") == [ONE]
        assert not other.take(ONE, "b", "eth0", 0)
        assert other.take(TWO, "b", "eth0", 0)
    put(files, "10.0.0.3", "old")
    with files.locked():
        assert files.holders() == {ONE: ("a", "eth0"), TWO: ("b", "eth0"), THREE: ("old", "")}
        assert files.of("old", "any") == [THREE]
        files.give_back(TWO)
    with other.locked():
        assert set(other.holders()) == {ONE, THREE}
    (files.path / "10.0.0.1").unlink()
    with files.locked():
        assert set(files.holders()) == {THREE}
        assert files.of("a", "eth0") == []


def test_a_change_that_does_not_show_is_neither_overwritten_nor_lost(tmp_path: Path):
    files = AddressFiles(tmp_path, "net")
    with files.locked():
        files.take(ONE, "a", "eth0", 0)
    before = files.path.stat()
    put(files, "10.0.0.2", "b\r\neth0")
    hide(files, before)
    with files.locked():
        assert not files.take(TWO, "c", "eth0", 0)
        assert files.holders()[TWO] == ("b", "eth0")
    assert (files.path / "10.0.0.2").read_bytes() == b"b\r\neth0"


def test_the_last_address_is_the_whole_file(tmp_path: Path):
    files = AddressFiles(tmp_path, "net")
    with files.locked():
        files.take(ip_address("10.0.0.101"), "a", "eth0", 0)
        files.take(ONE, "b", "eth0", 0)
        assert (files.path / "last_reserved_ip.0").read_bytes() == b"10.0.0.1"
        assert files.last(0) == ONE
        put(files, "last_reserved_ip.0", "no address")
        assert files.last(0) is None


def test_what_a_killed_writer_left_is_removed(tmp_path: Path):
    files = AddressFiles(tmp_path, "net")
    with files.locked():
        put(files, ".podlane-1", "half a lea")
        assert files.holders() == {}
    assert sorted(p.name for p in files.path.iterdir()) == ["lock"]


def test_no_directory_is_made_for_who_only_looks(tmp_path: Path):
    with AddressFiles(tmp_path, "net").locked(make=False) as there:
        assert not there
    assert list(tmp_path.iterdir()) == []
