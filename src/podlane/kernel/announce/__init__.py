"""Answering for load-balancer addresses on the node's own network, one node for each.

frames.py    what goes over the wire: gratuitous ARP, unsolicited NA, heartbeats. Pure
election.py  who is alive, and so which addresses are this node's. Pure
driver.py    addresses on the uplink, the packet socket, the thread
"""
