"""The agent's window (observe/window.py)."""

from podlane.observe.window import (
    Answer,
    AskedPage,
    Page,
    Pages,
    Query,
    Server,
    as_json,
    encode,
    split_address,
    text,
)

__all__ = [
    "Answer",
    "AskedPage",
    "Page",
    "Pages",
    "Query",
    "Server",
    "as_json",
    "encode",
    "split_address",
    "text",
]
