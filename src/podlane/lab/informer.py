"""Caches and queues of the lab's controllers and kubelets (controller/informer.py)."""

from podlane.controller.informer import Informer, Informers, Key, WorkQueue, key_of, owner_uids, version_of

__all__ = ["Informer", "Informers", "Key", "WorkQueue", "key_of", "owner_uids", "version_of"]
