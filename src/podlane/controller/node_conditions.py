"""What the controller has to say of a Node: one condition of a type of ours, and an event when it becomes so.

A Node of which nothing is to be said has no such condition; one that was said stays as False when it is
over. So what was said is in the API: a new leader repeats nothing, and a quiet cluster writes nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from podlane.controller.client import Obj
from podlane.controller.context import Context
from podlane.controller.meta import condition, with_condition

COMPONENT: Final = "podlane-controller"
_MOST_MESSAGE: Final = 1024


class Problem(NamedTuple):
    """reason: one CamelCase word; message: for people."""

    reason: str
    message: str


async def tell(context: Context, node: Obj, type_: str, problem: Problem | None, over: Problem) -> None:
    """Node's condition type_ is True with problem, or False with over if there is none (any more)."""
    known = condition(node, type_)
    if problem is None and (known is None or known.get("status") == "False"):
        return
    status, (reason, message) = ("True", problem) if problem is not None else ("False", over)
    message = message[:_MOST_MESSAGE]
    if known is not None and (known.get("status"), known.get("message")) == (status, message):
        return
    conditions = (node.get("status") or {}).get("conditions") or ()
    conditions = with_condition(conditions, type_, status, reason, message, context.now())
    await context.patch("nodes", node, {"status": {"conditions": conditions}}, subresource="status")
    if problem is not None:
        context.events.warning("Node", node, reason, message, COMPONENT)
