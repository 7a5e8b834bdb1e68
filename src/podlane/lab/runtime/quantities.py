"""Kubernetes quantities ("500m", "1Gi") as exact numbers. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{suffix: Fraction(1000 ** (power + 1)) for power, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Fraction(1024 ** (power + 1)) for power, suffix in enumerate("KMGTPE")},
}
_QUANTITY = re.compile(r"([+-]?\d*\.?\d+|[+-]?\d+\.)(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)")

# What a lab node says it has.
NODE_DEFAULTS = {"cpu": "64", "memory": "64Gi", "ephemeral-storage": "64Gi"}


def parse(text: str) -> Fraction:
    """Raises ValueError."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or (match[3] or "") not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return Fraction(match[1] + (match[2] or "")) * _SUFFIXES[match[3] or ""]
