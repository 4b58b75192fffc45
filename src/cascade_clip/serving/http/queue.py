"""Requests that wait: a bounded number of slots, and worker threads that take waiting jobs together
where they ask the same.

Nothing here knows pictures or HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Stopped(RuntimeError):
    """The queue takes nothing any more."""


class Slots:
    """A bounded number of requests that are in the house: waiting, worked on, or being sent."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self) -> Slot | None:
        """A slot, or None when all are taken."""
        with self._lock:
            if self.used >= self.limit:
                return None
            self.used += 1
        return Slot(self)

    def give_back(self) -> None:
        """Count one less."""
        with self._lock:
            self.used -= 1


class Slot:
    """One place in the house; free again when all who hold it have let go."""

    def __init__(self, slots: Slots) -> None:
        self._slots, self._holders, self._lock = slots, 1, threading.Lock()

    def hold(self) -> None:
        """Hold it once more."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Let go once."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._slots.give_back()


@dataclass(eq=False)
class Job(Generic[Q, A]):
    """A question that waits for its answer."""

    question: Q
    key: Hashable
    """Jobs of one key may be answered together."""
    future: Future[A] = field(default_factory=Future)


class JobQueue(Generic[Q, A]):
    """Worker threads that answer jobs in the order of their arrival; those that wait with the same
    key are taken together."""

    def __init__(
        self,
        answer: Callable[[list[Q]], list[A | BaseException]],
        workers: int,
        batch: int,
        watch: Callable[[int], object] = lambda size: None,
    ) -> None:
        """Prepare the threads; `start` lets them begin.

        Args:
            answer: gives an answer, or the error instead of it, for each of at most `batch`
                questions of one key.
            workers: number of threads.
            batch: jobs that are taken together at most.
            watch: called with the size of every group.
        """
        self.running = 0
        self._answer, self._batch, self._watch = answer, batch, watch
        self._jobs: deque[Job[Q, A]] = deque()
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

    def start(self) -> None:
        """Let the threads begin."""
        for thread in self._threads:
            thread.start()

    def submit(self, question: Q, key: Hashable) -> Future[A]:
        """Queue a question; a future that is cancelled before its turn is left out.

        Raises:
            Stopped: after `close`.
        """
        job: Job[Q, A] = Job(question, key)
        with self._changed:
            if self._closed:
                raise Stopped
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self, patience: float = 1.0) -> None:
        """Refuse what waits (`Stopped`), let the threads end, and wait for them up to `patience`
        seconds."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Stopped())
        for thread in self._threads:
            if thread.is_alive():
                thread.join(patience)

    @property
    def busy(self) -> bool:
        """Whether a thread is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while jobs := self._take():
            self._watch(len(jobs))
            try:
                answers = self._answer([job.question for job in jobs])
            except BaseException as error:  # a thread that dies would leave its callers waiting
                answers = [error] * len(jobs)
            with self._changed:
                self.running -= len(jobs)
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, BaseException):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)

    def _take(self) -> list[Job[Q, A]]:
        """The oldest job and others of its key, in order; empty when the queue is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                taken: list[Job[Q, A]] = []
                left: deque[Job[Q, A]] = deque()
                for job in self._jobs:
                    fits = len(taken) < self._batch and (not taken or job.key == taken[0].key)
                    if not fits:
                        left.append(job)
                    elif job.future.set_running_or_notify_cancel():
                        taken.append(job)
                self._jobs = left
                self.running += len(taken)
                if taken or self._closed:
                    return taken
