"""Trained models as folders and on the hub.

In: a model with its settings, class list and record, or a file of a released program. Out: the
same, read back with every check; nothing in a folder is ever executed.
"""

from cascade_clip.checkpoints.checkpoint import (
    PACKAGED,
    WEIGHTS,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_config,
    load_strictly,
    read_config,
    read_record,
    read_versions,
    save_checkpoint,
)
from cascade_clip.checkpoints.publishing import Publishable
from cascade_clip.checkpoints.released import import_released
