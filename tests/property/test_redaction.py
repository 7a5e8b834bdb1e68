"""Whatever stands around a secret, and however it is written: it is not there afterwards."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from podlane import redaction
from podlane.redaction import REMOVED

NAMES = st.sampled_from(
    [
        "password",
        "passwd",
        "token",
        "client-key-data",
        "presharedKey",
        "private_key",
        "api-key",
        "secret",
        "psk",
    ]
)
NAME = st.builds(
    lambda before, name, case: getattr(before + name, case)(),
    st.sampled_from(["", "db_", "bgp", "x-"]),
    NAMES,
    st.sampled_from(["lower", "upper", "title"]),
)
SECRETS = st.text(string.ascii_letters + string.digits + "+/_-.", min_size=10, max_size=60).map(
    "Zq9{}".format
)
NOISE = st.text(string.ascii_lowercase + " \n\t", max_size=80)

FORMS = [
    "{name}: {secret}",
    "{name} : '{secret}'",
    '"{name}": "{secret}",',
    "{{'{name}': '{secret}', 'other': 1}}",
    "{name}={secret}",
    "{name} = {secret}",
    'export {name}="{secret}"',
    '{name} "{secret}";',
    "--{name}={secret} --verbose",
    "https://user:{secret}@host:6443/path",
    "redis://:{secret}@host/0",
    "Authorization: Bearer {secret}",
    "got -----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY----- there",
    "{name}: |\n  {secret}\n  {secret}\nnext: 1",
    "outer:\n  {name}: {secret}",
    "note={name}={secret}",
    "token-file: {name}={secret}",
    '{{"outer": {{"{name}": "{secret}"}}}}',
    "cut -----BEGIN PRIVATE KEY-----\n{secret}",
]


@pytest.mark.parametrize("form", FORMS)
@given(name=NAME, secret=SECRETS, before=NOISE, after=NOISE)
def test_a_secret_is_gone_in_every_form(form: str, name: str, secret: str, before: str, after: str) -> None:
    name = name.lower().replace("_", "-") if form.startswith("--") else name
    secret = secret.replace("/", "_") if "://" in form else secret
    found = redaction.text(f"{before}\n{form.format(name=name, secret=secret)}\n{after}")
    assert secret not in found
    assert REMOVED in found
    assert found.startswith(before)
    assert redaction.text(found) == found


@given(secrets=st.lists(SECRETS, min_size=1, max_size=4), noise=st.lists(NOISE, min_size=5, max_size=5))
def test_known_secrets_are_gone_wherever_they_stand(secrets: list[str], noise: list[str]) -> None:
    text = "".join(part + secret for part, secret in zip(noise, secrets, strict=False)) + noise[-1]
    found = redaction.text(text, sorted(secrets, key=len, reverse=True))
    assert not any(secret in found for secret in secrets)


@given(text=st.text(string.ascii_lowercase + " .,\n0123456789", max_size=400))
def test_prose_stays(text: str) -> None:
    assert redaction.text(text) == text


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | NOISE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=10,
)


@given(around=JSON, name=NAME, secret=SECRETS)
def test_a_secret_is_gone_at_any_depth_and_in_any_notation(around: Any, name: str, secret: str) -> None:
    whole = {"first": around, "deep": [{"more": {name: secret}}, around]}
    found = redaction.value(whole)
    assert found == {"first": around, "deep": [{"more": {name: REMOVED}}, around]}
    for text in (json.dumps(whole), json.dumps(whole, indent=1), yaml.safe_dump(whole)):
        assert secret not in redaction.text(text)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a.",
        "a-",
        "a b",
        "token ",
        "a=",
        "'",
        "://",
        "eyJ",
        "-----BEGIN ",
        "-----END PRIVATE KEY-----",
        " ",
    ],
)
def test_a_long_line_is_gone_through_once(unit: str) -> None:
    """Quadratic work on these would not end within the test's time."""
    redaction.text("password " + unit * (2_000_000 // len(unit)))
