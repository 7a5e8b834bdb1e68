"""python -m podlane.lab.supervisor --socket PATH --cgroup DIR --log FILE"""

from __future__ import annotations

import argparse
import os

from podlane.lab.supervisor.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="podlane.lab.supervisor")
    parser.add_argument("--socket", required=True, help="unix socket to answer on")
    parser.add_argument("--cgroup", default="", help="cgroup v2 directory to join")
    parser.add_argument("--log", default="", help="file for its own messages")
    parser.add_argument("--daemonize", action="store_true", help="go to the background once it answers")
    options = parser.parse_args()
    if options.log:
        log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    serve(options.socket, options.cgroup, daemonize=options.daemonize)


if __name__ == "__main__":
    main()
