"""The command that starts the service."""

import os
import sys

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.cli.sockets import listen
from cascade_clip.cli.terminal import say, warn
from cascade_clip.config import ServiceOptions
from cascade_clip.inference import DEFAULT_LOADING, LoadOptions

DEFAULT_OPTIONS = ServiceOptions()


def serve(
    *,
    model: str = "mini",
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: list[str] = [],  # noqa: B006 (never changed; the parser shows it as the default)
    options: ServiceOptions = DEFAULT_OPTIONS,
    loading: LoadOptions = DEFAULT_LOADING,
) -> int:
    """Serve segmentations over HTTP: POST /segment, /health, /metrics, /docs.

    The service listens on this machine only unless --host says otherwise, and needs no network. At
    SIGTERM or Ctrl-C it finishes the requests it has accepted, then stops.

    Args:
        model: checkpoint folder, run folder, packaged model (mini, mini-last), or
            clip:ViT-B-16-quickgelu/openai (CLIP alone, no training).
        host: address to listen on; 0.0.0.0 opens the service to the whole network, without a
            password.
        port: port to listen on; 0 takes a free one.
        allow_host: a name by which the service may be called; may be given several times. By
            default the names of this machine (localhost, 127.0.0.1, ::1) where it listens on the
            loopback address, else any.
        options: limits.
        loading: how to load and run the model.
    """
    from cascade_clip.serving.http import Service
    from cascade_clip.serving.http import run as run_service

    service = Service(lambda: loading.load(model), options)
    with listen(host, port) as (sock, address, hosts):
        say(f"{address}/docs describes the service; Ctrl-C stops")
        run_service(service, sock, allow_host or hosts)
    say("stopped")
    if service.jobs is not None and service.jobs.busy:
        warn("the grace time is over: images that were being segmented have been given up")
        sys.stdout.flush()
        sys.stderr.flush()
        # a thread inside torch must not meet the end of the interpreter, which would abort
        os._exit(0)
    return ExitCode.DONE
