"""The web application: paths, what they take and give, and every way to say no, over a :class:`Service`."""

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from effbackbones.errors import UserError
from effbackbones.serving.bodies import check_headers, discard, files_of, read_body
from effbackbones.serving.figures import CONTENT_TYPE
from effbackbones.serving.limits import RefusedError
from effbackbones.serving.service import Service

LOG = logging.getLogger("effbackbones.serving")
PATHS = ("/", "/predict", "/health", "/ready", "/metrics", "/docs", "/openapi.json")
_OPTIONS = ("threshold", "top_k")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
_PREDICT: dict[str, Any] = {
    "summary": "Predict an image, or several.",
    "description": "An image as body gives its result; a form with one or several files gives a list of results. Where one of these cannot "
    "be read, the status is 422, `error` says why, and `results` has those of the others.",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "image/*": _BINARY,
                "audio/*": _BINARY,
                "application/octet-stream": _BINARY,
                "multipart/form-data": _FORM,
            },
        }
    },
    "responses": {
        status: {
            "description": about,
            "content": {"application/json": {"example": {"error": "what is wrong; what to do"}}},
        }
        for status, about in {
            400: "The form cannot be read, or holds no file.",
            408: "The body did not come in time.",
            413: "Too many bytes, or files.",
            415: "Of a kind that is not taken.",
            422: "No image that can be read, or an option that is wrong.",
            500: "Something went wrong here; `id` finds it in the log.",
            503: "Busy, or going down: try again later.",
        }.items()
    },
}


Work = Callable[[AsyncIterator[bytes]], Awaitable[Any]]
"""From a body, as it comes, to a response; refuses by :class:`RefusedError`."""


Page = Callable[[Any, Service, Callable[[Any, Work], Any]], None]
"""Adds paths to an application of a service, whose requests are answered by some work, or told what is the matter."""


def web_app(service: Service, page: Page | None = None) -> Any:
    """The ASGI application of a service; ``page`` adds paths to it."""
    from fastapi import FastAPI, Request, Response  # optional: extra `serve`
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    def said(status: int, content: dict[str, Any], after: int | None = None) -> Response:
        headers = {} if after is None else {"Retry-After": str(after)}
        if service.draining:
            headers["Connection"] = "close"
        return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")

    async def answered(request: Request, work: Work) -> Response:
        body = request.stream()
        try:
            try:
                if service.draining:
                    raise RefusedError(503, "going down: ask another instance, or try again later", after=5)
                response: Response = await work(body)
                return response
            except RefusedError as refusal:
                if "expect" not in request.headers:  # who waits to be told so does not send in vain
                    await discard(body, service.limits)
                return said(refusal.status, {"error": refusal.reason}, refusal.after)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody hears it; the figures count it
        except Exception:
            known = secrets.token_hex(6)
            LOG.exception("request %s failed", known)
            return said(500, {"error": "something went wrong here; the log tells more by its id", "id": known})

    async def predict(request: Request, threshold: float | None = None, top_k: int | None = None) -> Response:
        return await answered(request, partial(answer, request, threshold, top_k))

    async def answer(
        request: Request, threshold: float | None, top_k: int | None, coming: AsyncIterator[bytes]
    ) -> Response:
        given = [key for key, _ in request.query_params.multi_items()]
        for key in given:
            if key not in _OPTIONS:
                raise RefusedError(422, f"option {key[:60]!r} is not known; there are {', '.join(_OPTIONS)}")
            if given.count(key) > 1:
                raise RefusedError(422, f"option {key!r} is there {given.count(key)} times: say it once")
        try:
            predictor = service.asking(threshold, top_k)
        except UserError as error:
            raise RefusedError(422, str(error)) from None
        headers = request.headers
        check_headers(headers, service.limits)
        with service.room.held() as share:
            share.require(images=1)  # taken when it is there: who sends slowly keeps no place from others
            body = await read_body(coming, service.limits, share)
            files, several = files_of(body, headers, service.limits)
            del body
            share.take(images=len(files))
            answers = await service.predict(files, predictor)
        status, texts = 200, [one.text for one in answers]
        failed = next((one for one in answers if one.error), None)
        text = f"[{', '.join(texts)}]" if several else texts[0]
        if failed:
            status = 422 if failed.refused else 500
            if not failed.refused:
                LOG.error("%s", failed.error)
            whole = f', "results": {text}' if several else ""
            text = f'{{"error": {json.dumps(failed.error)}{whole}}}'
        names = ("decode", "network")
        took = {
            "Server-Timing": ", ".join(
                f"{name};dur={sum(getattr(one, name) for one in answers) * 1000:.1f}" for name in names
            )
        }
        return Response(text, status, took | ({"Connection": "close"} if service.draining else {}), "application/json")

    async def health() -> Response:
        return said(200, {"status": "alive"}) if service.alive else said(503, {"error": "the model does not answer"})

    async def ready() -> Response:
        why = "going down" if service.draining else "not warmed yet" if service.alive else "the model does not answer"
        return said(200, {"status": "ready"}) if service.ready else said(503, {"error": why}, after=1)

    async def metrics() -> Response:
        return Response(service.metrics(), media_type=CONTENT_TYPE)

    async def about() -> Response:
        return said(200, service.facts())

    async def wrong(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        where = str(first["loc"][-1])[:60]
        return said(422, {"error": f"{where}: {first['msg']}, got {str(first.get('input'))[:60]!r}; correct it"})

    async def unknown(request: Request, error: Any) -> Response:
        return said(error.status_code, {"error": f"{error.detail}; the paths are {', '.join(PATHS)}"})

    app = FastAPI(
        title="effbackbones",
        description="Predictions of a trained model.",
        redoc_url=None,
        exception_handlers={RequestValidationError: wrong, HTTPException: unknown},
    )
    app.add_api_route("/predict", predict, methods=["POST"], response_class=Response, **_PREDICT)
    for path, function, summary in (
        ("/health", health, "Whether the process lives."),
        ("/ready", ready, "Whether requests are wanted."),
        ("/metrics", metrics, "Figures for Prometheus."),
        ("/", about, "What the model is."),
    ):
        app.add_api_route(path, function, methods=["GET"], summary=summary, response_class=Response)
    if page is not None:
        page(app, service, answered)
    return Counted(app, service)


Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Counted:
    """An ASGI application whose answers are counted."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        status, start = 500, time.monotonic()

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if scope["type"] == "http":
                path = scope["path"] if scope["path"] in PATHS else "other"  # or strangers would name our series
                seconds = time.monotonic() - start if path == "/predict" else None
                self._service.figures.request(path, status, seconds)
