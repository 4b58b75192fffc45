"""The service under attack and under load: it refuses what it must, stays small, answers right, and stops cleanly.

The web page's own guard is tried in `tests/test_web.py`; here a service of its own process is asked over sockets.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx
import psutil
import torch
from figures import Figure, main

from load_service import PATIENCE, Case, Tally, build_cases, load

FLAGS = ("--max-upload", "1", "--upload-timeout", "3", "--queue", "4", "--connections", "150", "--grace", "60")
HEAD = b"POST /segment HTTP/1.1\r\nHost: localhost\r\n"


class Server(NamedTuple):
    """A service that is ready."""

    process: psutil.Popen
    address: str
    port: int

    def connect(self) -> socket.socket:
        """A connection of one's own."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return sock

    def memory(self) -> float:
        """Resident memory in MiB."""
        return float(self.process.memory_info().rss) / 2**20


@contextmanager
def start_server() -> Iterator[Server]:
    """A service with small limits; whatever happens it has ended afterwards."""
    command = [sys.executable, "-u", "-m", "cascade_clip", "serve", "--port", "0", "--device", "cpu", *FLAGS]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        found = re.search(r"(http://127\.0\.0\.1:(\d+))/docs", process.stdout.readline())
        assert found, "the service did not start"
        end = time.monotonic() + PATIENCE
        while httpx.get(f"{found[1]}/health").status_code != 200:
            assert time.monotonic() < end, "the service did not become ready"
            time.sleep(0.1)
        yield Server(process, found[1], int(found[2]))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def say(server: Server, text: bytes, patience: float = 30.0) -> bytes:
    """What the service answers to raw bytes, until it closes or goes silent."""
    with server.connect() as sock:
        sock.settimeout(patience)
        said = b""
        try:
            sock.sendall(text)
            while part := sock.recv(65536):
                said += part
                if b"\r\n\r\n" in said and len(said.partition(b"\r\n\r\n")[2]) >= _length(said):
                    break
        except (TimeoutError, ConnectionError):
            pass
    return said


