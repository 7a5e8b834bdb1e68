"""Kubernetes' resource.Quantity: numbers with a decimal, binary or exponent suffix."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

from podlane.errors import ConfigError

_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_FORM: Final = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,3})|([a-zA-Z]*))")


def quantity(text: str) -> int:
    """The value, rounded up to a whole number. Raises ConfigError for what is no quantity."""
    match = _FORM.fullmatch(text)
    suffix = match[3] or "" if match else ""
    if match is None or (suffix not in _DECIMAL and suffix not in _BINARY):
        raise ConfigError(f"{text!r} is not a quantity: write a number and a suffix, as 10M, 512Ki or 1.5G")
    factor = Decimal(1024) ** _BINARY[suffix] if suffix in _BINARY else Decimal(10) ** _DECIMAL[suffix]
    if match[2]:
        factor = Decimal(10) ** int(match[2])
    return int((Decimal(match[1]) * factor).to_integral_value(ROUND_CEILING))
