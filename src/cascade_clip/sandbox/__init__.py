"""The built-in world: procedural pictures with labels and captions, and a small CLIP that has read
about them.

`scenes` draws the pictures, `preview` shows and exports them, `pretrain` makes the small CLIP
again, `commands` holds what the command line calls. Importing this package imports none of them.
"""
