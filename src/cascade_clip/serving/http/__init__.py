"""The HTTP service: requests in, segmentations out."""

from cascade_clip.errors import MissingPackageError

try:
    import fastapi
    import prometheus_client
    import uvicorn
except ImportError as error:
    message = "the service needs FastAPI and prometheus_client: pip install 'cascade-clip[serve]'"
    raise MissingPackageError(message) from error

from cascade_clip.serving.http.server import run
from cascade_clip.serving.http.service import Service
