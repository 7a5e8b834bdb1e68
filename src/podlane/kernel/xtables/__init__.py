"""Rules of iptables that others made: read as iptables-save prints them, and taken away by iptables-restore.

Podlane itself uses nftables. This is for living beside, and after, those that do not: ruleset.py reads the
text, owners.py knows whose chains are whose, command.py runs the programs of both variants (legacy, nft).
"""
