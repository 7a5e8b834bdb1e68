"""Reading a configuration's keys with their types: every fault is noted, none ends the reading.

    fields = Fields(config)
    mtu_bytes = fields.integer("mtu", 0, 65535)
    gateway = fields.address("gateway")
    fields.faults          # ["mtu is 'x', expected an integer of 0 to 65535"]

A key that is absent or null gives its default, and so does one at fault. Where no key is spelled so,
one that differs in case counts, as with Go's decoder: containerd writes portMappings as HostPort,
ContainerPort, Protocol, HostIP. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from podlane.cni.results import IpInterface
from podlane.model.addresses import Address, Prefix


class Fields:
    """where: put before the keys in faults, as "ipam."."""

    def __init__(self, config: Any, where: str = "", faults: list[str] | None = None) -> None:
        self.faults: list[str] = [] if faults is None else faults
        self._where = where
        self._config: Mapping[str, Any] = config if isinstance(config, dict) else {}
        self._folded: dict[str, Any] | None = None
        if not isinstance(config, dict):
            self.faults.append(
                f"{where.rstrip('.') or 'the configuration'} is {config!r}, expected an object"
            )

    def fault(self, key: str, text: str) -> None:
        self.faults.append(f"{self._where}{key} {text}")

    def __contains__(self, key: str) -> bool:
        return self._get(key) is not None

    def _get(self, key: str) -> Any:
        if key in self._config:
            return self._config[key]
        if self._folded is None:
            self._folded = {str(each).lower(): value for each, value in self._config.items()}
        return self._folded.get(key.lower())

    def _typed(self, key: str, kind: type, expected: str) -> Any:
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fault(key, f"is {_shown(value)}, expected {expected}")
            return None
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self._typed(key, str, "a string")
        if value is not None and "\0" in value:
            self.fault(key, f"is {_shown(value)}, which has a NUL in it")
            return default
        return default if value is None else value

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self._typed(key, bool, "true or false")
        return default if value is None else value

    def optional(self, key: str) -> bool | None:
        """None where it is not said."""
        value: bool | None = self._typed(key, bool, "true or false")
        return value

    def integer(self, key: str, low: int, high: int, default: int = 0) -> int:
        expected = f"an integer of {low} to {high}"
        value = self._typed(key, int, expected)
        if value is not None and not low <= value <= high:
            self.fault(key, f"is {value}, expected {expected}")
            return default
        return default if value is None else value

    def choice(self, key: str, known: tuple[str, ...], default: str) -> str:
        value = self.text(key, default)
        if value not in known:
            self.fault(key, f"is {value!r}, expected one of {', '.join(known)}")
            return default
        return value

    def address(self, key: str) -> Address | None:
        text = self.text(key)
        try:
            return ipaddress.ip_address(text) if text else None
        except ValueError:
            self.fault(key, f"is {text!r}, which is not an IP address")
            return None

    def interface(self, key: str) -> IpInterface | None:
        """An address with its prefix length."""
        text = self.text(key)
        try:
            if text and "/" not in text:
                raise ValueError
            return ipaddress.ip_interface(text) if text else None
        except ValueError:
            self.fault(key, f"is {text!r}, expected an address with its prefix length, as 10.1.2.3/24")
            return None

    def prefix(self, key: str) -> Prefix | None:
        """A network without host bits."""
        text = self.text(key)
        try:
            return ipaddress.ip_network(text) if text else None
        except ValueError as error:
            self.fault(key, f"is {text!r}, which is not a network: {error}")
            return None

    def strings(self, key: str) -> list[str]:
        values = self._typed(key, list, "a list of strings") or []
        if not all(isinstance(value, str) for value in values):
            self.fault(key, f"is {_shown(values)}, expected a list of strings")
            return []
        return values

    def mapping(self, key: str) -> dict[str, Any]:
        return self._typed(key, dict, "an object") or {}

    def fields(self, key: str) -> Fields:
        """The object at key; empty where there is none."""
        return Fields(self.mapping(key), f"{self._where}{key}.", self.faults)

    def objects(self, key: str) -> list[Fields]:
        values = self._typed(key, list, "a list of objects") or []
        return [
            Fields(value, f"{self._where}{key}[{place}].", self.faults) for place, value in enumerate(values)
        ]

    def lists(self, key: str) -> list[list[Fields]]:
        """A list of lists of objects, as host-local's ranges are."""
        found = []
        for place, values in enumerate(self._typed(key, list, "a list of lists of objects") or []):
            where = f"{key}[{place}]"
            if not isinstance(values, list):
                self.fault(where, f"is {_shown(values)}, expected a list of objects")
                continue
            found.append(
                [Fields(v, f"{self._where}{where}[{n}].", self.faults) for n, v in enumerate(values)]
            )
        return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
