"""The command that opens the web page."""

from __future__ import annotations

import signal
import socket
import tempfile
from pathlib import Path

from cascade_clip.cli.terminal import say, warn
from cascade_clip.errors import SettingError
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions

MEBIBYTE = 2**20


def web(
    *,
    model: list[str] = [],  # noqa: B006 (never changed; the parser shows it as the default)
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: int = 20,
    max_pixels: int = 16_000_000,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Segment pictures with your own words in the browser.

    The page listens on this machine alone unless --host says otherwise; it needs no network.

    Args:
        model: checkpoint folder, run folder, or clip:ViT-B-16-quickgelu/openai (CLIP alone, no
            training), to offer beside the packaged models mini and mini-last; may be given several
            times, the first is chosen at the start.
        host: address to listen on; 0.0.0.0 opens the page to the whole network, without a password.
        port: port to listen on; 0 takes a free one.
        max_upload: largest upload, in MiB.
        max_pixels: most pixels of a picture.
        loading: how to load and run the model.
    """
    from cascade_clip.serving.web import LOOPBACK, Studio, serve

    if not 1 <= max_upload <= 1024:
        raise SettingError(f"--max-upload must lie in 1..1024 MiB, got {max_upload}")
    # stopped in either way, uploads are deleted
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cascade-clip-web-") as folder,
            open_socket(host, port) as sock,
        ):
            studio = Studio(model, Path(folder).resolve(), max_pixels, loading)
            address = address_of(sock, host, public=host not in LOOPBACK)
            say(f"open {address} in a browser; Ctrl-C stops")
            serve(studio, sock, max_upload * MEBIBYTE, host)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def address_of(sock: socket.socket, host: str, *, public: bool) -> str:
    """Return the address to open; warn where other machines can reach it."""
    if public:
        warn(
            f"warning: {host} is not the loopback address: everyone who reaches this machine can"
            " use it, without a password"
        )
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: no such port or address, or one that is in use.
    """
    if not 0 <= port <= 65535:
        raise SettingError(f"--port must lie in 0..65535, got {port}")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise SettingError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose others with --host"
            " and --port"
        ) from error
