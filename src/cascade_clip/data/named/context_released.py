"""PASCAL Context with the ten unseen classes that the released program held out."""

import dataclasses

from cascade_clip.data.named import context

SPEC = dataclasses.replace(context.SPEC, classes="context-released", recipe=None)
