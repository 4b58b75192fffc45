"""Class names: lists, synonyms, seen and unseen splits, templates, colours, and what raw mask
values and colours mean."""

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
