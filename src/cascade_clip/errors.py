"""What can go wrong that a user can mend; each error's message is one clear line.

Any other exception that reaches the command line is a defect of this program. Every class still is
the built-in exception that it was before it had a name of its own.
"""

from __future__ import annotations


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


class MissingPackageError(CascadeClipError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class Interrupted(SystemExit):
    """A scheduler asked the run to end, and its state is saved; ends the process with exit code 75
    unless it is caught.

    Not a `CascadeClipError`: it is no error, and no `except Exception` on the way, ours or
    Lightning's, may swallow it.
    """


class NonFiniteError(CascadeClipError, FloatingPointError):
    """A loss or a gradient is NaN or infinite."""
