#!/usr/bin/env bash
# The main job, shown: a lab of three nodes, real manifests, every way of communicating, one packet's way.
set -euo pipefail
cd "$(dirname "$0")/.."
lab=${LAB:-demo}
podlane() { .venv/bin/podlane "$@"; }
say() { printf '\n\033[1m%s\033[0m\n' "$1"; }

podlane down "$lab" 2>/dev/null || true
trap 'rm -f /tmp/podlane-demo.$$; podlane down "$lab" >/dev/null 2>&1 || true' EXIT

say "A Kubernetes network of three nodes"
podlane up "$lab" --nodes 3 -f examples/

say "What was applied"
kubectl --kubeconfig "$(podlane kubeconfig "$lab")" get pods,svc -A -o wide

say "Every way of communicating, with real packets"
podlane check "$lab"

say "One request across nodes: what the tables say"
podlane explain --lab "$lab" pod/client svc/web:80

say "The same request, link by link"
podlane trace --lab "$lab" pod/client svc/web:80 | tee /tmp/podlane-demo.$$
if ! grep -q VXLAN /tmp/podlane-demo.$$; then
  # The draw fell on this node's endpoint: show one on another node too.
  here=$(kubectl --kubeconfig "$(podlane kubeconfig "$lab")" get pod client -o 'jsonpath={.spec.nodeName}')
  far=$(kubectl --kubeconfig "$(podlane kubeconfig "$lab")" get pods -l app=web --field-selector "spec.nodeName!=$here" -o 'jsonpath={.items[0].metadata.name}')
  podlane trace --lab "$lab" pod/client "pod/$far:80"
fi
rm -f /tmp/podlane-demo.$$

say "Two containers of one pod, over localhost"
podlane exec --lab "$lab" two-containers -c caller -- cat /tmp/answer

say "Taking it down"
podlane down "$lab"
trap - EXIT
