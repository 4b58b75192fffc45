"""Where the messages of a run go: the screen, in one of three modes, and the run's log file.

normal   text for people; log messages go to standard error
quiet    only warnings and the last lines
json     only JSON objects on standard output, one a line (docs/training.md lists the events)

In every mode everything that is said also goes into `log.txt`, with the time.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

Mode = Literal["normal", "quiet", "json"]
LOG_FILE = "log.txt"

_SAID = logging.getLogger("cascade_clip.said")
"""What the screen shows to people, on its way to the log file alone."""
_CAPACITY = 100_000


class RunScreen:
    """One mode of output; every line also goes to the log file that is open."""

    def __init__(self, mode: Mode = "normal") -> None:
        self.mode = mode
        self.console = Console(quiet=mode != "normal")
        self._failed = False
        _SAID.propagate = False
        _SAID.setLevel(logging.INFO)
        if not _SAID.handlers:
            _SAID.addHandler(logging.NullHandler())

    def say(self, text: str) -> None:
        """A line on the way; quiet leaves it out."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        _SAID.info("%s", text)

    def conclude(self, text: str) -> None:
        """One of the last lines, which quiet shows too."""
        if self.mode == "quiet":
            Console().print(text, markup=False, highlight=False, soft_wrap=True)
            _SAID.info("%s", text)
        else:
            self.say(text)

    def note(self, text: str) -> None:
        """A line for the log file alone."""
        _SAID.info("%s", text)

    def event(self, name: str, **values: Any) -> None:
        """In json mode, one object on standard output; numbers that are no numbers become null."""
        if self.mode == "json":
            event = {"event": name, **_finite(values)}
            sys.stdout.write(json.dumps(event, ensure_ascii=False, default=str) + "\n")
            sys.stdout.flush()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """While it lasts, an error becomes an event, however early it comes."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """The event of an error, once."""
        if not self._failed:
            self.event("error", text=str(error) or type(error).__name__)
        self._failed = True

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[RunLog]:
        """While it lasts, send log messages and Python's warnings to `path` too, once it is open.

        `RunLog.open` also writes the records before it; a run that was refused leaves no file.
        """
        log = RunLog(path)
        names = ("cascade_clip", "cascade_clip.said", "lightning.pytorch", "py.warnings")
        added: list[tuple[str, logging.Handler]] = [(name, log.buffer) for name in names]
        if self.mode == "json":
            added.append(("cascade_clip", _Events(self)))
        handlers = logging.getLogger().handlers
        screens = [one for one in handlers if isinstance(one, logging.StreamHandler)]
        levels = [handler.level for handler in screens]
        for name, handler in added:
            logging.getLogger(name).addHandler(handler)
        for screen in screens if self.mode != "normal" else []:
            screen.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        try:
            yield log
        except SystemExit as error:  # a scheduler asked for it, and a warning has said so
            self.event("stopped", code=error.code)
            raise
        except BaseException as error:
            text = str(error) or type(error).__name__
            _SAID.error("stopped by an error: %s", text)
            self.fail(error)
            raise
        finally:
            logging.captureWarnings(False)
            for name, handler in added:
                logging.getLogger(name).removeHandler(handler)
            for screen, level in zip(screens, levels, strict=True):
                screen.setLevel(level)
            log.close()


class RunLog:
    """`log.txt`, held back until the run has its folder; a resumed run adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffer = logging.handlers.MemoryHandler(
            _CAPACITY, flushLevel=logging.CRITICAL + 1, flushOnClose=True
        )
        self.buffer.setLevel(logging.INFO)

    def open(self) -> None:
        """Write what was collected, and from now on every record at once."""
        if self.buffer.target is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.path, encoding="utf-8")
        style = ("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
        handler.setFormatter(logging.Formatter(*style))
        self.buffer.setTarget(handler)
        self.buffer.flushLevel = logging.NOTSET
        self.buffer.flush()

    def close(self) -> None:
        """Close the file."""
        target = self.buffer.target
        self.buffer.close()
        if target is not None:
            target.close()


class _Events(logging.Handler):
    """Log messages as `message` events."""

    def __init__(self, screen: RunScreen) -> None:
        super().__init__(logging.INFO)
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self.screen.event("message", level=record.levelname.lower(), text=record.getMessage())


def _finite(value: Any) -> Any:
    """Plain values in which NaN and infinities are None, as JSON has no word for them."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
