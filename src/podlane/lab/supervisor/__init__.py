"""The lab's first process: it forks and keeps every other one. See server.py."""
