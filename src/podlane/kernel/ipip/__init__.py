"""IP in IP without the kernel's ipip: eBPF programs on a device and on the uplink (native/ipip.bpf.c)."""
