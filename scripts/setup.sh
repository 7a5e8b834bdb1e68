#!/usr/bin/env bash
# Installs what podlane needs on Debian 12: packages, .venv, generated schemas, the CNI shim, the
# eBPF programs.
# Idempotent: each step is left out when what it makes is there and newer than what it is made from.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "setup: root is required (namespaces, nftables, packages)" >&2; exit 1; }

# command -> Debian package
declare -A packages=(
  [nft]=nftables [ip]=iproute2 [tcpdump]=tcpdump [conntrack]=conntrack [ping]=iputils-ping
  [curl]=curl [gcc]=gcc [iperf3]=iperf3 [nsenter]=util-linux [sysctl]=procps [iptables-nft-save]=iptables [ipset]=ipset
  [/usr/lib/cni/bridge]=containernetworking-plugins [containerd]=containerd [runc]=runc [bird]=bird2 [wireguard-go]=wireguard-go [musl-gcc]=musl-tools
  [promtool]=prometheus [etcd]=etcd-server [/usr/lib/frr/bgpd]=frr [gobgpd]=gobgpd
)
missing=()
for command in "${!packages[@]}"; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null || missing+=("${packages[$command]}")
done
command -v kubectl >/dev/null || missing+=(kubernetes-client)
command -v clang >/dev/null || command -v clang-14 >/dev/null || missing+=(clang-14)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || missing+=(python3)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Podlane starts a BIRD of its own, tests a containerd: the packages shall start none (policy-rc.d: 101 forbids).
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -e .venv/.complete ] || [ requirements-dev.txt -nt .venv/.complete ] || [ pyproject.toml -nt .venv/.complete ]; then
  echo "setup: making .venv"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
  touch .venv/.complete
fi

generated=src/podlane/lab/api/generated
if [ ! -e $generated/.complete ] || [ scripts/generate_schemas.py -nt $generated/.complete ] ||
  [ scripts/schema_defaults.py -nt $generated/.complete ] ||
  [ src/podlane/lab/api/resources.py -nt $generated/.complete ] || [ .venv/.complete -nt $generated/.complete ]; then
  echo "setup: generating Kubernetes schemas"
  .venv/bin/python scripts/generate_schemas.py $generated
  touch $generated/.complete
fi

scripts/build_native.sh native/build
