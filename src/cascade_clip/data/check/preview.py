"""The preview of a data check: images beside their masks, and a legend of their classes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cascade_clip.data.check.facts import Count, PairFacts, Tally
from cascade_clip.data.masks import UNKNOWN, MaskReader
from cascade_clip.files import load_image
from cascade_clip.ops import resize_mask
from cascade_clip.results import Segmentation
from cascade_clip.vocabulary import IGNORED, Vocabulary

SHOWN = 12
"""Largest number of images in a preview."""
TILE = 300
"""Longest side of one image, in pixels."""
WIDTH = 1500
"""Width that the images share, in pixels."""
_GAP, _CAPTION, _LINE, _FONT = 14, 24, 26, 15
_GREY, _MAGENTA = (128, 128, 128), (255, 0, 255)


def choose_pairs(facts: Sequence[PairFacts], count: int = SHOWN) -> list[PairFacts]:
    """Choose pairs, in the order of `facts`, that together show as many classes as possible."""
    left = [place for place, item in enumerate(facts) if item.fits]
    chosen: list[int] = []
    shown: set[int] = {IGNORED}
    while left and len(chosen) < count:
        gains = [len(facts[place].labels.keys() - shown) for place in left]
        # Where nothing new is left, go on at even distances and not with the first ones.
        best = int(np.argmax(gains)) if max(gains) else len(left) * len(chosen) // count
        chosen.append(left.pop(best))
        shown |= facts[chosen[-1]].labels.keys()
    return [facts[place] for place in sorted(chosen)]


def draw_sheet(
    facts: Sequence[PairFacts], vocabulary: Vocabulary, tally: Tally
) -> Image.Image | None:
    """Image and overlay of the chosen pairs, with a legend; None where no pair can be shown."""
    chosen = choose_pairs(facts)
    if not chosen:
        return None
    reader = MaskReader(vocabulary)
    tiles = [_tile(item, reader) for item in chosen]
    legend = _legend({label for item in chosen for label in item.labels}, vocabulary, tally)
    width = max(tile.width for tile in tiles)
    columns = max(1, min(len(tiles), (WIDTH + _GAP) // (width + _GAP)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    height = _GAP + sum(max(tile.height for tile in row) + _GAP for row in rows)
    left = _GAP + columns * (width + _GAP)
    sheet = Image.new("RGB", (left + legend.width, max(height, legend.height + 2 * _GAP)), "white")
    top = _GAP
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (width + _GAP), top))
        top += max(tile.height for tile in row) + _GAP
    sheet.paste(legend, (left, _GAP))
    return sheet


def _tile(item: PairFacts, reader: MaskReader) -> Image.Image:
    """One image beside its overlay, its name below."""
    image = Image.fromarray(load_image(item.image).permute(1, 2, 0).numpy())
    labels = reader.labels(reader.read(item.mask))  # (H, W)
    image.thumbnail((TILE, TILE))
    labels = resize_mask(labels[None], (image.height, image.width))[0]
    classes = len(reader.vocabulary)
    shown = np.where(labels.numpy() == UNKNOWN, classes, labels.numpy())
    # one more class: what names none
    names, colors = (*reader.vocabulary.names, "\0"), (*reader.vocabulary.colors, _MAGENTA)
    overlay = Segmentation(shown, names, colors).overlay(image, 0.7, legend=False)
    tile = Image.new("RGB", (2 * image.width + 2, image.height + _CAPTION), "white")
    tile.paste(image, (0, 0))
    tile.paste(overlay, (image.width + 2, 0))
    font = ImageFont.load_default(_FONT)
    name = item.image.name
    while font.getlength(name) > tile.width and len(name) > 4:
        name = name[:-2] + "\u2026"
    middle = image.height + _CAPTION // 2 + 1
    ImageDraw.Draw(tile).text((0, middle), name, (70, 70, 70), font, "lm")
    return tile


def _legend(labels: set[int], vocabulary: Vocabulary, tally: Tally) -> Image.Image:
    """Colour, name and share in all masks of the classes on the sheet, the most frequent first."""
    rows = [(vocabulary.colors[label], tally.classes[label]) for label in labels if label >= 0]
    rows.sort(key=lambda row: -row[1].pixels)
    if IGNORED in labels:
        rows.append((_GREY, tally.ignored))
    if UNKNOWN in labels:
        pixels = sum(row.pixels for row in tally.unknown)
        rows.append((_MAGENTA, Count("names no class", pixels, 0)))
    font = ImageFont.load_default(_FONT)
    names = max(font.getlength(row.text) for _, row in rows)
    shares = [f"{100 * tally.share(row):.2f} %" for _, row in rows]
    width = int(_FONT + 10 + names + 24 + max(font.getlength(share) for share in shares) + 2 * _GAP)
    legend = Image.new("RGB", (width, _LINE * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(legend)
    draw.text((width - _GAP, _LINE // 2), "share of all pixels", (110, 110, 110), font, "rm")
    for number, ((color, row), share) in enumerate(zip(rows, shares, strict=True), start=1):
        top, middle = number * _LINE, number * _LINE + _LINE // 2
        draw.rectangle((0, top + 5, _FONT, top + 5 + _FONT), fill=color)
        draw.text((_FONT + 10, middle), row.text, (20, 20, 20), font, "lm")
        draw.text((width - _GAP, middle), share, (90, 90, 90), font, "rm")
    return legend
