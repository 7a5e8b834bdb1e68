"""Containers of the lab: their root, namespaces, rights, volumes and the built-in responder."""