def _length(said: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", said, re.IGNORECASE)
    return int(found[1]) if found else 0


def status(said: bytes) -> int:
    """The status of a raw answer; 0 where there is none."""
    found = re.match(rb"HTTP/1\.1 (\d{3})", said)
    return int(found[1]) if found else 0


def names_and_paths(server: Server) -> Iterator[Figure]:
    """Other host names, other sites, other paths."""
    hosts = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[evil", "", "169.254.169.254")
    found = [status(say(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())) for host in hosts]
    own = [status(say(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())) for host in ("localhost", "127.0.0.1:1", "[::1]")]
    text = f"{len(hosts)} foreign names: {found.count(400)} refused (400); {own.count(200)} of {len(own)} own names served"
    yield Figure("host header", text, set(found) == {400} and set(own) == {200})
    sites = ("http://evil.example", "null", "https://localhost", "http://[")
    found = [httpx.post(f"{server.address}/segment", headers={"origin": site}).status_code for site in sites]
    yield Figure("requests of other sites", f"{len(sites)} origins: {found.count(403)} refused (403)", set(found) == {403})
    paths = (
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/docs/../../etc/passwd", "/segment/..",
        "/static/..\\..\\etc\\passwd", "/etc/passwd%00.png", "/file=/etc/passwd", "/proc/self/environ", "/openapi.json/../../../etc/passwd",
    )  # fmt: skip
    said = [say(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) for path in paths]
    leaked = sum(b"root:" in answer or b"PATH=" in answer for answer in said)
    text = f"{len(paths)} paths: {sum(status(answer) in (400, 404) for answer in said)} refused (400, 404), {leaked} gave a file away"
    yield Figure("path traversal", text, all(status(answer) in (400, 404) for answer in said) and leaked == 0)


def large_and_odd(server: Server, case: Case) -> Iterator[Figure]:
    """Uploads that are too large or lie about their size."""
    before, big = server.memory(), b"x" * 2**16
    said = [
        say(server, HEAD + b"Content-Length: 99999999999\r\n\r\n"),
        say(server, HEAD + b"Content-Length: 1200000\r\n\r\n"),
        say(server, HEAD + b"Content-Length: -5\r\n\r\n"),
        say(server, HEAD + b"Content-Length: 1e3\r\n\r\n"),
        say(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + big + b"\r\n") * 40),
        say(server, HEAD + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n" + b"zz\r\n"),
        say(server, HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n"),
        say(server, HEAD + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 3\r\n\r\n--b"),
    ]
    found = [status(answer) for answer in said]
    grown = server.memory() - before
    refused = sum(400 <= number < 500 or number == 0 for number in found)
    right = answers_right(server, case)
    text = f"{len(said)} requests: {refused} refused or cut off, memory {grown:+.0f} MiB; a good one then: {right} of 1 right"
    yield Figure("uploads beyond the limits", text, refused == len(said) and 413 in found and grown < 32 and right == 1)


def answers_right(server: Server, case: Case) -> int:
    """Whether a good request is answered right."""
    tally, _ = load(server.address, [case], 1, 1)
    return tally.equal


def slow_clients(server: Server, case: Case, count: int) -> Figure:
    """Clients that send their head or body a byte at a time, or nothing, or do not read the answer (slowloris)."""
    heads = (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", HEAD + b"Content-Length: 1000\r\n\r\nx", b"")
    opened = [server.connect() for _ in range(count)]
    for number, sock in enumerate(opened):
        sock.sendall(heads[number % 3])
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.4):
            for number, sock in enumerate(opened):
                try:
                    sock.sendall(b"y" if number % 3 < 2 else b"")
                except OSError:
                    pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    right, seconds = answers_right(server, case), time.monotonic() - began
    end = began + 15
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
    text = f"{count} slow connections: {cut} cut off within 15 s; a good request meanwhile: {right} of 1 right, {seconds:.1f} s"
    return Figure("slow clients (slowloris)", text, cut == count and right == 1)


def beyond_capacity(server: Server, cases: Sequence[Case], requests: int, connections: int) -> Figure:
    """Many more at once than there is room for."""
    before, highest, stop = server.memory(), [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            highest[0] = max(highest[0], server.memory())

    looking = threading.Thread(target=look)
    looking.start()
    tally, _ = load(server.address, cases, requests, connections)
    stop.set()
    looking.join()
    others = sum(count for code, count in tally.statuses.items() if code not in (200, 429))
    text = (
        f"{requests} requests over {connections} connections with 5 places: {tally.statuses[429]} times 429, "
        f"{tally.statuses[200]} answers, {tally.wrong} wrong, {tally.lost} lost, {others} other statuses; "
        f"memory {before:.0f} MiB, at most {highest[0]:.0f} MiB"
    )
    sound = tally.wrong == tally.lost == others == 0 and tally.statuses[200] == requests and tally.statuses[429] > 0
    return Figure("load beyond capacity", text, sound and highest[0] - before < 300)


def stop_under_load(server: Server, cases: Sequence[Case], connections: int) -> Figure:
    """SIGTERM while many ask: what was accepted is answered, the rest is refused, nothing is left."""
    tally, refused, broken = Tally(), Counter[int](), [0]
    go_on = threading.Event()

    def ask(number: int) -> None:
        case = cases[number % len(cases)]
        with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
            while not go_on.is_set():
                try:
                    response = client.post("/segment", data=case.data, files={"image": case.file})
                except httpx.ConnectError:
                    return  # the service has ended
                except httpx.TransportError:
                    with tally.lock:
                        broken[0] += server.process.poll() is None and not go_on.is_set()
                    return
                with tally.lock:
                    if response.status_code == 200:
                        tally.equal += case.agreement(response) == 1
                        tally.wrong += case.agreement(response) != 1
                    else:
                        refused[response.status_code] += 1

    children = server.process.children(recursive=True)
    with ThreadPoolExecutor(connections) as pool:
        for number in range(connections):
            pool.submit(ask, number)
        time.sleep(2)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        try:
            code = server.process.wait(70)
        except psutil.TimeoutExpired:
            code = None
        seconds = time.monotonic() - began
        go_on.set()
    orphans = sum(child.is_running() for child in children)
    said = server.process.stdout.read(), server.process.stderr.read()
    text = (
        f"SIGTERM with {connections} asking: exit code {code} after {seconds:.1f} s, {tally.equal} answers right, {tally.wrong} wrong, "
        f"{refused[503]} refused (503), {refused[429]} refused (429), {broken[0]} broken off, {orphans} processes left"
    )
    others = sum(refused.values()) - refused[503] - refused[429]
    sound = code == 0 and tally.equal > 0 and tally.wrong == others == orphans == 0 and said == ("stopped\n", "")
    return Figure("stop under load", text, sound)


def measure(quick: bool) -> Iterator[Figure]:
    """All figures about the service."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cases = build_cases(2 if quick else 12)
    torch.set_num_threads(threads)
    with start_server() as server:
        yield from names_and_paths(server)
        yield from large_and_odd(server, cases[0])
        if not quick:
            yield slow_clients(server, cases[0], 90)
        yield beyond_capacity(server, cases, 12 if quick else 300, 12 if quick else 64)
        yield stop_under_load(server, cases, 4 if quick else 24)


if __name__ == "__main__":
    raise SystemExit(main(measure))
