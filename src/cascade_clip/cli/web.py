"""The command that opens the web page."""

import signal
import tempfile
from pathlib import Path

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.sockets import listen
from cascade_clip.cli.terminal import say
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions


def web(
    *,
    model: list[str] = [],  # noqa: B006 (never changed; the parser shows it as the default)
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: int = 20,
    max_pixels: int = 16_000_000,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Segment images with your own class names in the browser.

    The page listens on this machine only unless --host says otherwise; it needs no network.

    Args:
        model: checkpoint folder, run folder, or clip:ViT-B-16-quickgelu/openai (CLIP alone, no
            training), to offer in addition to the packaged models mini and mini-last; may be given
            several times, the first is chosen at the start.
        host: address to listen on; 0.0.0.0 opens the page to the whole network, without a password.
        port: port to listen on; 0 takes a free one.
        max_upload: largest upload, in MiB.
        max_pixels: most pixels of an image.
        loading: how to load and run the model.
    """
    from cascade_clip.serving.web import WebService, serve

    # stopped in either way, uploads are deleted
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cascade-clip-web-") as folder,
            listen(host, port) as (sock, address, hosts),
        ):
            service = WebService(model, Path(folder).resolve(), max_pixels, max_upload, loading)
            say(f"open {address} in a browser; Ctrl-C stops")
            serve(service, sock, hosts)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    return ExitCode.DONE
