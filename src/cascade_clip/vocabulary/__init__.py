"""Class lists: names, synonyms, splits, templates, colours, and what mask values mean.

In: a file, a text, or the name of a packaged list. Out: a `Vocabulary`, and prompt templates.
"""

from cascade_clip.vocabulary.classes import (
    IGNORED,
    LONGEST_NAME,
    Color,
    Vocabulary,
    build_palette,
    color_code,
    color_name,
)
from cascade_clip.vocabulary.lists import (
    VOID_NAMES,
    default_templates,
    list_vocabularies,
    load_templates,
    load_vocabulary,
    load_words,
    parse_classes,
    split_classes,
)
