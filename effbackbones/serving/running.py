"""A service from its start to its end: a socket, a web server, and signals that stop it without losing what it took."""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any

from effbackbones.errors import UserError
from effbackbones.serving.service import Service
from effbackbones.serving.web import Page, web_app

DRAIN = 60
"""Seconds that the end waits for who does not read its answer."""
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


def require_packages() -> None:
    """Raise :class:`UserError` where what a service needs is not installed."""
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"needs packages that are not installed ({', '.join(missing)})"
        raise UserError("serve", what, "pip install 'effbackbones[serve]'")


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, on which nobody is answered yet; port 0 takes a free one. Raises :class:`UserError`."""
    if not 0 <= port <= 65535:
        raise UserError("--port", f"expected 0 to 65535, got {port}", "correct it; 0 takes a free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            "--host, --port", f"{host} port {port} cannot be served at ({why})", "take another, or end who has it"
        ) from None


def run(
    service: Service,
    listening: socket.socket,
    tell: Callable[[str], None],
    page: Page | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> "signal.Signals | None":
    """Serve until a signal says to stop, then answer what was taken; returns that signal. A second signal ends the process at once.
    ``page`` adds paths to the application; ``started`` is called with its address.
    In another thread than the main one there are no signals to hear, and it serves for ever."""
    import uvicorn  # optional: extra `serve`

    host, port = listening.getsockname()[:2]
    stopped: list[signal.Signals] = []

    class Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]  # Any where it is not installed
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: signal.Signals) -> None:
                stopped.append(number)
                service.draining = self.should_exit = True

            with _heard(stop):
                yield

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            shown = f"[{host}]" if ":" in host else host
            started(f"http://{shown}:{port}")
            tell(f"serving at http://{shown}:{port} (its options: /docs)")

    _log_to_standard_error()
    config = uvicorn.Config(
        web_app(service, page),
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=DRAIN,
    )
    with closing(service):
        service.warm()
        Server(config).run([listening])
    return stopped[0] if stopped else None


@contextmanager
def _heard(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Inside, the first signal that asks to stop calls ``stop``, the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            os._exit(130 if number == signal.SIGINT else 143)
        heard = True
        stop(signal.Signals(number))

    wakeup = signal.set_wakeup_fd(-1)  # who watches for signals that are not answered is not needed: these are
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # what nohup has made ignored stays so
            signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)


def _log_to_standard_error() -> None:
    """What goes wrong is to be seen where nobody has set up logging."""
    if not logging.getLogger().handlers and not logging.getLogger("effbackbones.serving").handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        for name in ("effbackbones.serving", "uvicorn.error"):
            log = logging.getLogger(name)
            log.addHandler(handler)
            log.propagate = False
