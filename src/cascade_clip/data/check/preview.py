"""The preview sheet of a data check: images beside their masks, and a legend of the classes in
them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cascade_clip.data.check.facts import Count, PairFacts, Tally
from cascade_clip.data.masks import UNKNOWN, MaskReader
from cascade_clip.files import load_image
from cascade_clip.ops import resize_mask
from cascade_clip.results import Segmentation
from cascade_clip.vocabulary import IGNORED, Color, Vocabulary

SHOWN = 12
"""Images on a sheet at most."""
TILE = 300
"""Longest side of one picture, in pixels."""
WIDTH = 1500
"""Width that the pictures share, in pixels."""
_GAP, _CAPTION, _LINE, _FONT = 14, 24, 26, 15
_GREY, _MAGENTA = (128, 128, 128), (255, 0, 255)


def choose_pairs(facts: Sequence[PairFacts], count: int = SHOWN) -> list[PairFacts]:
    """Pairs that show as many classes as possible: each next one adds the most that are not shown
    yet; in the order of `facts`."""
    left = [item for item in facts if item.fits]
    chosen: list[PairFacts] = []
    shown: set[int] = {IGNORED}
    while left and len(chosen) < count:
        gains = [len(item.labels.keys() - shown) for item in left]
        # Where nothing new is left, go on at even distances and not with the first ones.
        place = int(np.argmax(gains)) if max(gains) else len(left) * len(chosen) // count
        chosen.append(left.pop(place))
        shown |= chosen[-1].labels.keys()
    order = {id(item): place for place, item in enumerate(facts)}
    return sorted(chosen, key=lambda item: order[id(item)])


def draw_sheet(
    facts: Sequence[PairFacts], vocabulary: Vocabulary, tally: Tally
) -> Image.Image | None:
    """Image and overlay of the chosen pairs, with a legend on the right; None where no pair can be
    shown."""
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
    ImageDraw.Draw(tile).text(
        (0, image.height + _CAPTION // 2 + 1), name, fill=(70, 70, 70), font=font, anchor="lm"
    )
    return tile


def _legend(labels: set[int], vocabulary: Vocabulary, tally: Tally) -> Image.Image:
    """Colour, name and share in all masks of the classes on the sheet, the most frequent first."""
    present = sorted(
        (label for label in labels if label >= 0), key=lambda label: -tally.classes[label].pixels
    )
    rows: list[tuple[Color, Count]] = [
        (vocabulary.colors[label], tally.classes[label]) for label in present
    ]
    if IGNORED in labels:
        rows.append((_GREY, tally.ignored))
    if UNKNOWN in labels:
        rows.append(
            (_MAGENTA, Count("names no class", sum(row.pixels for row in tally.unknown), 0))
        )
    font = ImageFont.load_default(_FONT)
    names = max(font.getlength(row.text) for _, row in rows)
    shares = [f"{100 * tally.share(row):.2f} %" for _, row in rows]
    width = int(_FONT + 10 + names + 24 + max(font.getlength(share) for share in shares) + 2 * _GAP)
    legend = Image.new("RGB", (width, _LINE * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(legend)
    draw.text(
        (width - _GAP, _LINE // 2),
        "share of all pixels",
        fill=(110, 110, 110),
        font=font,
        anchor="rm",
    )
    for number, ((color, row), share) in enumerate(zip(rows, shares, strict=True), start=1):
        top = number * _LINE
        draw.rectangle((0, top + 5, _FONT, top + 5 + _FONT), fill=color)
        draw.text(
            (_FONT + 10, top + _LINE // 2), row.text, fill=(20, 20, 20), font=font, anchor="lm"
        )
        draw.text(
            (width - _GAP, top + _LINE // 2), share, fill=(90, 90, 90), font=font, anchor="rm"
        )
    return legend
