"""What things cost: `make bench`. Ratios are taken within one run; absolute figures depend on the machine."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

PARTS = ("lab", "path", "cni", "sockets")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"which parts to run: {', '.join(PARTS)}")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
        results[part] = importlib.import_module(f"tests.bench.{part}").measure()
        if arguments.output == "text":
            print(f"\n{part}")
            for name, value in results[part].items():
                print(f"  {name:<58} {value}")
    if arguments.output == "json":
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
