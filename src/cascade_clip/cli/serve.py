"""The command that starts the service."""

from __future__ import annotations

import os
import sys

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
    """Answer segmentation requests over HTTP: POST /segment, /health, /metrics, /docs.

    The service listens on this machine alone unless --host says otherwise, and needs no network. It
    stops at SIGTERM or Ctrl-C, after it has answered what it accepted.

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
    from cascade_clip.cli.web import address_of, open_socket
    from cascade_clip.serving.http import LOCAL_HOSTS, Service
    from cascade_clip.serving.http import run as answer

    service = Service(lambda: loading.load(model), options)
    local = host in LOCAL_HOSTS
    hosts = allow_host or (LOCAL_HOSTS if local else ("*",))
    with open_socket(host, port) as sock:
        say(f"{address_of(sock, host, public=not local)}/docs describes the service; Ctrl-C stops")
        answer(service, sock, hosts)
    say("stopped")
    if service.jobs is not None and service.jobs.busy:
        warn("the grace time is over: pictures that were at work have been given up")
        sys.stdout.flush()
        sys.stderr.flush()
        # a thread inside torch must not meet the end of the interpreter, which would abort
        os._exit(0)
    return 0
