"""Explanations, traces and checks for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from podlane.observe.explanation import Explanation, end


def explanation_lines(told: Explanation) -> Iterator[str]:
    """Stage by stage, the rows it rests on below it."""
    port = f"/{told.protocol}" if told.port else ""
    where = _address(told.address, told.port)
    yield f"{told.source} -> {told.destination} ({where}{port}), {told.family}"
    yield ""
    nodes = max((len(s.node) for s in told.stages), default=0)
    for number, stage in enumerate(told.stages, 1):
        yield f"{number:>3} {stage.stage:<14} {stage.node or '-':<{nodes}}  {stage.detail}".rstrip()
        for row in stage.rows:
            yield f"{'':>18} {'':<{nodes}}    {row.text}"
    yield ""
    yield f"{told.verdict}: {told.why}"


def _address(text: str, port: int) -> str:
    import ipaddress

    return end(ipaddress.ip_address(text), port)
