"""What a daemon tells of its own process, under the names of every Prometheus client, and its version.

Read when asked, from proc(5); what the machine does not say is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from podlane import __version__
from podlane.observe.exposition import Metric, counter, exposition, gauge

_STAT: Final = Path("/proc/self/stat")
_UTIME, _STIME, _THREADS, _STARTED, _VIRTUAL, _RESIDENT = 11, 12, 17, 19, 20, 21  # behind the command's name


def text(component: str) -> str:
    """component: agent or controller."""
    build = {
        "component": component,
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    info = Metric("build_info", "gauge", "What runs; always 1.", [(build, 1)])
    return exposition("podlane_", [info]) + exposition("process_", _metrics())


def _metrics() -> Iterator[Metric]:
    try:
        fields = _STAT.read_text().rpartition(")")[2].split()
        booted_s = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line[:5] == "btime"
        )
    except (OSError, StopIteration):
        return
    tick, page_bytes = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    used_s = (int(fields[_UTIME]) + int(fields[_STIME])) / tick
    yield counter("cpu_seconds_total", "Processor time of user and kernel.", used_s)
    resident_bytes = int(fields[_RESIDENT]) * page_bytes
    yield gauge("resident_memory_bytes", "Resident memory.", resident_bytes)
    yield gauge("virtual_memory_bytes", "Virtual memory.", int(fields[_VIRTUAL]))
    started_s = booted_s + int(fields[_STARTED]) / tick
    yield gauge("start_time_seconds", "When the process began, since 1970.", started_s)
    yield gauge("threads", "Threads.", int(fields[_THREADS]))
    yield gauge("open_fds", "Open file descriptors.", len(os.listdir("/proc/self/fd")) - 1)
    for line in Path("/proc/self/limits").read_text().splitlines():
        if line.startswith("Max open files") and (limit := line.split()[3]).isdigit():
            yield gauge("max_fds", "How many file descriptors may be open.", int(limit))
