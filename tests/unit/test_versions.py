"""What a newer podlane or Kubernetes has written: what is known of it is read, the rest left alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from podlane.compile import facts
from podlane.controller import definitions
from podlane.errors import ConfigError
from podlane.lab.api.crd import Definitions
from podlane.lab.api.registry import WriteOptions
from podlane.model import agents, config, pools
from podlane.model.objects import KINDS
from tests.unit.api_lab import registry

NEWER: dict[str, Any] = {"of": {"a": ["newer", 1, None]}, "version": True}


def test_an_announcement_with_more_in_it_is_read() -> None:
    text = json.dumps({"device": "eth0", "mtu": 1500, "addresses": ["172.30.1.1/24"], **NEWER})
    found = facts.told_underlay(text)
    assert found is not None
    assert (found.device, found.mtu_bytes) == ("eth0", 1500)
    for unreadable in ("", "{", "[]", '{"device": 7}', '{"device": "e", "mtu": 1, "addresses": ["x"]}'):
        assert facts.told_underlay(unreadable) is None


def test_what_an_agent_of_another_version_says_of_itself() -> None:
    found = agents.read(json.dumps({**NEWER, "version": "9.9", "backend": "quic"}))
    assert found is not None
    assert (found.version, found.backend) == ("9.9", "quic")


@pytest.mark.parametrize("kind", KINDS)
def test_objects_with_fields_of_a_newer_kubernetes_are_read(kind: str) -> None:
    document = {
        "apiVersion": "v9",
        "kind": kind,
        "metadata": {"name": "x", "namespace": "n", "managedFields": [NEWER], **NEWER},
        "spec": {**NEWER, "podSelector": {}},
        "status": NEWER,
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": NEWER, **NEWER}],
        **NEWER,
    }
    if kind == "ServiceCIDR":
        document["spec"]["cidrs"] = ["10.96.0.0/16"]
    found = msgspec.json.decode(json.dumps(document).encode(), type=KINDS[kind])
    assert found.metadata.name == "x"


def test_a_pool_with_a_field_of_a_newer_version_is_a_pool() -> None:
    spec = {"addresses": ["192.0.2.0/28"], "later": NEWER}
    assert pools.parse({"metadata": {"name": "p"}, "spec": spec}).name == "p"


def test_our_kinds_leave_unknown_fields_out_unless_asked_to_be_strict() -> None:
    """Structural schemas: the API prunes. Status is written by patches of known fields."""
    with registry() as api:
        api.custom = Definitions(api)
        row = api.catalog.named("customresourcedefinitions.apiextensions.k8s.io")
        for definition in definitions.ALL:
            api.create(row, "", dict(definition))
        pool = {
            "apiVersion": "podlane.dev/v1alpha1",
            "kind": "LoadBalancerPool",
            "metadata": {"name": "p"},
            "spec": {"addresses": ["192.0.2.0/28"], "later": NEWER},
        }
        kind = api.catalog.named(pools.RESOURCE)
        made = api.create(kind, "", pool, WriteOptions(field_validation="Ignore")).obj
        assert "later" not in made["spec"]
        assert made["spec"]["autoAssign"] is True


def test_a_configuration_of_a_newer_version_is_refused_with_the_keys_name() -> None:
    with pytest.raises(ConfigError, match="later"):
        config.parse({"apiVersion": config.API_VERSION, "kind": "NetworkConfig", "later": NEWER})
