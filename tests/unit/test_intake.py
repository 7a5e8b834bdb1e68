"""News of the API as changes: what a list does not name is gone, in how many parts it ever came."""

from __future__ import annotations

from collections.abc import Iterable

from podlane.agent.intake import changes
from podlane.compile.engine import Compiler
from podlane.compile.view import Change
from podlane.model.config import NetworkConfig
from podlane.model.objects import Node, Object, ObjectMeta, Pod
from podlane.watch.reflector import News, Part, Replace


def pods(*names: str) -> list[Object]:
    return [Pod(metadata=ObjectMeta(name=name, namespace="default")) for name in names]


class Site:
    def __init__(self) -> None:
        self.compiler = Compiler("n1", NetworkConfig())

    def hear(self, kind: str, news: News[Object]) -> None:
        self.compiler.apply(changes(kind, news, self.compiler.view))

    def known(self, kind: str) -> Iterable[object]:
        return set(self.compiler.view.objects(kind))


def test_a_list_in_parts_takes_away_what_none_of_them_named() -> None:
    site = Site()
    site.hear("Pod", Replace(pods("old", "stays", "unreadable")))
    site.hear("Pod", Part(pods("new")))
    assert site.known("Pod") == {("default", name) for name in ("old", "stays", "unreadable", "new")}
    told, unreadable = [("default", "new")], frozenset({("default", "unreadable")})
    site.hear("Pod", Replace(pods("stays"), unreadable, told))
    assert site.known("Pod") == {("default", name) for name in ("stays", "unreadable", "new")}


def test_its_own_node_stays_when_a_list_has_it_no_more() -> None:
    site = Site()
    site.hear("Node", Replace([Node(metadata=ObjectMeta(name=name)) for name in ("n1", "n2")]))
    site.hear("Node", Part([Node(metadata=ObjectMeta(name="n3"))]))
    site.hear("Node", Replace([], told=[("", "n3")]))
    assert site.known("Node") == {"n1", "n3"}


def test_changes_are_of_what_is_known_when_their_turn_comes() -> None:
    site = Site()
    later = changes("Pod", Replace(pods("b")), site.compiler.view)
    site.hear("Pod", Part(pods("a")))
    assert [(each.old is None, each.object.name) for each in later] == [(False, "a"), (True, "b")]
    assert Change("Pod", None, None).sides == ()
