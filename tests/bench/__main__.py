"""What things cost: `make bench`. Ratios are taken within one run; absolute figures depend on the machine."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys

PARTS = (
    "lab",
    "path",
    "throughput",
    "bgp",
    "udp",
    "cni",
    "sockets",
    "services",
    "balancing",
    "failover",
    "policy",
    "peers",
    "cluster_scale",
    "scrape",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"which parts to run: {', '.join(PARTS)}")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the sizes of parts that have sizes; 0.05 is a quick try"
    )
    arguments = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
        measure = importlib.import_module(f"tests.bench.{part}").measure
        scaled = "scale" in inspect.signature(measure).parameters
        results[part] = measure(scale=arguments.scale) if scaled else measure()
        if arguments.output == "text":
            print(f"\n{part}")
            for name, value in results[part].items():
                print(f"  {name:<58} {value}")
    if arguments.output == "json":
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
