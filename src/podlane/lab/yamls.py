"""YAML as kubectl reads it: go-yaml's scalars (a YAML 1.1 of its own), then JSON. Pure.

What differs from PyYAML: y and n are booleans; 22:22 and 2024-01-01 are strings; 1e3 is a number, and so is
a hexadecimal, octal (0644, 0o644) or binary integer; keys become strings. A key given twice is an error, as
the second would silently win. Source: sigs.k8s.io/yaml (YAMLToJSONStrict), goyaml.v2/resolve.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

MAX_NODES = 1_000_000
"""Of one document, aliases followed: a document that grows beyond is refused."""
MAX_DEPTH = 100

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: dict[str, Any] = {
    **{word: True for w in ("y", "yes", "true", "on") for word in (w, w.capitalize(), w.upper())},
    **{word: False for w in ("n", "no", "false", "off") for word in (w, w.capitalize(), w.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Problem(NamedTuple):
    """path: of the field, "" for the document; line: in the file, from 1."""

    path: str
    line: int
    text: str


class Document(NamedTuple):
    """number: from 1, empty documents counted. value: as JSON would hold it; None for an empty document."""

    number: int
    value: Any
    problems: list[Problem]


def documents(text: str) -> Iterator[Document]:
    """Every document of a stream. What is no YAML is the problem of its document, and the last."""
    loader = _LOADER(text)
    number = 0
    try:
        while True:
            number += 1
            try:
                if not loader.check_node():
                    return
                node = loader.get_node()
            except yaml.MarkedYAMLError as error:
                mark = error.problem_mark or error.context_mark
                why = " ".join(str(error.problem or error.context or error).split())
                yield Document(number, None, [Problem("", mark.line + 1 if mark else 0, f"not YAML: {why}")])
                return
            except (yaml.YAMLError, RecursionError) as error:
                why = " ".join(str(error).split())
                yield Document(number, None, [Problem("", 0, f"not YAML: {why}")])
                return
            builder = _Builder()
            yield Document(number, builder.value(node, "", 0), builder.problems)
    finally:
        loader.dispose()


class _Builder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._nodes = 0

    def _problem(self, node: Any, path: str, text: str) -> None:
        self.problems.append(Problem(path, node.start_mark.line + 1, text))

    def value(self, node: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            if self._nodes == MAX_NODES + 1 or depth == MAX_DEPTH + 1:
                limit = f"{MAX_NODES} values" if self._nodes > MAX_NODES else f"{MAX_DEPTH} levels"
                self._problem(node, path, f"the document has more than {limit} (aliases count each time)")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            self._problem(node, path, f"unknown tag {node.tag}")
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        return self._mapping(node, path, depth)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == "<<" and not key_node.style:
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    if isinstance(source, yaml.MappingNode):
                        merged = {**self._mapping(source, path, depth + 1), **merged}
                    else:
                        self._problem(value_node, path, "`<<` merges mappings only")
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key is a mapping or a list; keys are strings")
                continue
            key = _key(self._scalar(key_node, path))
            here = f"{path}.{key}" if path else key
            line: int = key_node.start_mark.line + 1
            if key in lines:
                self._problem(key_node, here, f"is given twice (first in line {lines[key]})")
                continue
            lines[key] = line
            found[key] = self.value(value_node, here, depth + 1)
        return {**merged, **found} if merged else found

    def _scalar(self, node: Any, path: str) -> Any:
        text: str = node.value
        if node.tag == "tag:yaml.org,2002:str" and (node.style or text in _PLAIN_STRINGS):
            return text
        if node.tag == "tag:yaml.org,2002:binary":
            return text
        if node.style in ("'", '"', "|", ">"):
            return text
        if node.tag.startswith("!") or node.tag not in _TAGS:
            self._problem(node, path, f"unknown tag {node.tag}")
            return None
        if _NOT_JSON.fullmatch(text):
            self._problem(node, path, f"{text} cannot be written in JSON; quote it if it is a string")
            return None
        return plain(text)


_COLLECTIONS = frozenset(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"))
_PLAIN_STRINGS = frozenset(("=",))
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)


def plain(text: str) -> Any:
    """The value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    digits = text.replace("_", "") if text[:1] not in ("_", "") else text
    if _INTEGER.fullmatch(digits):
        sign = -1 if digits[0] == "-" else 1
        body = digits.lstrip("+-")
        octal = len(body) > 1 and body[0] == "0" and body[1].isdigit()
        number = sign * (int(body, 8) if octal else int(body, 0))
        return number if -(1 << 63) <= number < 1 << 64 else float(number)
    if _FLOAT.fullmatch(digits):
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            return text
        # Go writes whole numbers without a point, and a port of 8e1 is 80.
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    return text


def _key(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Dumper(yaml.SafeDumper):
    pass


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Quoted where an unquoted scalar would be read as something else (y, 1e3); blocks for several lines."""
    style = "|" if "\n" in text else None if plain(text) == text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def dump(objects: list[Any]) -> str:
    """Several documents, keys in their order; read back by `documents` they are the same."""
    text: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
