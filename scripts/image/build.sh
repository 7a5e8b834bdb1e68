#!/usr/bin/env bash
# The build stage of the Containerfile, for Debian 12: DIRECTORY becomes a virtual environment with podlane in it.
#   build.sh DIRECTORY
set -euo pipefail
where=$1
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates clang-14 gcc libc6-dev musl-tools python3 python3-venv >/dev/null

python3 -m venv "$where"
"$where/bin/python" -m pip install -q --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt
package=$("$where/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -r src/podlane "$package/podlane"
native=$(mktemp -d)
scripts/build_native.sh "$native"
install -m 755 "$native/podlane-cni" "$package/podlane/cni/podlane-cni"
install -m 644 "$native"/*.bpf.o "$package/podlane/kernel/bpf/"
cat >"$where/bin/podlane" <<SCRIPT
#!$where/bin/python
from podlane.cli.main import main
main()
SCRIPT
chmod 755 "$where/bin/podlane"
# What only a build needs.
"$where/bin/python" -m pip uninstall -q -y pip setuptools
find "$where" -name __pycache__ -prune -exec rm -r {} +
"$where/bin/python" -m compileall -q "$package/podlane"
