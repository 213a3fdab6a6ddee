"""The page's address, from the first free port to Ctrl-C."""

import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from mtgen.errors import UserError
from mtgen.explore.app import HOSTS, build_app
from mtgen.explore.explorer import Explorer
from mtgen.utils.ports import free_port

PORT = 8760
SHUTDOWN_SECONDS = 2
"""Seconds that an answer may still take when the page ends."""


def serve_page(
    run: str | Path,
    port: int = PORT,
    *,
    host: str = "127.0.0.1",
    device: str = "auto",
    checkpoint: str | None = None,
    browser: bool | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page over a run until Ctrl-C, on loopback alone; the next free port is taken where `port` is not, and the address is said.

    Args:
        checkpoint: as `mtgen.models.loading.select_checkpoint`; default: the newest that is whole.
        browser: whether to open the page in a browser; default: where there is a screen.
        say: where the lines for the user go.

    Raises:
        CheckpointError: there is no such run or checkpoint.
        UserError: `host` is not this machine alone, or no port is free.
    """
    if host not in HOSTS:
        raise UserError(
            f"{host}: the page has no password, so it is for this machine alone ({' or '.join(HOSTS)}); "
            f"from another one: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
        )
    explorer = Explorer(run, device, checkpoint)
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(explorer),
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    if threading.current_thread() is threading.main_thread():  # a shell's background jobs begin with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1", port))) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        say(f"{explorer.folder.name} at {explorer.trained.images:,} images: explore it at {address} (Ctrl-C ends it)")
        if _has_screen() if browser is None else browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            say("")


def _has_screen() -> bool:
    """Whether somebody sits in front of this machine: a browser in a terminal is of no use."""
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
