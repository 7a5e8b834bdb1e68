"""What kube-controller-manager and kube-scheduler do, as far as ordinary manifests need it.

    context         what every controller is given; the base of those with one queue
    facts           pure: what a pod, a condition, a timestamp says
    ownership       owner references: adopt, release, make pods from templates
    replicaset, deployment, daemonset, statefulset, job, cronjob      workloads
    scheduler       with scheduling and nodefit (pure: filters and scores)
    endpointslice, endpoints, mirroring     with slicing (pure: which endpoint in which slice)
    garbage, namespaces, nodes              what follows from deletions, and what a new Node is given
    manager         runs them all

All state is in the API. A controller that is killed at any moment and started again converges and makes
nothing twice.
"""
