"""Free ports to serve pages on."""

import errno
import socket

from mtgen.errors import UserError


def free_port(host: str, port: int) -> int:
    """`port`, or the first free one of the 99 after it; 0: any free port.

    Raises:
        UserError: `host` is not an address of this system, or no port is free.
    """
    for candidate in range(port, min(port + 100, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except PermissionError:
                continue  # ports below 1024 are for root
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise UserError(
                        f"{host}: not an address of this system ({error.strerror}); use 127.0.0.1"
                    ) from None
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"ports {port} to {port + 99} are in use; choose another port")
