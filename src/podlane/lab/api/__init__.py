"""The lab's Kubernetes API server: objects in SQLite, watched and changed over HTTP."""
