"""Looking inside models, reproducing the paper, measuring this machine.

In: predictors and datasets. Out: maps, tables and pages.
"""

from cascade_clip.research.analysis import block_alignment, compare_stages, patch_similarity
