"""The service under attack and under load: it refuses what it must, stays small, answers right, and
stops cleanly.

The web page's own guard is tried in `tests/serving/test_web.py`; here a service of its own process
is asked over sockets.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from cascade_clip.cli.main import main as cascade_clip
from cascade_clip.inference.loading import load_predictor
from cascade_clip.sandbox.scenes import SceneConfig, make_scene
from figures import Figure, main
from load_service import LEAST_AGREEMENT, PATIENCE, WORDS, Case, build_cases, load

PLACES = 5
"""Requests that may be in the house: one at work, the others in the queue."""
GRACE = 100
UPLOAD_SECONDS = 5
LIMITS = {
    "max-upload": 1,
    "upload-timeout": UPLOAD_SECONDS,
    "queue": PLACES - 1,
    "connections": 150,
    "timeout": 120,
    "grace": GRACE,
}
HEAD = b"POST /segment HTTP/1.1\r\nHost: localhost\r\n"
SILENCE = b"neither an answer nor the end of the connection"


class Server(NamedTuple):
    """A service that is ready."""

    process: psutil.Process
    output: TextIO
    errors: TextIO
    address: str
    port: int

    def connect(self) -> socket.socket:
        """A connection of one's own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def memory(self) -> float:
        """Resident memory in MiB."""
        return float(self.process.memory_info().rss) / 2**20


def launch(*, fresh: bool) -> tuple[psutil.Process, TextIO, TextIO]:
    """A service in a child with its output and errors: a new interpreter, or, sooner, a copy of
    this process with all that it imported."""
    words = [
        "serve",
        "--port",
        "0",
        "--device",
        "cpu",
        *(f"--{name}={value}" for name, value in LIMITS.items()),
    ]
    (output, to_output), (errors, to_errors) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(to_output, 1)
            os.dup2(to_errors, 2)
            if fresh:
                os.execv(sys.executable, [sys.executable, "-u", "-m", "cascade_clip", *words])
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
            code = cascade_clip(words)
            sys.stdout.flush()
        finally:
            os._exit(code)
    os.close(to_output)
    os.close(to_errors)
    return psutil.Process(child), open(output), open(errors)


@contextmanager
def start_server(*, fresh: bool) -> Iterator[Server]:
    """A service with small limits; whatever happens it has ended afterwards."""
    process, output, errors = launch(fresh=fresh)
    try:
        found = re.search(r"(http://127\.0\.0\.1:(\d+))/docs", output.readline())
        assert found, "the service did not start"
        end = time.monotonic() + PATIENCE
        with httpx.Client(base_url=found[1], timeout=PATIENCE) as client:
            while client.get("/health").status_code != 200:
                assert time.monotonic() < end, "the service did not become ready"
                time.sleep(0.1)
        yield Server(process, output, errors, found[1], int(found[2]))
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait(PATIENCE)
        output.close()
        errors.close()


def say(server: Server, text: bytes, patience: float = 30.0) -> bytes:
    """What the service answers to raw bytes, until it closes; SILENCE where it keeps the connection
    and says nothing."""
    with server.connect() as sock:
        sock.settimeout(patience)
        said = b""
        try:
            sock.sendall(text)
            while part := sock.recv(65536):
                said += part
                if b"\r\n\r\n" in said and len(said.partition(b"\r\n\r\n")[2]) >= _length(said):
                    break
        except TimeoutError:
            return SILENCE
        except ConnectionError:
            pass
    return said


