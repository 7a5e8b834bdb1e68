"""Volumes: what they hold, and how it gets to disk."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from podlane.lab.runtime import volumes
from podlane.lab.runtime.volumes import Directory, File, Files, HostPath, VolumeMissing

POD = {"metadata": {"name": "p", "namespace": "shop", "uid": "u", "labels": {"a": "b"}}, "spec": {}}
OBJECTS = {
    ("configmaps", "cm"): {"data": {"k": "v", "l": "w"}},
    ("secrets", "s"): {"data": {"p": base64.b64encode(b"hush").decode()}},
    ("configmaps", "kube-root-ca.crt"): None,
}


def plan(**volume: object) -> volumes.Plan:
    return volumes.plan({"name": "v", **volume}, POD, OBJECTS, "tok", "ca")


def test_kinds():
    assert plan(emptyDir={}) == Directory()
    assert plan(emptyDir={"medium": "Memory", "sizeLimit": "1Mi"}) == Directory(True, 1 << 20)
    assert plan(hostPath={"path": "/x", "type": "Directory"}) == HostPath("/x", "Directory")
    assert plan(configMap={"name": "cm"}) == Files((File("k", b"v"), File("l", b"w")))
    items = [{"key": "l", "path": "d/e", "mode": 0o600}]
    assert plan(configMap={"name": "cm", "items": items}) == Files((File("d/e", b"w", 0o600),))
    assert plan(secret={"secretName": "s", "defaultMode": 0o400}) == Files((File("p", b"hush", 0o400),))
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    assert plan(downwardAPI={"items": items}) == Files((File("labels", b'a="b"'),))
    claim = plan(persistentVolumeClaim={"claimName": "c"})
    assert isinstance(claim, Directory)
    assert "persistent volume claim" in claim.note


def test_projected_service_account():
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    found = plan(projected={"sources": sources})
    assert isinstance(found, Files)
    assert {f.path: f.data for f in found.files} == {"token": b"tok", "ca.crt": b"ca", "namespace": b"shop"}


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "no"}}, 'configmap "no" not found'),
        ({"secret": {"secretName": "no"}}, 'secret "no" not found'),
        (
            {"configMap": {"name": "cm", "items": [{"key": "x", "path": "x"}]}},
            'configmap "cm" references non-existent config key: x',
        ),
    ],
)
def test_what_is_missing_is_named_unless_optional(volume, message):
    with pytest.raises(VolumeMissing, match=message):
        plan(**volume)
    ((kind, source),) = volume.items()
    assert plan(**{kind: {**source, "optional": True}}) == Files(())


def test_references():
    spec = {
        "volumes": [
            {"name": "a", "configMap": {"name": "cm"}},
            {
                "name": "b",
                "projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "d"}}]},
            },
        ]
    }
    wanted = {("configmaps", "cm"), ("secrets", "s"), ("configmaps", "d")}
    assert volumes.references({**POD, "spec": spec}) == wanted


def test_an_update_is_seen_whole(tmp_path: Path):
    root = tmp_path / "v"
    assert volumes.write(root, [File("a", b"1"), File("d/b", b"2", 0o600)])
    assert (root / "a").read_bytes() == b"1"
    assert (root / "d/b").stat().st_mode & 0o777 == 0o600
    before = os.readlink(root / "..data")
    assert not volumes.write(root, [File("a", b"1"), File("d/b", b"2", 0o600)])
    with open(root / "a", "rb") as reader:
        assert volumes.write(root, [File("a", b"3"), File("c", b"4")])
        assert reader.read() == b"1"
    assert os.readlink(root / "..data") != before
    assert (root / "a").read_bytes() == b"3"
    assert sorted(e for e in os.listdir(root) if not e.startswith("..")) == ["a", "c"]
    assert len([e for e in os.listdir(root) if e.startswith("..2")]) == 1


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x"])
def test_no_file_leads_out(tmp_path: Path, path: str):
    with pytest.raises(ValueError, match="below the volume"):
        volumes.write(tmp_path / "v", [File(path, b"")])
