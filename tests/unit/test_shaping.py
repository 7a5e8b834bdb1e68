"""Quantities, limits as token buckets, and the messages of traffic control."""

from __future__ import annotations

import pytest

from podlane.cni.fields import Fields
from podlane.cni.shaping import Bandwidth, bucket, from_annotations, read_bandwidth
from podlane.errors import ConfigError
from podlane.kernel.netlink import Message
from podlane.kernel.tc import codec
from podlane.kernel.tc.codec import Bucket
from podlane.model.quantities import quantity

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("10M", 10_000_000),
        ("1k", 1000),
        ("1.5G", 1_500_000_000),
        ("512Ki", 524_288),
        ("1Pi", 1 << 50),
        ("1e6", 1_000_000),
        ("12E-1", 2),
        ("100m", 1),
        (".5k", 500),
        ("-1", -1),
    ],
)
def test_a_quantity_is_read_and_rounded_up(text: str, value: int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "M", "1K", "1MB", "1 M", "0x10", "1e", "one", "1Mi2", "٣"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a quantity"):
        quantity(text)


def test_annotations_become_the_capability() -> None:
    assert from_annotations({INGRESS: "10M", EGRESS: "1k", "other": "x"}) == {
        "ingressRate": 10_000_000,
        "egressRate": 1000,
    }
    assert from_annotations({}) == {}


@pytest.mark.parametrize("text", ["999", "2P", "0", "-1M", "fast"])
def test_an_annotation_that_is_no_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"annotation kubernetes\.io/egress-bandwidth: "):
        from_annotations({EGRESS: text})


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        (0, 0, None),
        (8_000_000, 0, Bucket(1_000_000, 50_000, 100_000)),
        (8_000, 0, Bucket(1000, 15_140, 30_280)),
        (8_000_000, (1 << 31) - 1, Bucket(1_000_000, 50_000, 100_000)),
        (8_000_000, 800_000, Bucket(1_000_000, 100_000, 150_000)),
        (8_000_000, 8, Bucket(1_000_000, 15_140, 65_140)),
        (10**15, 0, Bucket(125 * 10**12, (1 << 32) - 1, (1 << 32) - 1)),
    ],
    ids=["none", "50 ms", "ten packets", "Kubernetes' none", "as asked", "too small", "the most"],
)
def test_a_rate_is_a_bucket_with_a_burst_that_limits(rate: int, burst: int, expected: Bucket | None) -> None:
    assert bucket(rate, burst, 1500) == expected


def test_faults_of_a_bandwidth_are_all_named() -> None:
    fields = Fields({"ingressRate": 1, "egressBurst": 5, "egressRate": "x"}, "runtimeConfig.bandwidth.")
    assert read_bandwidth(fields) == Bandwidth(ingress_rate=1, egress_burst=5)
    assert [fault.split()[0].rpartition(".")[2] for fault in fields.faults] == [
        "ingressRate",
        "egressRate",
        "egressBurst",
    ]


GOLDEN_BUCKET = (
    "00000000 07000000 00000100 ffffffff 00000000"  # link 7, handle 1:, root
    "0800 0100 74626600"  # kind tbf
    "3400 0280"
    "2800 0100 00010000 00000000 40420f00 000000000000000000000000 a0860100 00000000 00000000"
    "0800 0600 50c30000"  # burst
)


def test_the_bucket_is_written_as_tc_writes_it() -> None:
    request = codec.set_bucket(7, Bucket(1_000_000, 50_000, 100_000))
    assert request.type == codec.NEW_QDISC
    assert request.body.hex() == GOLDEN_BUCKET.replace(" ", "")


def test_a_rate_beyond_32_bits_goes_into_its_own_attribute() -> None:
    body = codec.set_bucket(7, Bucket(1 << 33, 50_000, 100_000)).body
    assert (1 << 33).to_bytes(8, "little").hex() in body.hex()
    assert codec.unpack(Message(codec.NEW_QDISC, 0, 0, body)).bucket == Bucket(1 << 33, 0, 100_000)


def test_a_redirect_is_read_as_it_was_written() -> None:
    request = codec.redirect(7, 9)
    assert codec.unpack_redirect(Message(codec.NEW_FILTER, 0, 0, request.body)) == 9
