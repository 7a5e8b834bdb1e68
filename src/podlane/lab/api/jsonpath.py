"""The JSONPath of printer columns: .spec.size, .conditions[?(@.type=="Ready")].status, .a['b.c'][0]."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from podlane.errors import ConfigError

_STEP = re.compile(
    r"""\.(?P<name>(?:[^.\[\]\\]|\\.)+)
      | \[\s*(?P<index>-?\d+)\s*\]
      | \[\s*(?P<all>\*)\s*\]
      | \[\s*(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\s*\]
      | \[\?\(\s*@\.(?P<key>[\w./-]+)\s*(?P<operator>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[\w.-]+)\s*\)\]""",
    re.VERBOSE,
)

Step = Callable[[Any], list[Any]]


def _named(name: str) -> Step:
    def step(value: Any) -> list[Any]:
        if name == "*":
            found = value.values() if isinstance(value, dict) else value
            return list(found) if isinstance(value, dict | list) else []
        return [value[name]] if isinstance(value, dict) and name in value else []

    return step


def _indexed(index: int) -> Step:
    def step(value: Any) -> list[Any]:
        fits = isinstance(value, list) and -len(value) <= index < len(value)
        return [value[index]] if fits else []

    return step


def _every(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []


def _filtered(key: str, wanted: str, equal: bool) -> Step:
    def step(value: Any) -> list[Any]:
        def at(element: Any) -> Any:
            for part in key.split("."):
                element = element.get(part) if isinstance(element, dict) else None
            return element

        return [v for v in _every(value) if (_text(at(v)) == wanted) is equal]

    return step


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


@cache
def compile_path(path: str) -> tuple[Step, ...]:
    """Raises ConfigError on what it cannot read."""
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = text.removeprefix("$")
    if text and text[0] not in ".[":
        text = "." + text
    steps: list[Step] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise ConfigError(f"JSONPath {path!r}: cannot read {text[position:]!r}")
        if match["name"] is not None:
            steps.append(_named(re.sub(r"\\(.)", r"\1", match["name"])))
        elif match["index"] is not None:
            steps.append(_indexed(int(match["index"])))
        elif match["all"] is not None:
            steps.append(_every)
        elif match["quoted"] is not None:
            steps.append(_named(match["quoted"]))
        else:
            steps.append(_filtered(match["key"], match["value"].strip("'\""), match["operator"] == "=="))
        position = match.end()
    return tuple(steps)


def find(value: Any, path: str) -> list[Any]:
    """Every value at a path."""
    found = [value]
    for step in compile_path(path):
        found = [result for one in found for result in step(one)]
    return found
