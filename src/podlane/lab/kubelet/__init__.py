"""The node runtime: from pods bound to a node to running containers, and back to pod status."""
