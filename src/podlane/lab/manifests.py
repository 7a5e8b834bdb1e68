"""Reads what `-f` names: files, directories, URLs of this machine and standard input; YAML or JSON.

Every problem names file, document, object and field. `load` refuses the whole input over one of them (what a
lab is brought up with), `read` gives what is good and what is not (apply: the rest goes on).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from podlane.errors import ConfigError
from podlane.lab import legacy, yamls
from podlane.lab.client import Obj

MAX_INPUT_BYTES = 64 << 20
MAX_OBJECT_BYTES = 3 << 20
"""Of one object as JSON: the request limit of the API server."""

_SUFFIXES = (".yaml", ".yml", ".json")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MIB = 1 << 20

Note = Callable[[str], None]


class Manifest(NamedTuple):
    """One object. where: "web.yaml: document 2", for messages."""

    where: str
    object: Obj

    @property
    def title(self) -> str:
        """`web.yaml: document 2: Service web`"""
        return f"{self.where}: {describe(self.object)}"

    def message(self, text: str) -> str:
        """text with where the object is written, and its kind and name unless text says them."""
        said = re.search(
            rf'{self.object["kind"]}\S* "{re.escape(self.object["metadata"].get("name") or "")}"', text
        )
        return f"{self.where if said else self.title}: {text}"


def describe(obj: Obj) -> str:
    """`Service shop/web`, as far as the object tells."""
    meta = obj.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    name = meta.get("name") or f"{meta.get('generateName', '')}..."
    namespace = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{obj.get('kind', 'object')} {namespace}{name}"


def load(files: Iterable[str], note: Note = lambda _: None, *, validate: bool = True) -> list[Manifest]:
    """Every object of `files`, in order. note: is told what was converted. validate: by the API's rules.

    Raises ConfigError with every problem of the input, one a line; then nothing of it is to be used.
    """
    manifests, errors = read(files, note)
    if validate:
        from podlane.lab import prevalidation

        for i, problem in prevalidation.problems([m.object for m in manifests]):
            errors.append(ConfigError(manifests[i].message(problem)))
    if errors:
        raise ConfigError("\n".join(map(str, errors)))
    return manifests


def read(files: Iterable[str], note: Note = lambda _: None) -> tuple[list[Manifest], list[ConfigError]]:
    """(the objects without fault, the faults). Of two objects of one name neither is returned."""
    manifests: list[Manifest] = []
    errors: list[ConfigError] = []
    for name, text in _sources(files, errors):
        for manifest, problems in _objects(name, text):
            found = list(problems)
            if not found and manifest is not None:
                try:
                    converted = legacy.convert(manifest.object)
                except ConfigError as error:
                    errors.append(ConfigError(f"{manifest.title}: {error}"))
                    continue
                for line in converted.notes:
                    note(f"{manifest.title}: {line}")
                manifests.append(manifest._replace(object=converted.object))
            errors += [ConfigError(p) for p in found]
    return _distinct(manifests, errors), errors


def _distinct(manifests: list[Manifest], errors: list[ConfigError]) -> list[Manifest]:
    by_identity: dict[tuple[str, ...], list[Manifest]] = {}
    for manifest in manifests:
        obj = manifest.object
        meta = obj["metadata"]
        if name := meta.get("name"):
            group = obj["apiVersion"].rpartition("/")[0]
            key = (group, obj["kind"], meta.get("namespace") or "default", name)
            by_identity.setdefault(key, []).append(manifest)
    twice = [same for same in by_identity.values() if len(same) > 1]
    for first, *others in twice:
        for other in others:
            errors.append(ConfigError(f"{other.title}: metadata.name: already used by {first.where}"))
    faulty = {id(m.object) for same in twice for m in same}
    return [m for m in manifests if id(m.object) not in faulty]


# --- objects of a text ----------------------------------------------------------------------------


def _objects(name: str, text: str) -> Iterator[tuple[Manifest | None, list[str]]]:
    for document in yamls.documents(text):
        where = f"{name}: document {document.number}"
        value = document.value
        if document.problems:
            title = f"{where}: {describe(value)}" if isinstance(value, dict) and value.get("kind") else where
            yield None, [f"{title}: {_problem(p)}" for p in document.problems]
        elif value is not None:
            yield from _expanded(where, value)


def _problem(problem: yamls.Problem) -> str:
    place = f" (line {problem.line})" if problem.line else ""
    return f"{problem.path}: {problem.text}{place}" if problem.path else f"{problem.text}{place}"


def _expanded(where: str, value: Any) -> Iterator[tuple[Manifest | None, list[str]]]:
    """`kind: List`, and typed lists as kubectl prints them, are their items."""
    if (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and value["kind"].endswith("List")
        and "items" in value
    ):
        items = value["items"]
        if not isinstance(items, list):
            yield None, [f"{where}: {value['kind']}: items: expected a list, found {_word(items)}"]
            return
        for i, item in enumerate(items):
            if value["kind"] != "List" and isinstance(item, dict):
                item = {"apiVersion": value.get("apiVersion"), "kind": value["kind"][:-4], **item}
            yield from _expanded(f"{where}, items[{i}]", item)
        return
    problems = [f"{where}: {p}" for p in _shape(value)]
    yield (None if problems else Manifest(where, value)), problems


def _shape(value: Any) -> Iterator[str]:
    """What is wrong with the parts every object has."""
    if not isinstance(value, dict):
        yield f"expected an object (apiVersion, kind, metadata), found {_word(value)}"
        return
    for key in ("apiVersion", "kind"):
        if not isinstance(value.get(key), str) or not value[key]:
            found = f"expected a string, found {_word(value[key])}" if value.get(key) else "is missing"
            yield f"{describe(value)}: {key}: {found}"
    meta = value.get("metadata")
    if not isinstance(meta, dict):
        yield f"{describe(value)}: metadata: " + (
            "is missing" if meta is None else f"expected a mapping, found {_word(meta)}"
        )
        return
    for key in ("name", "namespace", "generateName"):
        if meta.get(key) is not None and not isinstance(meta[key], str):
            yield f"{describe(value)}: metadata.{key}: expected a string, found {_word(meta[key])}; quote it"
            return
    if not meta.get("name") and not meta.get("generateName"):
        yield f"{describe(value)}: metadata.name: is missing"
    size = len(msgspec.json.encode(value))
    if size > MAX_OBJECT_BYTES:
        path, part = largest(value)
        yield (
            f"{describe(value)}: {path}: {part / _MIB:.1f} MiB here of {size / _MIB:.1f} MiB in all; "
            f"an object may have {MAX_OBJECT_BYTES // _MIB} MiB"
        )


def largest(value: Any) -> tuple[str, int]:
    """(path, bytes as JSON) of the deepest field that makes up most of value."""
    path, size = "", len(msgspec.json.encode(value))
    while isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        key, part = max(parts, key=lambda kv: len(msgspec.json.encode(kv[1])))
        part_size = len(msgspec.json.encode(part))
        if part_size * 2 < size:
            break
        path = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
        value, size = part, part_size
    return path or "object", size


def _word(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a string"


# --- where texts come from ------------------------------------------------------------------------


def _sources(files: Iterable[str], errors: list[ConfigError]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            for name, data in _bytes_of(file):
                if len(data) > MAX_INPUT_BYTES:
                    raise ConfigError(
                        f"{name}: {len(data) / _MIB:.1f} MiB; a file may have {MAX_INPUT_BYTES // _MIB} MiB"
                    )
                try:
                    yield name, data.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise ConfigError(f"{name}: not YAML: byte {error.start} is not UTF-8") from None
        except ConfigError as error:
            errors.append(error)


def _bytes_of(file: str) -> Iterator[tuple[str, bytes]]:
    if file == "-":
        yield "standard input", sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        return
    url = urlsplit(file)
    if url.scheme == "file":
        if url.netloc not in ("", "localhost"):
            raise ConfigError(f"{file}: names another host; use file:///PATH")
        file = unquote(url.path)
    elif url.scheme in ("http", "https"):
        yield file, _fetch(file, url.hostname or "")
        return
    path = Path(file)
    try:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
            if not inside:
                raise ConfigError(f"{file}: no manifests here ({', '.join('*' + s for s in _SUFFIXES)})")
            for p in inside:
                yield str(p), _limited(p)
        else:
            yield file, _limited(path)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _limited(path: Path) -> bytes:
    """One byte more than the limit at most: a device or a huge file does not fill the memory."""
    with path.open("rb") as stream:
        return stream.read(MAX_INPUT_BYTES + 1)


def _fetch(url: str, host: str) -> bytes:
    if host not in _LOOPBACK:
        raise ConfigError(
            f"{url}: only URLs of this machine are read ({', '.join(_LOOPBACK)}); download it first"
        )
    import urllib.error
    import urllib.request

    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            data: bytes = answer.read(MAX_INPUT_BYTES + 1)
            return data
    except (urllib.error.URLError, OSError) as error:
        raise ConfigError(f"{url}: {getattr(error, 'reason', error)}") from None
