"""Label selectors: which objects are meant, by their labels.

Two spellings, one meaning (k8s.io/apimachinery pkg/labels and metav1.LabelSelector):

    parse("app=web,tier in (a, b),!canary")             of URLs, kubectl -l and status.selector
    from_dict({"matchLabels": {...}, "matchExpressions": [...]})     of specs
    from_labels({"app": "web"})                         of Service and ReplicationController

An empty selector means everything; where a LabelSelector is absent (None) it means nothing. Callers for
whom an empty map means something else (a Service without selector) decide that before they come here.
Every function here is pure and raises ConfigError naming the requirement at fault.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from podlane.errors import ConfigError


class Operator(enum.StrEnum):
    """The value is what the API writes in matchExpressions; GT and LT occur in strings and node affinity."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


_SETS = (Operator.IN, Operator.NOT_IN)
_PRESENCE = (Operator.EXISTS, Operator.DOES_NOT_EXIST)
_ORDER = (Operator.GT, Operator.LT)

_NAME = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)", re.ASCII)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


class Requirement(msgspec.Struct, frozen=True, gc=False):
    """One condition on one label. values is sorted and without doubles; empty for Exists and DoesNotExist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.DOES_NOT_EXIST:
                return value is None
            case Operator.GT | Operator.LT:
                if value is None or not _INTEGER.fullmatch(value):
                    return False
                bound = int(self.values[0])
                return int(value) > bound if self.operator is Operator.GT else int(value) < bound

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case Operator.GT:
                return f"{self.key}>{self.values[0]}"
            case Operator.LT:
                return f"{self.key}<{self.values[0]}"
            case Operator.IN if len(self.values) == 1:
                return f"{self.key}={self.values[0]}"
            case _:
                word = "in" if self.operator is Operator.IN else "notin"
                return f"{self.key} {word} ({','.join(self.values)})"


class Selector(msgspec.Struct, frozen=True, gc=False):
    """All requirements must hold. nothing: of an absent LabelSelector, which matches no object."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        if self.nothing:
            return False
        present = labels or {}
        return all(r.matches(present) for r in self.requirements)

    @property
    def empty(self) -> bool:
        """It matches every object."""
        return not self.requirements and not self.nothing

    def __str__(self) -> str:
        """What `parse` reads back as an equal selector (but for `nothing`, which has no spelling)."""
        return ",".join(map(str, self.requirements))


EVERYTHING = Selector()
NOTHING = Selector(nothing=True)


