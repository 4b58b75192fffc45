"""The named datasets, one file each: everything that this package knows about a dataset.

In: nothing. Out: `SPEC` of every module, as the table in `cascade_clip.config.parts` names it.
"""
