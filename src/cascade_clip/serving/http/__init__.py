"""The HTTP service: requests in, segmentations out."""

from cascade_clip.serving.http.app import LOCAL_HOSTS, Service, run

__all__ = ["LOCAL_HOSTS", "Service", "run"]
