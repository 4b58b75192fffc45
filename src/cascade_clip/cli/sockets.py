"""The socket of a command that serves others."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cascade_clip.cli.terminal import warn
from cascade_clip.errors import SettingError


@contextmanager
def listen(host: str, port: int) -> Iterator[tuple[socket.socket, str, Sequence[str]]]:
    """Open a listening socket, with a warning where other machines can reach it.

    Yields:
        The socket, its address for a browser, and the names by which the server may be called.

    Raises:
        SettingError: no such port or address, or one that is in use.
    """
    from cascade_clip.serving import ANY_HOST, LOCAL_HOSTS

    if not 0 <= port <= 65535:
        raise SettingError(f"--port must lie in 0..65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        hint = "choose others with --host and --port"
        message = f"cannot listen on {host}, port {port} ({error.strerror}); {hint}"
        raise SettingError(message) from error
    with sock:
        if host not in LOCAL_HOSTS:
            warn(f"warning: {host} lets everyone who reaches this machine in, without a password")
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{sock.getsockname()[1]}"
        yield sock, address, LOCAL_HOSTS if host in LOCAL_HOSTS else ANY_HOST
