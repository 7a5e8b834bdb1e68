"""A ruleset as plain values: what there is, what shall be, and the messages from the one to the other. Pure.

An `Image` has the sets, their elements and the chains of the tables of one name, one table a family. The
messages of one `Changes` are a transaction: in the order that references need, so that what is
named is there before it is named, and is gone only when nobody names it any more.

A rule is known again by its comment, which ends in a digest of its expressions: the kernel's own listing of
them is not what was sent. A chain whose rules are not the wanted ones is emptied and filled again in the
same transaction, so that no packet meets it half.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from podlane.kernel import netlink
from podlane.kernel.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Request,
    attribute,
    attribute_list,
    attributes,
    be32,
    nested,
    text,
    unpack_text,
)
from podlane.kernel.nft import codec
from podlane.kernel.nft.codec import SUBSYSTEM, Element, TableFamily, header

_NEW_TABLE, _DELETE_TABLE = SUBSYSTEM << 8 | 0, SUBSYSTEM << 8 | 2
_NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN = SUBSYSTEM << 8 | 3, SUBSYSTEM << 8 | 4, SUBSYSTEM << 8 | 5
_NEW_RULE, _GET_RULE, _DELETE_RULE = SUBSYSTEM << 8 | 6, SUBSYSTEM << 8 | 7, SUBSYSTEM << 8 | 8
_NEW_SET, _DELETE_SET = SUBSYSTEM << 8 | 9, SUBSYSTEM << 8 | 11

INTERVAL, MAP, CONCATENATION = 0x4, 0x8, 0x80  # NFT_SET_*
_VERDICTS: Final = 0xFFFFFF00  # NFT_DATA_VERDICT
_TYPE_BITS: Final = 6  # of nft's number of a concatenation's type, for each of its fields
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT
_SET_BYTE_ORDER, _SET_COMMENT = 0, 7  # NFTNL_UDATA_SET_KEYBYTEORDER, _COMMENT
_HOST_ORDER: Final = 1
_COMMENT_BYTES: Final = 127
_DIGEST: Final = 12

Place: TypeAlias = tuple[TableFamily, str]
"""The table of a family, and the name of a set or chain in it."""

ElementId: TypeAlias = tuple[bytes, bytes, int]


class Field(NamedTuple):
    """A part of a key. type: nft's number of it, for its listings; size: in bytes; text: it is one."""

    type: int
    size: int
    text: bool = False


class SetSpec(NamedTuple):
    """verdicts: it is a map to verdicts. intervals: elements may be ranges. comment: for people."""

    key: tuple[Field, ...]
    verdicts: bool = False
    intervals: bool = False
    comment: str = ""


class Hook(NamedTuple):
    """Where a base chain is: the number of the hook in its family, and its place among others there."""

    number: int
    priority: int


class Rule(NamedTuple):
    comment: str
    expressions: bytes = b""


class Chain(NamedTuple):
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None

    @property
    def comments(self) -> tuple[str, ...]:
        return tuple(rule.comment for rule in self.rules)


def plain(shown: str) -> str:
    """As a listing of nft's shows it, and reads it again: printable ASCII, and nothing that would end its
    quotation marks. The one place where objects' names and labels become text of a ruleset."""
    return "".join(each if " " <= each <= "~" and each not in '"\\' else "?" for each in shown)


def rule(comment: str, *expressions: bytes) -> Rule:
    """A comment that is too long loses its middle."""
    comment = plain(comment)
    whole = b"".join(expressions)
    digest = hashlib.sha256(whole).hexdigest()[:_DIGEST]
    room = _COMMENT_BYTES - _DIGEST - 2
    shown = comment if len(comment) <= room else f"{comment[: room - 40]}..{comment[-38:]}"
    return Rule(f"{shown} #{digest}", whole)


def id_of(element: Element) -> ElementId:
    return element.key, element.last, element.flags


class Image:
    def __init__(self) -> None:
        self.sets: dict[Place, SetSpec] = {}
        self.chains: dict[Place, Chain] = {}
        self.elements: dict[Place, dict[ElementId, Element]] = {}


class Changes:
    """(old, new) by place; None for what is not there."""

    def __init__(self) -> None:
        self.sets: dict[Place, tuple[SetSpec | None, SetSpec | None]] = {}
        self.chains: dict[Place, tuple[Chain | None, Chain | None]] = {}
        self.elements: dict[Place, dict[ElementId, tuple[Element | None, Element | None]]] = {}

    def __len__(self) -> int:
        return len(self.sets) + len(self.chains) + sum(map(len, self.elements.values()))


