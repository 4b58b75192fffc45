"""A model for others: an HTTP service and a web page, and what both share.

In: images and class names from strangers. Out: segmentations, or a refusal in one line.
"""

from cascade_clip.serving.guard import ANY_HOST, LOCAL_HOSTS
