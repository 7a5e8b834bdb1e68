#!/usr/bin/env bash
# The last stage of the Containerfile, for Debian 12: what the daemons execute, and nobody's account for the controller.
set -euo pipefail
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# A package that brings a daemon shall not start it, here or wherever this runs.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
grep -v '^#' "$here/packages" | xargs apt-get install -y -qq --no-install-recommends >/dev/null
rm -rf /usr/sbin/policy-rc.d /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
groupadd --system --gid 65532 podlane
useradd --system --uid 65532 --gid 65532 --no-create-home --home-dir / --shell /usr/sbin/nologin podlane
