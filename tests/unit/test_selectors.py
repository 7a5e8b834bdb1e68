"""Label selectors mean what k8s.io/apimachinery says."""

from __future__ import annotations

import pytest

from podlane.errors import ConfigError
from podlane.model import selectors
from podlane.model.selectors import EVERYTHING, NOTHING


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("app=web", {"app": "web"}, True),
        ("app==web", {"app": "web"}, True),
        ("app = web , tier", {"app": "web", "tier": "x"}, True),
        ("app=web", {"app": "db"}, False),
        ("app=web", {}, False),
        ("app!=web", {}, True),
        ("app!=web", {"app": "web"}, False),
        ("app", {"app": ""}, True),
        ("!app", {"app": ""}, False),
        ("! app", {}, True),
        ("app in (a, b)", {"app": "b"}, True),
        ("app in (a,b)", {"app": "c"}, False),
        ("app notin (a,b)", {}, True),
        ("app notin (a,b)", {"app": "a"}, False),
        ("app=", {"app": ""}, True),
        ("app=", {"app": "x"}, False),
        ("app in (,a)", {"app": ""}, True),
        ("in in (in)", {"in": "in"}, True),
        ("n>3", {"n": "4"}, True),
        ("n<3", {"n": "4"}, False),
        ("n>3", {"n": "x"}, False),
        ("example.com/app=web,!x", {"example.com/app": "web"}, True),
    ],
)
def test_string_form(text: str, labels: dict[str, str], expected: bool) -> None:
    assert selectors.parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a,",
        "a=b,,c",
        "=b",
        "!",
        "a in",
        "a in b",
        "a in (b",
        "a b",
        "a in ()x",
        "a>b",
        "-a=b",
        "a=-b",
        "a/b/c=d",
        "A_B/c",
        "a==b==c",
        "a=" + "v" * 64,
    ],
)
def test_nonsense_is_refused_naming_the_text(text: str) -> None:
    with pytest.raises(ConfigError, match="label selector"):
        selectors.parse(text)


def test_absent_is_nothing_and_empty_is_everything() -> None:
    assert selectors.from_dict(None) == NOTHING
    assert selectors.from_dict({}) == EVERYTHING
    assert not NOTHING.matches({})
    assert EVERYTHING.matches(None)


def test_label_selector_requires_labels_and_expressions() -> None:
    selector = selectors.from_dict(
        {
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "canary", "operator": "DoesNotExist"},
            ],
        }
    )
    assert selector.matches({"app": "web", "tier": "a"})
    assert not selector.matches({"app": "web", "tier": "a", "canary": ""})
    assert not selector.matches({"app": "web", "tier": "c"})
    assert str(selector) == "app=web,!canary,tier in (a,b)"


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ({"key": "a", "operator": "Like", "values": ["x"]}, "'Like' is not a valid label selector operator"),
        ({"key": "a", "operator": "Gt", "values": ["1"]}, "'Gt' is not a valid label selector operator"),
        ({"key": "a", "operator": "In"}, "needs at least one value"),
        ({"key": "a", "operator": "Exists", "values": ["x"]}, "takes no values"),
        ({"operator": "Exists"}, "None is not a label key"),
    ],
)
def test_bad_expression_is_refused_with_its_place(expression: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=r"spec\.selector\.matchExpressions\[1\]") as error:
        selectors.from_dict(
            {"matchExpressions": [{"key": "b", "operator": "Exists"}, expression]}, "spec.selector"
        )
    assert named in str(error.value)