def difference(desired: Image, actual: Image) -> Changes:
    """What makes `actual` into `desired`."""
    changes = Changes()
    for place in desired.sets.keys() | actual.sets.keys():
        new = desired.sets.get(place)
        if (place in actual.sets) != (new is not None):
            changes.sets[place] = actual.sets.get(place), new
    for place in desired.chains.keys() | actual.chains.keys():
        before, after = actual.chains.get(place), desired.chains.get(place)
        if before is None or after is None or before.comments != after.comments:
            changes.chains[place] = before, after
    for place in desired.elements.keys() | actual.elements.keys():
        old, wanted = actual.elements.get(place, {}), desired.elements.get(place, {})
        found = {
            each: (old.get(each), wanted.get(each))
            for each in old.keys() | wanted.keys()
            if old.get(each) != wanted.get(each)
        }
        spec = desired.sets.get(place) or actual.sets.get(place)
        if found and spec is not None and spec.intervals:
            # Ends belong to starts: an interval set goes and comes as a whole.
            found = {each: (old.get(each), wanted.get(each)) for each in (*old, *wanted)}
        if found:
            changes.elements[place] = found
    return changes


# --- messages -------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A message of a transaction, and what it is about; None for a table."""

    request: Request
    place: Place | None = None


def steps(table: str, changes: Changes, specs: Mapping[Place, SetSpec]) -> list[Step]:
    """specs: of all sets there are, before or after."""
    new_sets = {place: new for place, (_, new) in changes.sets.items() if new is not None}
    dead_sets = [place for place, (_, new) in changes.sets.items() if new is None]
    dead_chains = [place for place, (_, new) in changes.chains.items() if new is None]
    living = {p: e for p, e in changes.elements.items() if p not in dead_sets}  # others go with their set
    maps = {p: e for p, e in living.items() if specs[p].verdicts}
    whole = {p: e for p, e in living.items() if specs[p].intervals}
    plain = {p: e for p, e in living.items() if p not in maps and p not in whole}
    found = [Step(_add_set(table, p, spec, i), p) for i, (p, spec) in enumerate(new_sets.items(), 1)]
    found += [*_elements(table, whole, add=False), *_elements(table, whole, add=True)]
    found += _elements(table, plain, add=True)
    for place, (old, new) in changes.chains.items():
        if old is None and new is not None:
            found.append(Step(_add_chain(table, place, new), place))
    for place, (old, new) in changes.chains.items():
        if old is not None and old.rules:
            found.append(Step(_empty_chain(table, place), place))
        found += [Step(_add_rule(table, place, each), place) for each in (new.rules if new else ())]
    found += [*_elements(table, maps, add=False), *_elements(table, maps, add=True)]
    found += _elements(table, plain, add=False)
    found += [Step(_named(_DELETE_CHAIN, 3, "delete chain", table, place), place) for place in dead_chains]
    found += [Step(_named(_DELETE_SET, 2, "delete set", table, place), place) for place in dead_sets]
    return found


def add_table(family: TableFamily, table: str) -> Step:
    body = header(family) + attribute(1, text(table))
    return Step(Request(_NEW_TABLE, NLM_F_CREATE, body, f"add table {family.nft} {table}"))


def delete_table(family: TableFamily, table: str) -> Step:
    """With all that is in it."""
    body = header(family) + attribute(1, text(table))
    return Step(Request(_DELETE_TABLE, 0, body, f"delete table {family.nft} {table}"))


def _elements(
    table: str,
    changes: Mapping[Place, Mapping[ElementId, tuple[Element | None, Element | None]]],
    *,
    add: bool,
) -> Iterator[Step]:
    for place, found in changes.items():
        elements = map(codec.pack_element, filter(None, (pair[add] for pair in found.values())))
        for request in codec.change(place[0], table, place[1], elements, add=add):
            yield Step(request, place)


