"""The whole Kubernetes network in Python."""

__version__ = "0.1.0"
