"""Fonts that have the letters of a name: Pillow's own for Latin, else one of this machine."""

import functools
import unicodedata
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """A font of `size` pixels that draws all letters of `text`; Pillow's own if there is none."""
    path = _find(frozenset(letter for letter in text if not letter.isspace()))
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def drawable(text: str) -> str:
    """The text with letters that no font here draws as their code (such as `U+8349`)."""
    if _known_to_pillow(text) or _find(frozenset(text)) is not None:
        return text
    letters = (one if _known_to_pillow(one) else f"U+{ord(one):04X} " for one in text)
    return "".join(letters).strip()


def _known_to_pillow(text: str) -> bool:
    """Whether Pillow's own font draws a text: Latin letters with accents, digits and signs."""
    signs = "\u2026\u2019\u2018\u201c\u201d\u2013\u2014"
    return all(ord(one) < 0x180 or one in signs for one in unicodedata.normalize("NFC", text))


@functools.lru_cache(maxsize=256)
def _find(letters: frozenset[str]) -> str | None:
    """The first font file that has all letters; None where Pillow's own has, or none has."""
    if _known_to_pillow("".join(letters)):
        return None
    codes = {ord(letter) for letter in letters}
    return next((path for path, known in _fonts() if codes <= known), None)


@functools.lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, frozenset[int]], ...]:
    """matplotlib's font, then the machine's regular ones, those with most characters first."""
    from matplotlib import font_manager, ft2font

    found: dict[str, frozenset[int]] = {}
    own = Path(font_manager.findfont("DejaVu Sans"))
    system = {
        entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular")
        if "Last Resort" not in entry.name  # it draws boxes
    }
    for path in [str(own), *sorted(system)]:
        try:
            found[path] = frozenset(ft2font.FT2Font(path).get_charmap())
        except (RuntimeError, OSError):  # bitmap fonts and damaged files
            continue
    first = (str(own), found.pop(str(own)))
    return (first, *sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
