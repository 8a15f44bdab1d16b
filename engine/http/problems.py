"""Error answers: a code of the closed table as a Response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.domain.problems import CONTENT_TYPE, PROBLEMS, problem_bytes
from engine.domain.refusals import Refusal
from engine.http.exchange import Response

# A 401 must carry a challenge (RFC 9110, 15.5.2).
_CHALLENGES: Final = {
    "invalid_api_key": "Bearer",
    "webhook_signature_invalid": "Webhook-Signature",
}


def problem(
    code: str,
    *,
    detail: str,
    instance: str,
    request_id: str,
    param: str | None = None,
    extra: Mapping[str, Any] | None = None,
    retry_after_s: int | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    """Answer with the problem document of `code`; see `problem_bytes` for its members and errors.

    `retry_after_s` becomes the `Retry-After` header, in whole seconds (RFC 9110, 10.2.3).
    """
    if retry_after_s is not None:
        headers = (*headers, ("Retry-After", str(retry_after_s)))
    if (challenge := _CHALLENGES.get(code)) is not None:
        headers = (*headers, ("WWW-Authenticate", challenge))
    body = problem_bytes(
        code, detail=detail, instance=instance, request_id=request_id, param=param, extra=extra
    )
    return Response(PROBLEMS[code].status, body, CONTENT_TYPE, headers)


def refused(refusal: Refusal, *, instance: str, request_id: str) -> Response:
    """Answer with a refusal."""
    return problem(
        refusal.code,
        detail=refusal.detail,
        instance=instance,
        request_id=request_id,
        param=refusal.param,
        retry_after_s=refusal.retry_after_s,
    )


def method_not_allowed(
    allowed: tuple[str, ...], *, instance: str, request_id: str, meant: tuple[str, ...] = ()
) -> Response:
    """Answer 405 and name the methods that are allowed there (RFC 9110, 15.5.6).

    `meant` are paths the client may have had in mind.
    """
    names = ", ".join(allowed)
    hint = f" A POST goes to {', '.join(meant)}." if meant else ""
    return problem(
        "method_not_allowed",
        detail=f"Allowed here: {names}.{hint}",
        instance=instance,
        request_id=request_id,
        headers=(("Allow", names),),
    )
