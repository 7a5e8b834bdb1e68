"""The plugin types: one module a type, named for it ("-" as "_"), whose TYPE is the PluginType.

base.py has what they share and what they get.
"""

from __future__ import annotations

import importlib
from typing import Final

from podlane.cni.plugins.base import PluginType

# The names under which our executable is installed, besides `podlane`.
NAMES: Final = (
    "bridge",
    "ptp",
    "loopback",
    "host-local",
    "static",
    "tuning",
    "portmap",
    "bandwidth",
    "firewall",
    "flannel",
)


def load() -> dict[str, PluginType]:
    """Every type of NAMES that there is, by name."""
    found: dict[str, PluginType] = {}
    for name in NAMES:
        path = f"{__name__}.{name.replace('-', '_')}"
        try:
            found[name] = importlib.import_module(path).TYPE
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
    return found
