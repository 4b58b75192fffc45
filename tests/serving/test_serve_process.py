"""The service as a process of its own: signals, slow clients, too many connections, a model that is
not there."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import httpx

from cascade_clip.cli.main import main
from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene

WORDS = "water, snow, fabric, umbrella"


class Server(NamedTuple):
    """A service that is ready: one slot, 30 connections, 4 seconds of patience."""

    process: subprocess.Popen[str]
    address: str
    port: int


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--upload-timeout", "4", "--connections", "30", "--queue", "0", "--grace", "60")
    command = [
        sys.executable,
        "-u",
        "-m",
        "cascade_clip",
        "serve",
        "--port",
        "0",
        "--device",
        "cpu",
        *flags,
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"(http://127\.0\.0\.1:(\d+))/docs", process.stdout.readline())
            assert found
            end = time.monotonic() + 60
            while httpx.get(f"{found[1]}/health").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.1)
            yield Server(process, found[1], int(found[2]))
        finally:
            if process.poll() is None:
                process.kill()


def picture(size: int) -> tuple[np.ndarray, bytes]:
    array = np.tile(make_scene(2, 74, SceneConfig(size=128)).image, (1, size // 128, 1))
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return array, file.getvalue()


def ask(address: str, file: bytes) -> Any:
    return httpx.post(
        f"{address}/segment", data={"classes": WORDS}, files={"image": file}, timeout=60
    )


def closes_within(sock: socket.socket, seconds: float) -> bytes:
    """What a server says until it closes the connection."""
    sock.settimeout(seconds)
    said = b""
    try:
        while part := sock.recv(4096):
            said += part
    except ConnectionResetError:
        pass
    return said


def test_slow_clients_are_cut_off_and_hold_up_nobody(server: Server) -> None:
    process, address, port = server
    _, file = picture(128)
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(18)]
    for sock in opened[:6]:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    for sock in opened[6:12]:
        sock.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
    assert ask(address, file).status_code == 200  # there is one slot; slow uploads do not hold it
    said = [closes_within(sock, 15) for sock in opened]
    assert said[:6] == said[12:] == [b""] * 6
    assert all(part.startswith(b"HTTP/1.1 408") and b"took too long" in part for part in said[6:12])
    flood = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    started = time.monotonic()
    assert closes_within(flood[-1], 10) == b""
    assert time.monotonic() - started < 3  # beyond 30 at once, not only after 4 seconds of silence
    for sock in [*opened, *flood]:
        sock.close()
    time.sleep(0.2)
    assert ask(address, file).status_code == 200
    assert process.poll() is None


def test_a_signal_lets_it_finish_and_refuses_what_is_new(server: Server) -> None:
    """The last test of this server."""
    process, address, _ = server
    array, file = picture(2560)  # 27 windows: long enough for a signal in between
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, file)
        end = time.monotonic() + 30
        while "cascade_clip_slots_used 1.0" not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < end and not answer.done()
        assert ask(address, file).status_code == 429
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{address}/health").json()["status"] != "stopping":
            assert time.monotonic() < end
        refused = ask(address, file)
        assert (refused.status_code, refused.json()) == (503, {"error": "the service is stopping"})
        assert answer.result().status_code == 200
        found = np.array(Image.open(io.BytesIO(answer.result().content)))
        assert process.wait(20) == 0
    assert process.stdout is not None and process.stderr is not None
    assert (process.stdout.read(), process.stderr.read()) == ("stopped\n", "")
    assert (
        found == load_predictor("mini", device="cpu").segment(array, WORDS).labels
    ).mean() > 0.9999
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--model", "no/such/model"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cascade-clip: error: ") and error.count("\n") == 1
    assert "no/such/model" in error
