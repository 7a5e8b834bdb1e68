"""Every error podlane raises on purpose, as one tree.

    PodlaneError
    ├── ConfigError            what the user wrote is wrong (exit status 2)
    │   └── UsageError         a command line that makes no sense
    ├── LabError               the lab cannot be brought up, or is not there
    ├── ApiError(code, reason) the Kubernetes API refused
    │   ├── NotFoundError      404
    │   ├── ConflictError      409, another writer was first
    │   ├── AlreadyExistsError 409, the name is taken
    │   ├── InvalidError       422, with the fields at fault
    │   └── GoneError          410, the resourceVersion is too old
    ├── KernelError(errno, operation, detail)
    │   ├── KernelNotFoundError, KernelExistsError, KernelBusyError
    ├── UnsupportedError       this kernel or machine cannot do it; says what would work
    └── CniError(code)         an answer of the CNI specification

`exit_status` is what the command line ends with.
"""

from __future__ import annotations

import errno as _errno
import os as _os


class PodlaneError(Exception):
    exit_status = 1


class ConfigError(PodlaneError):
    exit_status = 2


class UsageError(ConfigError):
    pass


class LabError(PodlaneError):
    pass


class UnsupportedError(PodlaneError):
    pass


class ApiError(PodlaneError):
    """A refusal of the Kubernetes API.

    code: HTTP status; reason: metav1.Status reason (NotFound, Invalid, ...); details: metav1.StatusDetails;
    retry_after_s: how long the API asks to be left alone, 0 if it does not say.
    """

    code = 500
    reason = "InternalError"

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        reason: str | None = None,
        details: dict[str, object] | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code if code is not None else type(self).code
        self.reason = reason if reason is not None else type(self).reason
        self.details = details or {}
        self.retry_after_s = retry_after_s


class NotFoundError(ApiError):
    code, reason = 404, "NotFound"


class ConflictError(ApiError):
    code, reason = 409, "Conflict"


class AlreadyExistsError(ApiError):
    code, reason = 409, "AlreadyExists"


class InvalidError(ApiError):
    code, reason = 422, "Invalid"


class GoneError(ApiError):
    code, reason = 410, "Expired"


class KernelError(PodlaneError):
    """The kernel refused an operation. detail: its own words (extended ack), or those of the errno."""

    def __init__(self, errno: int, operation: str, detail: str = "") -> None:
        self.errno, self.operation = errno, operation
        self.detail = detail or _os.strerror(errno)
        super().__init__(f"{operation}: {self.detail} ({_errno.errorcode.get(errno, errno)})")

    @classmethod
    def of(cls, errno: int, operation: str, detail: str = "") -> KernelError:
        """The subclass that fits errno."""
        kind = {
            _errno.ENOENT: KernelNotFoundError,
            _errno.ENODEV: KernelNotFoundError,
            _errno.ESRCH: KernelNotFoundError,
            _errno.EADDRNOTAVAIL: KernelNotFoundError,
            _errno.EEXIST: KernelExistsError,
            _errno.EBUSY: KernelBusyError,
        }.get(errno, KernelError)
        return kind(errno, operation, detail)


class KernelNotFoundError(KernelError):
    pass


class KernelExistsError(KernelError):
    pass


class KernelBusyError(KernelError):
    pass


class CniError(PodlaneError):
    """CNI spec 1.1, "Error": code 1..99 of the specification, 100 and above our own."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details
