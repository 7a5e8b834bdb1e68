"""NetworkPolicy as its API documentation says it, on plain API objects. It shares nothing with podlane.

    allowed(world, source, destination, protocol, port)

world: {"Namespace": [...], "Pod": [...], "NetworkPolicy": [...]} as the API has them, after its defaults.
source, destination: a pod's object, or an address as text for what is no pod. Every sentence in quotes is
from the API reference, networking.k8s.io/v1.
"""

import ipaddress


def allowed(world, source, destination, protocol, port, family):
    """protocol: "TCP", "UDP", "SCTP", or "ICMP". family: 4 or 6."""
    if source is destination:
        return True  # a pod cannot block access to itself
    return _direction(world, "Egress", source, destination, protocol, port, family) and _direction(
        world, "Ingress", destination, source, protocol, port, family
    )


def _direction(world, kind, subject, peer, protocol, port, family):
    if not isinstance(subject, dict) or subject["spec"].get("hostNetwork"):
        return True
    isolating = [
        p
        for p in world["NetworkPolicy"]
        if p["metadata"]["namespace"] == subject["metadata"]["namespace"]
        and kind in _types(p["spec"])
        and _matches(p["spec"].get("podSelector") or {}, subject["metadata"].get("labels", {}))
    ]
    if not isolating:
        return True
    target = subject if kind == "Ingress" else peer
    for policy in isolating:
        for rule in policy["spec"].get(kind.lower()) or []:
            peers = rule.get("from" if kind == "Ingress" else "to")
            # "If this field is empty or missing, this rule matches all sources (traffic not restricted by
            # source)."
            if peers and not any(_peer(world, policy, each, peer, family) for each in peers):
                continue
            # "If this field is empty or missing, this rule matches all ports (traffic not restricted by
            # port)."
            if rule.get("ports") and not any(_port(each, target, protocol, port) for each in rule["ports"]):
                continue
            return True
    return False


def _types(spec):
    # "If this field is not specified, it will default based on the existence of ingress or egress rules;
    # policies that contain an egress section are assumed to affect egress, and all policies (whether or not
    # they contain an ingress section) are assumed to affect ingress."
    return spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])


def _peer(world, policy, item, peer, family):
    if item.get("ipBlock") is not None:
        where = ipaddress.ip_address(_address(peer, family))
        block = ipaddress.ip_network(item["ipBlock"]["cidr"])
        holes = [ipaddress.ip_network(each) for each in item["ipBlock"].get("except") or []]
        inside = [n for n in (block, *holes) if n.version == where.version and where in n]
        return inside == [block]
    if not isinstance(peer, dict) or peer["spec"].get("hostNetwork") or _ended(peer):
        return False
    home = peer["metadata"]["namespace"]
    if item.get("namespaceSelector") is None:
        # "Otherwise it selects the pods matching podSelector in the policy's own namespace."
        if home != policy["metadata"]["namespace"]:
            return False
    else:
        known = [n for n in world["Namespace"] if n["metadata"]["name"] == home]
        if not known or not _matches(item["namespaceSelector"], known[0]["metadata"].get("labels", {})):
            return False
    return item.get("podSelector") is None or _matches(
        item["podSelector"], peer["metadata"].get("labels", {})
    )


def _port(item, target, protocol, port):
    # "If not specified, this field defaults to TCP."
    if (item.get("protocol") or "TCP") != protocol:
        return False
    wanted = item.get("port")
    if wanted is None:
        return True  # "If this field is not provided, this matches all port names and numbers."
    if isinstance(wanted, int):
        return wanted <= port <= item.get("endPort", wanted)
    if not isinstance(target, dict) or target["spec"].get("hostNetwork") or _ended(target):
        return False
    sidecars = [c for c in target["spec"].get("initContainers", []) if c.get("restartPolicy") == "Always"]
    return any(
        (each.get("name"), each.get("protocol", "TCP"), each["containerPort"]) == (wanted, protocol, port)
        for container in target["spec"]["containers"] + sidecars
        for each in container.get("ports", [])
    )


def _ended(pod):
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _address(party, family):
    if isinstance(party, str):
        return party
    where = [each["ip"] for each in party["status"]["podIPs"]]
    return next(each for each in where if (":" in each) == (family == 6))


def _matches(selector, labels):
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or []:
        key, values = each["key"], each.get("values") or []
        fits = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[each["operator"]]
        if not fits:
            return False
    return True
