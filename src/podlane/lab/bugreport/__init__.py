"""`podlane bugreport`: what somebody who is to help needs to see of a lab or of a node, in one archive.

archive.py    the file: bounded, secrets taken out of everything, a manifest
secrets.py    secrets of this machine that are known by value
node.py       what is read of one node
cluster.py    what is read of the API: narrow objects, no Secrets, no ConfigMaps, no environment
"""
