"""Manifests of any content: read without a crash, and written text reads back the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.errors import ConfigError
from podlane.lab import legacy, manifests, yamls

TRICKY = [
    "y",
    "no",
    "0x10",
    "1e3",
    "22:22",
    "~",
    "",
    " ",
    "=",
    "<<",
    "0o7",
    "2024-01-01",
    "a: b",
    "#",
    "- x",
    "\n",
    "é",
]
TEXTS = st.one_of(
    st.sampled_from(TRICKY), st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(-1e6, 1e6).map(lambda f: f + 0.5),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(TEXTS, v, max_size=3)),
    max_leaves=12,
)


def plain(value: Any) -> Any:
    """Whole floats come back as integers, as in Go's JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_what_is_written_reads_back(values: list[Any]) -> None:
    found = list(yamls.documents(yamls.dump(values)))
    assert [d.value for d in found] == [plain(v) for v in values]
    assert not any(d.problems for d in found)


@given(st.text("ab:-[]{},&*!|>'\"#%@`\n\t 01~?", max_size=60))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    """Of what PyYAML refuses as well, no value comes out."""
    found = list(yamls.documents(text))
    try:
        count = sum(1 for _ in yaml.compose_all(text, yaml.CSafeLoader))
    except yaml.YAMLError:
        assert any("not YAML" in p.text for p in found[-1].problems)
    else:
        assert len(found) == count


@given(
    VALUES,
    st.sampled_from(sorted({k for k, _ in legacy._RULES})),
    st.sampled_from(sorted({k for _, k in legacy._RULES})),
)
def test_any_object_is_converted_or_refused(spec: Any, version: str, kind: str) -> None:
    obj = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec, "endpoints": spec}
    try:
        new = legacy.convert(obj).object
    except ConfigError:
        return
    assert legacy.convert(new).object["apiVersion"] == new["apiVersion"]


@given(st.lists(VALUES, min_size=1, max_size=2))
@settings(max_examples=50)
def test_any_document_is_an_object_or_a_named_fault(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "any.yaml"
        path.write_text(yamls.dump(values))
        found, errors = manifests.read([str(path)])
    assert not found
    assert all(str(e).startswith(f"{path}: document ") for e in errors)
    assert bool(errors) == any(v is not None for v in values)
