#!/usr/bin/env bash
# The main job, shown: a lab of three nodes, real manifests, every way of communicating, one packet's way.
set -euo pipefail
cd "$(dirname "$0")/.."
lab=${LAB:-demo}
podlane() { .venv/bin/podlane "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$1"; }

podlane down "$lab" 2>/dev/null || true
trap 'podlane down "$lab" >/dev/null 2>&1 || true' EXIT

say "A Kubernetes network of three nodes"
podlane up "$lab" --nodes 3 -f examples/

say "What was applied"
kubectl --kubeconfig "$(podlane kubeconfig "$lab")" get pods,svc -A -o wide

say "Every way of communicating, with real packets"
podlane check "$lab"

say "One request across nodes: what the tables say"
podlane explain --lab "$lab" pod/client svc/web:80

say "The same request, link by link"
podlane trace --lab "$lab" pod/client svc/web:80

say "Two containers of one pod, over localhost"
podlane exec --lab "$lab" two-containers -c caller -- cat /tmp/answer 2>/dev/null || true

say "Taking it down"
podlane down "$lab"
trap - EXIT
