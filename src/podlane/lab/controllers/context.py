"""The base of the lab's controllers (controller/context.py)."""

from podlane.controller.context import Context, Controller, Runnable

__all__ = ["Context", "Controller", "Runnable"]