def _add_set(table: str, place: Place, spec: SetSpec, number: int) -> Request:
    family, name = place
    type_, flags = 0, (INTERVAL if spec.intervals else 0) | (MAP if spec.verdicts else 0)
    sizes = [each.size + (-each.size & 3) for each in spec.key]
    for each in spec.key:
        type_ = type_ << _TYPE_BITS | each.type
    description = b""
    if len(spec.key) > 1 and spec.intervals:
        flags |= CONCATENATION
        description = nested(9, nested(2, *(nested(1, attribute(1, be32(e.size))) for e in spec.key)))
    size = sum(sizes) if len(spec.key) > 1 else spec.key[0].size
    body = header(family) + attribute(1, text(table)) + attribute(2, text(name))
    body += attribute(3, be32(flags)) + attribute(4, be32(type_)) + attribute(5, be32(size))
    if spec.verdicts:
        body += attribute(6, be32(_VERDICTS)) + attribute(7, be32(0))
    body += description + attribute(10, be32(number))
    user_data = b""
    if len(spec.key) == 1 and spec.key[0].text:
        user_data += bytes([_SET_BYTE_ORDER, 4]) + struct.pack("=I", _HOST_ORDER)
    if spec.comment:
        user_data += _user_data(_SET_COMMENT, spec.comment)
    if user_data:
        body += attribute(13, user_data)
    return Request(_NEW_SET, NLM_F_CREATE, body, f"add set {family.nft} {table} {name}")


def _add_chain(table: str, place: Place, chain: Chain) -> Request:
    family, name = place
    body = header(family) + attribute(1, text(table)) + attribute(3, text(name))
    if chain.hook is not None:
        hook = attribute(1, be32(chain.hook.number)) + attribute(
            2, chain.hook.priority.to_bytes(4, "big", signed=True)
        )
        body += nested(4, hook) + attribute(5, be32(1)) + attribute(7, text("filter"))
    return Request(_NEW_CHAIN, NLM_F_CREATE, body, f"add chain {family.nft} {table} {name}")


def _add_rule(table: str, place: Place, each: Rule) -> Request:
    family, name = place
    body = header(family) + attribute(1, text(table)) + attribute(2, text(name))
    body += nested(4, each.expressions) + attribute(7, _user_data(_COMMENT, each.comment))
    return Request(_NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, body, f"add rule {family.nft} {table} {name}")


def _empty_chain(table: str, place: Place) -> Request:
    """Deletes all rules: it names no rule."""
    return _named(_DELETE_RULE, 2, "empty chain", table, place)


def _named(kind: int, name_attribute: int, verb: str, table: str, place: Place) -> Request:
    family, name = place
    body = header(family) + attribute(1, text(table)) + attribute(name_attribute, text(name))
    return Request(kind, 0, body, f"{verb} {family.nft} {table} {name}")


def _user_data(kind: int, comment: str) -> bytes:
    """libnftnl's: type, length, value."""
    value = text(plain(comment)[:_COMMENT_BYTES])
    return bytes([kind, len(value)]) + value


# --- dumps ----------------------------------------------------------------------------------------


def get_chains(family: TableFamily) -> Request:
    """A dump of the chains of all tables of a family: the kernel knows no narrower one."""
    return Request(_GET_CHAIN, 0, header(family), f"list chains: {family.nft}")


def unpack_chain(message: Message) -> tuple[str, str]:
    """(table, chain)"""
    found = attributes(message.body, 4)
    return unpack_text(found.get(1, b"")), unpack_text(found.get(3, b""))


def get_rules(family: TableFamily, table: str) -> Request:
    body = header(family) + attribute(1, text(table))
    return Request(_GET_RULE, 0, body, f"list rules: {family.nft} {table}")


def unpack_rule(message: Message) -> tuple[str, str, Rule]:
    """(table, chain, the rule without its expressions). The comment of a foreign rule is ""."""
    found = attributes(message.body, 4)
    comment = ""
    user = found.get(7, b"")
    if len(user) > 2 and user[0] == _COMMENT:
        comment = netlink.unpack_text(user[2 : 2 + user[1]])
    return unpack_text(found.get(1, b"")), unpack_text(found.get(2, b"")), Rule(comment)


def unpack_counter(message: Message) -> tuple[int, int] | None:
    """(packets, bytes) of a rule's counter; None for a rule without. Of several, the first."""
    for _, each in attribute_list(attributes(message.body, 4).get(4, b"")):  # NFTA_RULE_EXPRESSIONS
        found = attributes(each)
        if unpack_text(found.get(1, b"")) == "counter":  # NFTA_EXPR_NAME
            counts = attributes(found.get(2, b""))
            return int.from_bytes(counts.get(2, b""), "big"), int.from_bytes(counts.get(1, b""), "big")
    return None
