"""The web page: an upload and class names in, an overlay and files out."""

from cascade_clip.serving.web.page import serve
from cascade_clip.serving.web.service import WebService
