"""The agent's window (observe/window.py)."""

from podlane.observe.window import Answer, Page, Pages, Server, as_json, encode, split_address, text

__all__ = ["Answer", "Page", "Pages", "Server", "as_json", "encode", "split_address", "text"]
