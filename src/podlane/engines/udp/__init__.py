"""Pods' packets between nodes in UDP, one a datagram, as by Flannel's udp backend: a process of its own."""