def _length(said: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", said, re.IGNORECASE)
    return int(found[1]) if found else 0


def status(said: bytes) -> int:
    """The status of a raw answer; 0 where the connection was closed without one, -1 where nothing
    came."""
    if said == SILENCE:
        return -1
    found = re.match(rb"HTTP/1\.1 (\d{3})", said)
    return int(found[1]) if found else 0


def names_and_paths(server: Server) -> Iterator[Figure]:
    """Other host names, other sites, other paths."""
    hosts = (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "[evil",
        "",
        "169.254.169.254",
    )
    found = [
        status(
            say(
                server,
                f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),
            )
        )
        for host in hosts
    ]
    own = [
        status(say(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))
        for host in ("localhost", "127.0.0.1:1", "[::1]")
    ]
    text = (
        f"{len(hosts)} foreign names: {found.count(400)} refused (400); {own.count(200)} of"
        f" {len(own)} own names served"
    )
    yield Figure("host header", text, set(found) == {400} and set(own) == {200})
    sites = ("http://evil.example", "null", "https://localhost", "http://[")
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
        found = [client.post("/segment", headers={"origin": site}).status_code for site in sites]
    yield Figure(
        "requests of other sites",
        f"{len(sites)} origins: {found.count(403)} refused (403)",
        set(found) == {403},
    )
    paths = (
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
        "/docs/../../etc/passwd", "/segment/..",
        "/static/..\\..\\etc\\passwd", "/etc/passwd%00.png", "/file=/etc/passwd",
        "/proc/self/environ", "/openapi.json/../../../etc/passwd",
    )  # fmt: skip
    said = [
        say(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        for path in paths
    ]
    leaked = sum(b"root:" in answer or b"PATH=" in answer for answer in said)
    text = (
        f"{len(paths)} paths: {sum(status(answer) in (400, 404) for answer in said)} refused (400,"
        f" 404), {leaked} gave a file away"
    )
    yield Figure(
        "path traversal", text, all(status(answer) in (400, 404) for answer in said) and leaked == 0
    )


def large_and_odd(server: Server, case: Case) -> Iterator[Figure]:
    """Uploads that are too large or lie about their size."""
    before, big = server.memory(), b"x" * 2**16
    said = [
        say(server, HEAD + b"Content-Length: 99999999999\r\n\r\n"),
        say(server, HEAD + b"Content-Length: 1200000\r\n\r\n"),
        say(server, HEAD + b"Content-Length: -5\r\n\r\n"),
        say(server, HEAD + b"Content-Length: 1e3\r\n\r\n"),
        say(
            server,
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + big + b"\r\n") * 40,
        ),
        say(server, HEAD + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n" + b"zz\r\n"),
        say(server, HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n"),
        say(
            server,
            HEAD + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n\r\n--b",
        ),
    ]
    found = [status(answer) for answer in said]
    grown = server.memory() - before
    refused = sum(400 <= number < 500 or number == 0 for number in found)
    right = answers_right(server, case)
    text = (
        f"{len(said)} requests: {refused} refused or cut off, memory {grown:+.0f} MiB; a good one"
        f" then: {right} of 1 right"
    )
    yield Figure(
        "uploads beyond the limits",
        text,
        refused == len(said) and 413 in found and grown < 32 and right == 1,
    )


def long_case(tiles: int) -> Case:
    """A wide picture, which takes a while: a window and a third for each tile."""
    scene = np.tile(make_scene(2, 74, SceneConfig(size=128)).image, (1, tiles, 1))
    result = load_predictor("mini", device="cpu").segment(scene, WORDS[0])
    file = io.BytesIO()
    Image.fromarray(scene).save(file, "PNG")
    return Case(
        {"classes": WORDS[0], "format": "png"},
        file.getvalue(),
        np.array(result.index_image()),
        result.to_json(),
    )


def answers_right(server: Server, case: Case) -> int:
    """Whether a good request is answered right."""
    tally, _ = load(server.address, [case], 1, 1)
    return tally.statuses[200] - tally.wrong


def slow_clients(server: Server, case: Case, count: int) -> Figure:
    """Clients that send their head or body a byte at a time, or nothing, or do not read the answer
    (slowloris)."""
    heads = (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        HEAD + b"Content-Length: 1000\r\n\r\nx",
        b"",
    )
    opened = [server.connect() for _ in range(count)]
    for number, sock in enumerate(opened):
        sock.sendall(heads[number % 3])
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(UPLOAD_SECONDS / 8):
            for number, sock in enumerate(opened):
                try:
                    sock.sendall(b"y" if number % 3 < 2 else b"")
                except OSError:
                    pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    right, seconds = answers_right(server, case), time.monotonic() - began
    limit = 4 * UPLOAD_SECONDS
    end = began + limit
    cut = 0
    for sock in opened:
        sock.settimeout(max(0.05, end - time.monotonic()))
        try:
            while sock.recv(4096):
                pass
            cut += 1
        except ConnectionError:
            cut += 1
        except TimeoutError:
            pass
        sock.close()
    stop.set()
    dripping.join()
    text = (
        f"{count} slow connections: {cut} cut off within {limit} s; a good request meanwhile:"
        f" {right} of 1 right, {seconds:.1f} s"
    )
    return Figure("slow clients (slowloris)", text, cut == count and right == 1)


def beyond_capacity(
    server: Server, cases: Sequence[Case], requests: int, connections: int
) -> Figure:
    """Many more at once than there is room for."""
    before, highest, stop = server.memory(), [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            highest[0] = max(highest[0], server.memory())

    looking = threading.Thread(target=look)
    looking.start()
    tally, _ = load(server.address, cases, requests, connections)
    stop.set()
    looking.join()
    others = sum(count for code, count in tally.statuses.items() if code not in (200, 429))
    text = (
        f"{requests} requests over {connections} connections with {PLACES} places:"
        f" {tally.statuses[429]} times 429, {tally.statuses[200]} answers, {tally.wrong} wrong,"
        f" {tally.lost} lost, {others} other statuses; memory {before:.0f} MiB, at most"
        f" {highest[0]:.0f} MiB"
    )
    sound = (
        tally.wrong == tally.lost == others == 0
        and tally.statuses[200] == requests
        and tally.statuses[429] > 0
    )
    return Figure("load beyond capacity", text, sound and highest[0] - before < 300)


class Sent(NamedTuple):
    """A request while the service stops."""

    began: float
    accepted: bool
    """It was in the queue or at work before the signal."""
    status: int
    """0: the connection was refused or broke off."""
    wrong: bool
    too_early: bool
    """The connection broke off although the service still answered afterwards."""


def send(client: httpx.Client, case: Case, *, accepted: bool) -> Sent:
    """Ask once, over a connection of its own."""
    began = time.monotonic()
    try:
        response = client.post(
            "/segment", data=case.data, files={"image": case.file}, headers={"connection": "close"}
        )
    except httpx.TransportError:
        try:
            client.get("/health", headers={"connection": "close"})
        except httpx.TransportError:
            return Sent(began, accepted, 0, False, False)
        return Sent(began, accepted, 0, False, True)
    wrong = response.status_code == 200 and case.agreement(response) < LEAST_AGREEMENT
    return Sent(began, accepted, response.status_code, wrong, False)


def wait_for_places(client: httpx.Client, places: int, done: Callable[[], int]) -> int:
    """Wait until so many requests are answered or have a place; returns how many have one."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answered = done()
        used = re.search(
            r"^cascade_clip_slots_used (\d+)", client.get("/metrics").text, re.MULTILINE
        )
        if used and int(used[1]) + answered >= places:
            return int(used[1])
        time.sleep(0.02)
    raise AssertionError("the service does not take the requests")


def stop_under_load(server: Server, long: Case, cases: Sequence[Case], crowd: int) -> Figure:
    """SIGTERM while all places are taken and a crowd asks.

    What has a place is answered within the grace time. All that was sent before the signal gets an
    answer, if only a refusal. What is sent afterwards gets one too, unless the service closes
    first; from then on nothing is answered any more. Nothing is left of it.
    """
    sent: list[Sent] = []
    ended = threading.Event()

    def keep_asking(number: int) -> None:
        while not ended.is_set():
            sent.append(send(client, cases[number % len(cases)], accepted=False))
            if sent[-1].status == 0:
                return
            time.sleep(0.5)

    limits = httpx.Limits(max_connections=crowd + PLACES + 1)
    with (
        httpx.Client(base_url=server.address, timeout=PATIENCE, limits=limits) as client,
        ThreadPoolExecutor(crowd + PLACES) as pool,
    ):
        first = [pool.submit(send, client, long, accepted=True) for _ in range(PLACES)]
        wait_for_places(client, PLACES, lambda: sum(job.done() for job in first))
        for number in range(crowd):
            pool.submit(keep_asking, number)
        while len(sent) < crowd and not all(job.done() for job in first):
            time.sleep(0.02)
        children = server.process.children(recursive=True)
        held = sum(not job.done() for job in first)
        signalled = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            code = server.process.wait(2 * GRACE)
        except psutil.TimeoutExpired:
            code = None
        seconds = time.monotonic() - signalled
        ended.set()
        kept = [job.result() for job in first]
    return judge_stop(
        server,
        [*kept, *sent],
        signalled,
        seconds,
        (code, held, sum(child.is_running() for child in children)),
    )


def judge_stop(
    server: Server,
    sent: list[Sent],
    signalled: float,
    seconds: float,
    counts: tuple[int | None, int, int],
) -> Figure:
    """What came of the requests of `stop_under_load`; `counts`: exit code, requests with a place at
    the signal, processes left."""
    code, held, orphans = counts
    statuses = Counter(one.status for one in sent)
    places = sum(one.accepted for one in sent)
    answered = sum(one.accepted and one.status == 200 and not one.wrong for one in sent)
    dropped = sum(one.status == 0 and (one.began < signalled or one.too_early) for one in sent)
    wrong, others = (
        sum(one.wrong for one in sent),
        sum(one.status not in (0, 200, 429, 503) for one in sent),
    )
    text = (
        f"SIGTERM with {held} of {places} places taken and a crowd asking: exit code {code} after"
        f" {seconds:.1f} s (grace {GRACE} s), {answered} of {places} accepted requests answered"
        f" right; of {len(sent)} requests {statuses[200]} answered, {wrong} wrong, {statuses[429]}"
        f" times 429, {statuses[503]} times 503, {statuses[0]} not taken any more, {dropped}"
        f" dropped, {others} other statuses; {orphans} processes left"
    )
    said = server.output.read(), server.errors.read()
    sound = (
        code == 0
        and seconds < GRACE
        and held > 0
        and answered == places == PLACES
        and said == ("stopped\n", "")
    )
    return Figure(
        "stop under load",
        text,
        sound and wrong == dropped == others == orphans == 0 and statuses[503] > 0,
    )


def measure(quick: bool) -> Iterator[Figure]:
    """All figures about the service."""
    threads = torch.get_num_threads()
    # a copy of a process whose torch has threads of its own would wait for them for ever
    torch.set_num_threads(1)
    try:
        cases, long = build_cases(2 if quick else 12), long_case(4 if quick else 40)
        with start_server(fresh=not quick) as server:
            yield from names_and_paths(server)
            yield from large_and_odd(server, cases[0])
            if not quick:
                yield slow_clients(server, cases[0], 90)
            yield beyond_capacity(server, cases, 8 if quick else 300, 8 if quick else 64)
            yield stop_under_load(server, long, cases, 2 if quick else 24)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    raise SystemExit(main(measure))
