"""Which fields the API server fills in, by type, for generate_schemas.py."""

from __future__ import annotations

CORE = "io.k8s.api.core.v1."

DESCRIBED = object()
"""The value is read from the field's own description ("Defaults to X")."""


# Which fields the API server fills in, by type. A description tells the value but not whether it is
# written into the object (hostNetwork "Default to false" is not), so the list of fields follows the
# SetDefaults functions of Kubernetes v1.36; values are typed only where no description has them.
# Defaults that depend on other fields are functions in podlane/lab/api/defaults.py.
DEFAULTS: dict[str, dict[str, object]] = {
    # pkg/apis/core/v1/defaults.go
    CORE + "Probe": {
        "timeoutSeconds": DESCRIBED,
        "periodSeconds": DESCRIBED,
        "successThreshold": DESCRIBED,
        "failureThreshold": DESCRIBED,
    },
    CORE + "HTTPGetAction": {"path": "/", "scheme": DESCRIBED},  # SetDefaults_HTTPGetAction
    CORE + "GRPCAction": {"service": ""},  # SetDefaults_Probe
    CORE + "ContainerPort": {"protocol": DESCRIBED},
    CORE + "Container": {"terminationMessagePath": DESCRIBED, "terminationMessagePolicy": DESCRIBED},
    CORE + "EphemeralContainer": {
        "terminationMessagePath": DESCRIBED,
        "terminationMessagePolicy": DESCRIBED,
    },
    CORE + "PodSpec": {
        "restartPolicy": DESCRIBED,
        "dnsPolicy": DESCRIBED,
        "terminationGracePeriodSeconds": DESCRIBED,
        "schedulerName": "default-scheduler",  # v1.DefaultSchedulerName
        "securityContext": DESCRIBED,
    },
    # Only of pods, not of templates (SetDefaults_Pod): see defaults.py.
    CORE + "ServiceSpec": {"sessionAffinity": DESCRIBED, "type": DESCRIBED},
    CORE + "ServicePort": {"protocol": DESCRIBED},
    CORE + "EndpointPort": {"protocol": DESCRIBED},
    CORE + "SecretVolumeSource": {"defaultMode": DESCRIBED},
    CORE + "ConfigMapVolumeSource": {"defaultMode": DESCRIBED},
    CORE + "DownwardAPIVolumeSource": {"defaultMode": DESCRIBED},
    CORE + "ProjectedVolumeSource": {"defaultMode": 0o644},  # v1.ProjectedVolumeSourceDefaultMode
    CORE + "ServiceAccountTokenProjection": {"expirationSeconds": DESCRIBED},
    CORE + "HostPathVolumeSource": {"type": DESCRIBED},
    CORE + "ISCSIVolumeSource": {"iscsiInterface": DESCRIBED},
    CORE + "RBDVolumeSource": {"pool": DESCRIBED, "user": DESCRIBED, "keyring": DESCRIBED},
    CORE + "AzureDiskVolumeSource": {
        "cachingMode": "ReadWrite",  # SetDefaults_AzureDiskVolumeSource
        "fsType": "ext4",
        "readOnly": False,
        "kind": "Shared",
    },
    CORE + "ObjectFieldSelector": {"apiVersion": DESCRIBED},
    CORE + "PersistentVolumeSpec": {"persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"},
    CORE + "PersistentVolumeClaimSpec": {"volumeMode": "Filesystem"},
    CORE + "Secret": {"type": "Opaque"},  # SetDefaults_Secret
    CORE + "NamespaceStatus": {"phase": "Active"},  # SetDefaults_NamespaceStatus
    CORE + "ReplicationControllerSpec": {"replicas": DESCRIBED},
    # pkg/apis/apps/v1/defaults.go
    "io.k8s.api.apps.v1.DeploymentSpec": {
        "replicas": DESCRIBED,
        "revisionHistoryLimit": DESCRIBED,
        "progressDeadlineSeconds": DESCRIBED,
        "strategy": {},
    },
    "io.k8s.api.apps.v1.DeploymentStrategy": {"type": DESCRIBED},
    "io.k8s.api.apps.v1.RollingUpdateDeployment": {"maxUnavailable": DESCRIBED, "maxSurge": DESCRIBED},
    "io.k8s.api.apps.v1.ReplicaSetSpec": {"replicas": DESCRIBED},
    "io.k8s.api.apps.v1.DaemonSetSpec": {"revisionHistoryLimit": DESCRIBED, "updateStrategy": {}},
    "io.k8s.api.apps.v1.DaemonSetUpdateStrategy": {"type": DESCRIBED},
    "io.k8s.api.apps.v1.RollingUpdateDaemonSet": {"maxUnavailable": DESCRIBED, "maxSurge": DESCRIBED},
    "io.k8s.api.apps.v1.StatefulSetSpec": {
        "replicas": DESCRIBED,
        "revisionHistoryLimit": DESCRIBED,
        "podManagementPolicy": DESCRIBED,
        "updateStrategy": {},
        "persistentVolumeClaimRetentionPolicy": {},
    },
    "io.k8s.api.apps.v1.StatefulSetUpdateStrategy": {"type": DESCRIBED},
    "io.k8s.api.apps.v1.RollingUpdateStatefulSetStrategy": {"partition": DESCRIBED},
    "io.k8s.api.apps.v1.StatefulSetPersistentVolumeClaimRetentionPolicy": {
        "whenDeleted": DESCRIBED,
        "whenScaled": DESCRIBED,
    },
    # pkg/apis/batch/v1/defaults.go
    "io.k8s.api.batch.v1.JobSpec": {
        "backoffLimit": DESCRIBED,
        "completionMode": DESCRIBED,
        "suspend": DESCRIBED,
        "manualSelector": False,  # SetDefaults_Job
    },
    "io.k8s.api.batch.v1.CronJobSpec": {
        "concurrencyPolicy": DESCRIBED,
        "suspend": DESCRIBED,
        "successfulJobsHistoryLimit": DESCRIBED,
        "failedJobsHistoryLimit": DESCRIBED,
    },
    # pkg/apis/networking/v1/defaults.go, pkg/apis/discovery/v1/defaults.go
    "io.k8s.api.networking.v1.NetworkPolicyPort": {"protocol": DESCRIBED},
    "io.k8s.api.networking.v1.IngressClassParametersReference": {"scope": DESCRIBED},
    "io.k8s.api.discovery.v1.EndpointPort": {"name": "", "protocol": DESCRIBED},
    # pkg/apis/rbac/v1/defaults.go: see defaults.py. pkg/apis/scheduling/v1, storage/v1, autoscaling/v2
    "io.k8s.api.scheduling.v1.PriorityClass": {"preemptionPolicy": DESCRIBED},
    "io.k8s.api.storage.v1.StorageClass": {
        "reclaimPolicy": DESCRIBED,
        "volumeBindingMode": "Immediate",  # SetDefaults_StorageClass
    },
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": {"minReplicas": DESCRIBED},
    # apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go: names and conversion in defaults.py
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference": {"port": DESCRIBED},
}
