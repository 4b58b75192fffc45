"""What the exit code of a command means; docs/errors.md has the same table for users."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    """Everything that was asked for is done; `serve` and `web` were stopped by a signal."""
    DEFECT = 1
    """A defect of this program; its traceback is in a file that the last line names."""
    FINDINGS = 1
    """`data check`, `verify`, `export check` found something wrong, or a `reproduce` run failed."""
    BAD_INPUT = 2
    """Bad input, a full disk, not enough memory, or some files of a batch failed."""
    RESUMABLE = 75
    """`train` was stopped by a signal; `--resume auto` continues (EX_TEMPFAIL: try again later)."""
    INTERRUPTED = 130
    """Ctrl-C in another command."""
    TERMINATED = 143
    """SIGTERM in another command."""
