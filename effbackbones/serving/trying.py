"""A page in a browser to try a model: the page itself, sample images, and heat maps of what speaks for a class."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from effbackbones.errors import UserError
from effbackbones.inference.explaining import Explanation, explain
from effbackbones.numbers import plain_number
from effbackbones.serving.bodies import check_headers, files_of, read_body
from effbackbones.serving.limits import RefusedError
from effbackbones.serving.service import Service
from effbackbones.serving.web import Work

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own parts alone."""
_KINDS = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_LARGEST = 1024
"""Longest side of a heat map that is sent."""


def png_of(pixels: Any) -> str:
    """An image uint8 [H, W] or [H, W, 3] as PNG in base 64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def add_page(app: Any, service: Service, answered: Callable[[Any, Work], Any], samples: Sequence[Any]) -> None:
    """Add ``/demo``, its parts and ``/explain`` to a FastAPI application, whose requests are ``answered`` as
    :func:`effbackbones.serving.web.web_app` says. ``samples``: images uint8 [H, W, 3]. A model that hears recordings raises
    :class:`UserError`."""
    from fastapi import Request, Response  # optional: extra `serve`

    if service.predictor.model.image_spec.rate is not None:
        raise UserError("demo", "the page shows pictures, and this model hears recordings", "take the verb serve")
    alone = asyncio.Lock()  # gradients take memory: one image at a time
    pictures = json.dumps({"samples": [png_of(one) for one in samples]})

    def part(name: str) -> Any:
        content = (files("effbackbones.serving") / "page" / name).read_bytes()
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

        async def send() -> Response:
            return Response(content, headers=headers, media_type=_KINDS[name])

        return send

    async def shown() -> Response:
        return Response(pictures, media_type="application/json")

    async def explained(request: Request) -> Response:
        response: Response = await answered(request, partial(heated, request))
        return response

    async def heated(request: Request, coming: AsyncIterator[bytes]) -> Response:
        wishes = wishes_of(request.query_params.multi_items())
        check_headers(request.headers, service.limits)
        with service.room.held() as share:
            share.require(images=1)
            body = await read_body(coming, service.limits, share)
            (image, *more), _ = files_of(body, request.headers, service.limits)
            if more:
                raise RefusedError(413, "one image is explained at a time: send several requests")
            share.take(images=1)
            work = partial(explain, service.predictor, image, **wishes)
            try:
                async with alone:
                    found = await asyncio.get_running_loop().run_in_executor(None, work)
            except UserError as error:
                raise RefusedError(422, str(error)) from None
        return Response(json.dumps(told(found)), media_type="application/json")

    for path, name in (("/demo", "index.html"), ("/demo/page.css", "page.css"), ("/demo/page.js", "page.js")):
        app.add_api_route(path, part(name), methods=["GET"], response_class=Response, include_in_schema=False)
    app.add_api_route("/demo/samples", shown, methods=["GET"], response_class=Response, include_in_schema=False)
    app.add_api_route("/explain", explained, methods=["POST"], summary="A heat map.", response_class=Response)


def wishes_of(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What is asked of an explanation: ``label``, ``box`` (four numbers with commas), ``task``, ``level``."""
    wishes: dict[str, Any] = dict(items)
    for name, _ in items:
        if name not in ("label", "box", "task", "level"):
            raise RefusedError(422, f"option {name[:60]!r} is not known; there are label, box, task, level")
    if len(wishes) < len(items):
        raise RefusedError(422, "an option is there twice: say it once")
    if "box" in wishes:
        try:
            box = tuple(plain_number(side) for side in wishes["box"].split(","))
        except ValueError:
            box = ()
        if len(box) != 4 or not np.isfinite(box).all():
            raise RefusedError(422, f"box: expected left,top,right,bottom, got {wishes['box'][:60]!r}; correct it")
        wishes["box"] = box
    return wishes


def told(found: Explanation) -> dict[str, Any]:
    """An explanation as plain values; ``heat`` as PNG in base 64, red of an opacity that is the heat."""
    height, width = found.heat.shape
    heat = np.zeros((height, width, 4), np.uint8)
    heat[..., 0], heat[..., 1], heat[..., 3] = 255, found.heat * 200, found.heat * 255
    image = Image.fromarray(heat)
    image.thumbnail((_LARGEST, _LARGEST))
    facts = {name: getattr(found, name) for name in ("source", "size", "task", "label", "name", "level")}
    return {**facts, "heat": png_of(np.asarray(image))}
