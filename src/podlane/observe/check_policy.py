"""Which conversations of a check NetworkPolicy denies, by the same tables that isolate the pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from podlane.errors import ConfigError, UsageError
from podlane.model.config import NetworkConfig
from podlane.observe.check_plan import Step
from podlane.observe.cluster import Cluster
from podlane.observe.explain import compiled, explain
from podlane.observe.explanation import end
from podlane.observe.targets import parse_destination, parse_source


class Expectation(Struct, frozen=True):
    """denied: why no answer may come, "" when one must. either: some endpoints answer, others must not."""

    denied: str = ""
    either: bool = False


EXPECTED = Expectation()


def expectations(steps: Iterable[Step], cluster: Cluster, config: NetworkConfig) -> list[Expectation]:
    """One a step."""
    tables = compiled(cluster, config)

    def expect(step: Step) -> Expectation:
        if not cluster.has_policies or step.address.is_loopback:
            return EXPECTED
        where = f"{end(step.address, step.port)}/{step.protocol.lower()}" if step.port else str(step.address)
        try:
            source = cluster.party(parse_source(step.place))
            target = cluster.party(parse_destination(where))
            told = explain(cluster, source, target, config, family=step.family, tables=tables)
        except (ConfigError, UsageError):
            return EXPECTED  # the packet itself will tell
        return EXPECTED if told.denied == "no" else Expectation(told.why, told.denied == "partly")

    return [expect(step) for step in steps]
