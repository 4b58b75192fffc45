"""A bounded number of slots for requests in flight, and worker threads that take waiting jobs
together when they have the same key.

Nothing here knows images or HTTP.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


class QueueClosed(RuntimeError):
    """The queue accepts no more requests."""


class Slots:
    """A limit on the requests in flight: waiting, being computed, or being sent."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a slot; False when all are taken."""
        with self._lock:
            free = self.used < self.limit
            self.used += free
            return free

    def release(self) -> None:
        """Give a slot back."""
        with self._lock:
            self.used -= 1


@dataclass(eq=False)
class Job(Generic[Request, Response]):
    """A request that waits for its response."""

    request: Request
    key: Hashable
    """Jobs of one key may be computed together."""
    future: Future[Response] = field(default_factory=Future)


class JobQueue(Generic[Request, Response]):
    """Worker threads that take jobs in order of arrival, waiting jobs of the same key together."""

    def __init__(
        self,
        compute: Callable[[list[Request]], list[Response | BaseException]],
        workers: int,
        batch: int,
        watch: Callable[[int], object] = lambda size: None,
    ) -> None:
        """Prepare the threads; `start` lets them begin.

        Args:
            compute: returns a response, or an error instead of it, for each of at most `batch`
                requests of one key.
            workers: number of threads.
            batch: most jobs that are taken together.
            watch: called with the size of every group.
        """
        self._compute, self._batch, self._watch = compute, batch, watch
        self._jobs: deque[Job[Request, Response]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"segment-{number}", daemon=True)
            for number in range(workers)
        ]

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken."""
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        """Whether a thread is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Let the threads begin."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, key: Hashable) -> Future[Response]:
        """Queue a request; one whose future is cancelled before its turn is never computed.

        Raises:
            QueueClosed: after `close`.
        """
        job: Job[Request, Response] = Job(request, key)
        with self._changed:
            if self._closed:
                raise QueueClosed
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self, patience: float = 1.0) -> None:
        """Refuse waiting jobs (`QueueClosed`); wait up to `patience` seconds for each thread."""
        with self._changed:
            self._closed, left, self._jobs = True, self._jobs, deque()
            self._changed.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(QueueClosed())
        for thread in self._threads:
            if thread.is_alive():
                thread.join(patience)

    def _work(self) -> None:
        while jobs := self._take():
            self._watch(len(jobs))
            try:
                responses = self._compute([job.request for job in jobs])
            except BaseException as error:  # a thread that dies would leave its callers waiting
                responses = [error] * len(jobs)
            for job, response in zip(jobs, responses, strict=True):
                if isinstance(response, BaseException):
                    job.future.set_exception(response)
                else:
                    job.future.set_result(response)

    def _take(self) -> list[Job[Request, Response]]:
        """Take the oldest job and others of its key, in order; empty when the queue is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                taken: list[Job[Request, Response]] = []
                left: deque[Job[Request, Response]] = deque()
                for job in self._jobs:
                    if len(taken) >= self._batch or (taken and job.key != taken[0].key):
                        left.append(job)
                    elif job.future.set_running_or_notify_cancel():
                        taken.append(job)
                self._jobs = left
                if taken or self._closed:
                    return taken
