"""An error as an answer: its status, and what a client may do about it."""

from __future__ import annotations

ERROR_TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "overloaded",
    500: "internal_error",
    503: "unavailable",
    504: "deadline_exceeded",
}
"""Every status of an error, with its name in bodies and in the metric ``pipeline_kit_rejected_total``."""


class Refused(Exception):
    """A request that is answered with an error.

    :param status: one of `ERROR_TYPES`.
    :param param: the place in the body that is wrong, such as ``$.inputs[0]``.
    :param retry_after: seconds after which the client may come back.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after

    @property
    def type(self) -> str:
        """The name of the status."""
        return ERROR_TYPES[self.status]
