"""Services at the socket: eBPF programs on the node's cgroup (native/socket_lb.bpf.c) and their maps."""
