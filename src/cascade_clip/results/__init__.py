"""What a segmentation is, and the files that people take away. NumPy and Pillow only.

In: labels (H, W) with class names and colours. Out: overlays, index images, COCO RLE, polygons.
"""

from cascade_clip.results.formatting import format_clock, format_duration, format_percent
from cascade_clip.results.rle import decode_mask
from cascade_clip.results.segmentation import UNLABELLED, Output, Segmentation
from cascade_clip.results.summary_metrics import PAIRED_METRICS, SUMMARY_METRICS
