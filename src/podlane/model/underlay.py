"""NetworkConfig's section `underlay`: which of its addresses a node is sent to by the others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import field

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Prefix, address, family_of, prefix
from podlane.model.sections import Section


class UnderlayChoice(Section, frozen=True):
    """At most one of these; without any, the link that has the Node's InternalIP, and that address.

    interfaces: names of links, the first that is there with an address. interfaceRegex: the whole name of a
    link fits it. canReach: addresses, at most one a family; the link and source by which the node's routes
    lead there. cidrs: the address lies within one of them.
    """

    interfaces: list[str] = field(default_factory=list)
    interface_regex: str = ""
    can_reach: list[str] = field(default_factory=list)
    cidrs: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Of what is set, as it is written; "" for nothing."""
        return next((key for key, value in self._values() if value), "")

    @property
    def targets(self) -> list[Address]:
        return list(map(address, self.can_reach))

    @property
    def prefixes(self) -> list[Prefix]:
        return list(map(prefix, self.cidrs))

    def __str__(self) -> str:
        """What is asked for, for a complaint."""
        value = dict(self._values()).get(self.key, "")
        return f"underlay.{self.key} {value if isinstance(value, str) else ', '.join(value)}"

    def _values(self) -> tuple[tuple[str, str | list[str]], ...]:
        return (
            ("interfaces", self.interfaces),
            ("interfaceRegex", self.interface_regex),
            ("canReach", self.can_reach),
            ("cidrs", self.cidrs),
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it)"""
        given = [key for key, value in self._values() if value]
        if len(given) > 1:
            yield f"underlay.{given[1]}", f"underlay.{given[0]} chooses already; leave one of them out"
        for name in self.interfaces:
            if not re.fullmatch(r"[^\s/:]{1,15}", name):
                yield "underlay.interfaces", f"{name!r} is no name of a link: 1 to 15 characters, as eth1"
        try:
            re.compile(self.interface_regex)
        except re.error as error:
            yield "underlay.interfaceRegex", f"{self.interface_regex!r} is no regular expression: {error}"
        try:
            families = [family_of(target) for target in self.targets]
        except ConfigError as error:
            yield "underlay.canReach", str(error)
        else:
            if len(set(families)) != len(families):
                yield "underlay.canReach", "more than one address of a family"
        try:
            list(self.prefixes)
        except ConfigError as error:
            yield "underlay.cidrs", str(error)
