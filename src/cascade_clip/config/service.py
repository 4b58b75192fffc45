"""Limits of the service, each a flag of `cascade-clip serve`."""

from dataclasses import dataclass

from cascade_clip.errors import SettingError

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServiceOptions:
    """How much the service accepts and how long it waits."""

    workers: int = 1
    """Threads that segment; one keeps all cores busy with one image."""
    batch: int = 0
    """Requests of the same class names run together; 0 chooses: 8 on a GPU, 1 on a CPU."""
    queue: int = 32
    """Requests that may wait for a worker; more are refused (429)."""
    timeout: float = 60.0
    """Seconds after which a request without a response is given up (504)."""
    upload_timeout: float = 30.0
    """Seconds for a request's body to arrive (408), and until a silent connection is closed."""
    grace: float = 30.0
    """Seconds that a stopping service gives to the requests it has accepted."""
    max_upload: int = 20
    """Largest image file, in MiB."""
    max_pixels: int = 16_000_000
    """Most pixels of an image, read from its header before anything is decoded."""
    max_words: int = 300
    """Most class names, synonyms and background names of a request together."""
    cached_texts: int = 64
    """Class lists whose text embeddings stay in memory."""
    connections: int = 256
    """Open connections; more are closed at once."""

    def __post_init__(self) -> None:
        for name in _RANGES:
            check_limit(name, getattr(self, name))


_RANGES = {
    "workers": (1, 64), "batch": (0, 64), "queue": (0, 10_000), "max_upload": (1, 1024),
    "max_pixels": (1, 100_000_000), "max_words": (1, 10_000), "cached_texts": (1, 10_000),
    "connections": (1, 10_000), "timeout": (0.01, 3600), "upload_timeout": (0.01, 3600),
    "grace": (0, 3600),
}  # fmt: skip


def check_limit(name: str, value: float) -> None:
    """Check a limit of the service or the web page, by the name of its field.

    Raises:
        SettingError: it is out of range; the message names its flag.
    """
    low, high = _RANGES[name]
    if not low <= value <= high:
        raise SettingError(f"--{name.replace('_', '-')} must lie in {low}..{high}, got {value}")
