#!/usr/bin/env bash
# Builds what is in C into a directory: the CNI shim and the eBPF programs. What is newer than its source stays.
#   build_native.sh DIRECTORY
# CC: the shim's compiler (musl-gcc; aarch64-linux-gnu-gcc makes one for arm64). The programs are the same on
# every machine of its byte order.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
mkdir -p "$out"

if [ ! -e "$out/podlane-cni" ] || [ native/cni_shim.c -nt "$out/podlane-cni" ]; then
  echo "native: building the CNI shim"
  # With musl it starts in a third of the time: it is started for each verb of each plugin of a chain.
  "${CC:-musl-gcc}" -Os -Wall -Wextra -Werror -static -o "$out/podlane-cni" native/cni_shim.c
fi
for source in native/*.bpf.c; do
  bpf=$out/$(basename "$source" .c).o
  if [ ! -e "$bpf" ] || [ "$source" -nt "$bpf" ]; then
    echo "native: compiling $source"
    # The kernel's headers are the machine's, as gcc finds them; the object is the same on amd64 and arm64.
    "$(command -v clang || command -v clang-14)" -O2 -Wall -Wextra -Werror -target bpf -mcpu=v3 \
      -isystem "/usr/include/$(gcc -dumpmachine)" -c -o "$bpf" "$source"
  fi
done
