"""What can go wrong that a user can mend; each error's message is one clear line.

Any other exception that reaches the command line is a defect of this program. Every class still is
the built-in exception that it was before it had a name of its own.
"""

import signal


class CascadeClipError(Exception):
    """The base of all errors that a user can mend."""


class SettingError(CascadeClipError, ValueError):
    """A setting, a flag or a class list is wrong, or two do not fit together."""


class DataError(CascadeClipError, ValueError):
    """A dataset, a mask, an annotation or a report is wrong or incomplete."""


class ImageError(CascadeClipError, ValueError):
    """An image or a video is damaged, too large, too small, or of a kind that is not read."""


class WeightsError(CascadeClipError, ValueError):
    """Weights are damaged, of another model, or not trusted."""


class CheckpointError(CascadeClipError, ValueError):
    """A checkpoint or a training state is damaged, incomplete, or does not fit its settings."""


class MissingFileError(CascadeClipError, FileNotFoundError):
    """A file, folder, model or dataset does not exist where it was looked for."""


class StorageError(CascadeClipError, OSError):
    """Something could not be read, written or downloaded: a full disk, no access, no connection."""


class OccupiedError(StorageError, FileExistsError):
    """A folder that would be replaced holds something else than what is written there."""


class MissingPackageError(CascadeClipError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class Interrupted(SystemExit):
    """A signal asked the run to end, and its state is saved; ends the process with exit code 75
    unless it is caught.

    Not a `CascadeClipError`: it is no error, and no `except Exception` on the way, ours or
    Lightning's, may swallow it.
    """

    def __init__(self, code: int, number: int = signal.SIGTERM) -> None:
        super().__init__(code)
        self.number = number
        """The signal."""


class NonFiniteError(CascadeClipError, FloatingPointError):
    """A loss or a gradient is NaN or infinite."""


def first_lines(error: BaseException) -> str:
    """Return the first two lines of an error's text as one, or the error's kind without a text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on the CPU or on a GPU, could not get memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def explain_error(error: BaseException) -> str:
    """Say in one line what a user can mend: an error of ours, of the operating system, or a lack of
    memory. Return an empty text for a defect of this program."""
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return (
            f"not enough memory ({reason}); use smaller images, a smaller batch, fewer workers or"
            " --max-memory"
        )
    if isinstance(error, CascadeClipError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{error.strerror}"
    return ""
