"""The HTTP service: requests in, segmentations out."""

from cascade_clip.errors import MissingPackageError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingPackageError(
        "the service needs FastAPI and prometheus_client: pip install 'cascade-clip[serve]'"
    ) from error

from cascade_clip.serving.http.server import run
from cascade_clip.serving.http.service import Service

__all__ = ["Service", "run"]