def check_key(key: object, where: str) -> str:
    """A label key: an optional DNS subdomain and '/', then a name of at most 63 characters."""
    if isinstance(key, str):
        prefix, slash, name = key.rpartition("/")
        if _NAME.fullmatch(name) and (
            not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix) is not None)
        ):
            return key
    raise ConfigError(
        f"{where}: {key!r} is not a label key: write name or example.com/name, the name of at most 63 "
        "letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    )


def check_value(value: object, where: str) -> str:
    """A label value: empty, or at most 63 characters."""
    if isinstance(value, str) and _VALUE.fullmatch(value):
        return value
    raise ConfigError(
        f"{where}: {value!r} is not a label value: write at most 63 letters, digits, '-', '_' and '.', "
        "beginning and ending with a letter or digit"
    )


def _unknown_operator(operator: object, where: str) -> ConfigError:
    usable = ", ".join(o for o in Operator if o not in _ORDER)
    return ConfigError(f"{where}: {operator!r} is not a valid label selector operator; use {usable}")


def requirement(key: object, operator: object, values: Iterable[object], where: str) -> Requirement:
    """A checked requirement. where: the path or text to name in errors."""
    try:
        known = Operator(str(operator))
    except ValueError:
        raise _unknown_operator(operator, where) from None
    name = check_key(key, where)
    found = tuple(sorted({check_value(v, where) for v in values}))
    if known in _SETS and not found:
        raise ConfigError(f"{where}: operator {known} needs at least one value")
    if known in _PRESENCE and found:
        raise ConfigError(f"{where}: operator {known} takes no values")
    if known in _ORDER and (len(found) != 1 or not _INTEGER.fullmatch(found[0])):
        raise ConfigError(f"{where}: operator {known} needs one integer")
    return Requirement(name, known, found)


def _selector(requirements: Iterable[Requirement]) -> Selector:
    """In canonical order, so that equal meanings compare equal."""
    return Selector(tuple(sorted(set(requirements), key=lambda r: (r.key, r.operator.value, r.values))))


def from_labels(labels: Mapping[str, str] | None, where: str = "selector") -> Selector:
    """Equality with each of these labels. Without labels: everything."""
    return _selector(
        requirement(key, Operator.IN, (value,), f"{where}[{key!r}]") for key, value in (labels or {}).items()
    )


def from_dict(selector: Mapping[str, Any] | None, where: str = "selector") -> Selector:
    """A metav1.LabelSelector. None: nothing; {}: everything."""
    if selector is None:
        return NOTHING
    if not isinstance(selector, Mapping):
        raise ConfigError(f"{where}: expected a LabelSelector, found {type(selector).__name__}")
    if unknown := sorted(set(selector) - {"matchLabels", "matchExpressions"}):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; use matchLabels and matchExpressions")
    found = list(from_labels(selector.get("matchLabels"), f"{where}.matchLabels").requirements)
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        place = f"{where}.matchExpressions[{index}]"
        if not isinstance(expression, Mapping):
            raise ConfigError(f"{place}: expected key, operator and values")
        operator = expression.get("operator")
        if operator in _ORDER:
            raise _unknown_operator(str(operator), place)
        found.append(requirement(expression.get("key"), operator, expression.get("values") or (), place))
    return _selector(found)


# --- strings --------------------------------------------------------------------------------------
#   selector    = [ requirement *( "," requirement ) ]
#   requirement = [ "!" ] key | key ( "=" | "==" | "!=" | ">" | "<" ) value | key ( "in" | "notin" ) set
#   set         = "(" value *( "," value ) ")"                      a value may be empty

_TOKEN = re.compile(r"\s*(==|!=|[=!<>(),]|[^\s=!<>(),]+)", re.ASCII)
_SYMBOLS = frozenset({"==", "!=", "=", "!", "<", ">", "(", ")", ","})
_COMPARISONS = {
    "=": Operator.IN,
    "==": Operator.IN,
    "!=": Operator.NOT_IN,
    ">": Operator.GT,
    "<": Operator.LT,
}
_WORDS = {"in": Operator.IN, "notin": Operator.NOT_IN}


class _Tokens:
    """The text's tokens with one of lookahead; "" is the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: Iterator[str] = (m.group(1) for m in _TOKEN.finditer(text))
        self.next = next(self._tokens, "")

    def take(self) -> str:
        token, self.next = self.next, next(self._tokens, "")
        return token

    def word(self) -> str:
        """A key or value, which may be absent: ""."""
        return "" if self.next in _SYMBOLS else self.take()

    def expect(self, *wanted: str) -> str:
        if self.next not in wanted:
            shown = " or ".join(repr(w) if w else "the end" for w in wanted)
            found = repr(self.next) if self.next else "the end"
            raise ConfigError(f"label selector {self._text!r}: found {found}, expected {shown}")
        return self.take()


def parse(text: str) -> Selector:
    """The string form. "" is everything."""
    tokens = _Tokens(text)
    found: list[Requirement] = []
    if not tokens.next:
        return EVERYTHING
    while True:
        found.append(_requirement(tokens, f"label selector {text!r}"))
        if not tokens.expect(",", ""):
            return _selector(found)


def _requirement(tokens: _Tokens, where: str) -> Requirement:
    if tokens.next == "!":
        tokens.take()
        return requirement(tokens.word(), Operator.DOES_NOT_EXIST, (), where)
    key = tokens.word()
    if tokens.next in ("", ","):
        return requirement(key, Operator.EXISTS, (), where)
    word = tokens.expect(*_COMPARISONS, *_WORDS)
    if word in _COMPARISONS:
        return requirement(key, _COMPARISONS[word], (tokens.word(),), where)
    tokens.expect("(")
    values = [tokens.word()]
    while tokens.expect(",", ")") == ",":
        values.append(tokens.word())
    return requirement(key, _WORDS[word], values, where)
