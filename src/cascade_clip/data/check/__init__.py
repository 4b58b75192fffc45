"""Whether images, masks and a class list fit together.

In: pairs of files and a class list. Out: a report of everything that is wrong, and a preview.
"""

from cascade_clip.data.check.checker import CheckReport, check_data
from cascade_clip.data.check.facts import Count
