"""Requests that are not answered: what is said to the client, in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from tuyi.errors import DataError, TuyiError

__all__ = ["RefusalError", "refused"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusalError(TuyiError):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: Expected, found, fix; for the client's eyes, so never a path or a token.
        param: The dotted name of what is wrong in the request.
        code: A word for programs.
        retry_after: Seconds after which it is worth trying again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What the answer's head says beside its status."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def refused(error: DataError) -> RefusalError:
    """What is said of a row that cannot be used; without its place, which is the server's own."""
    return RefusalError(400, error.message, code="unusable_content")
