"""Serve the page on a local port until Ctrl-C."""

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
"""Seconds that a pending answer may take after Ctrl-C."""


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
    """Serve the page for a run on loopback until Ctrl-C, and print its address.

    Args:
        port: the next free port is taken if it is in use.
        checkpoint: as `mtgen.models.loading.select_checkpoint`; default: the newest intact one.
        browser: whether to open the page in a browser; default: if there is a display.
        say: called with each line for the user.

    Raises:
        CheckpointError: the run or checkpoint does not exist.
        UserError: `host` is not a loopback name, or no port is free.
    """
    if host not in HOSTS:
        raise UserError(
            f"--host {host}: the page has no password, so it is served on this machine only ({' or '.join(HOSTS)}); "
            f"to use it from another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
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
    if threading.current_thread() is threading.main_thread():  # a shell starts background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1", port))) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        say(f"{explorer.folder.name} at {explorer.trained.images:,} images: explore it at {address} (Ctrl-C stops it)")
        if _has_screen() if browser is None else browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            say("")


def _has_screen() -> bool:
    """Whether there is a display; a text browser in the terminal would be of no use."""
    return sys.stdout.isatty() and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
