"""How the lab's parts speak to the API: the controller"s own words (controller/client.py)."""

from podlane.controller.client import ApiClient, Event, Obj

__all__ = ["ApiClient", "Event", "Obj"]
