"""What the parts of an explanation share: what is known to all of them, and the stages so far. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from podlane.observe.cluster import Cluster
from podlane.observe.explanation import Row, Stage, Tables

TablesOf: TypeAlias = Callable[[str], Tables]
"""A node's tables, by its name."""


class Walk:
    """One packet's. stages grow as it goes. translated: a node has made a service's address an
    endpoint's, which it undoes in the reply."""

    def __init__(self, cluster: Cluster, tables: TablesOf) -> None:
        self.cluster, self.tables = cluster, tables
        self.stages: list[Stage] = []
        self.translated = False

    def add(self, stage: str, node: str, detail: str, *rows: Row) -> None:
        self.stages.append(Stage(stage, node, detail, list(rows)))
