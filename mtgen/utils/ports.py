"""Ports of this machine on which pages are served."""

import errno
import socket

from mtgen.errors import UserError


def free_port(host: str, port: int) -> int:
    """`port`, or the next one from there that nobody listens on; 0: any.

    Raises:
        UserError: where `host` is no address of this machine, or a hundred ports are taken.
    """
    for candidate in range(port, min(port + 100, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except PermissionError:
                continue  # a port below 1024
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise UserError(f"{host}: no address of this machine ({error.strerror}); use 127.0.0.1") from None
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"ports {port} to {port + 99} are all taken; give another port")
