"""Where the page listens."""

from __future__ import annotations

import socket

from exptilt.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost")


def require_free(host: str, port: int | None) -> None:
    """Check that a server can listen there; no port is any port.

    Raises:
        InputError: The host is not one of this machine's, or the port is in use, reserved or out of range.
    """
    if port is not None and not 0 < port < 1 << 16:
        raise InputError(f"--port {port}", "is out of range", f"give a number from 1 to {(1 << 16) - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise unusable(host, port, error) from None


def unusable(host: str, port: int | None, error: OSError | UnicodeError) -> InputError:
    """The error that says so."""
    subject = f"--host {host}" if port is None else f"--host {host} --port {port}"
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return InputError(subject, f"cannot be listened on{reason}", "give another host or port, or leave them out")
