"""Are the class names in the order of the mask values? Pixel frequencies against what is typical
for well-known names.

The values of a mask cannot tell two orders of one class list apart; how often some classes occur
can: there is more sky than keyboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torchmetrics.functional import spearman_corrcoef

from cascade_clip.vocabulary import Vocabulary, list_vocabularies, load_vocabulary

SMALLEST_NAMES = 10
"""Known names that a judgement needs at least."""
SMALLEST_IMAGES = 10
"""Masks that a judgement needs at least."""
POOR, GOOD = 0.3, 0.5
"""Rank agreement below which an order looks wrong, and from which another one looks right."""

_EVERYDAY = """
12 wall; 10 building, house, skyscraper, sky; 9 sky-other; 8 person; 7 tree; 6 grass, floor; 5 road, sea, wall-concrete, building-other
4 water, ground, snow, ceiling, clouds; 3 bed, field, playingfield, sidewalk, pavement, mountain, wall-other, water-other, dirt, bush
2 dining table, diningtable, table, sand, plant, cat, rock, train, bus, river, ceiling-other, floor-wood, floor-tile, railroad, track, hill
1.5 sofa, couch, car, dog, horse, cabinet, fence, truck, curtain, rug, carpet, floor-other, elephant, pizza, earth, platform
1 chair, cow, motorcycle, motorbike, door, window, windowpane, boat, airplane, aeroplane, bedclothes, giraffe, zebra, bear, desk, food
0.8 toilet, wall-brick, wall-tile, wall-wood, counter, shelf, shelves, mirror, stairs, bridge, window-other, door-stuff
0.5 bicycle, tv, tvmonitor, sheep, bird, potted plant, pottedplant, laptop, bench, refrigerator, sign, signboard, wood, cloth, flower, cake
0.4 umbrella, computer, painting, armchair, bathtub, blanket, pillow, surfboard, teddy bear, sink, oven, sandwich, box
0.3 bottle, bag, book, pole, column, lamp, suitcase, bowl, banana, broccoli, plate, cushion, light
0.15 cup, stop sign, handbag, backpack, vase, keyboard, skateboard, fire hydrant, traffic sign, poster, parking meter, microwave
0.08 clock, kite, tie, traffic light, sconce, skis, snowboard, tennis racket, wine glass, cell phone, knife, orange, apple, basket
0.03 mouse, remote, spoon, fork, scissors, frisbee, sports ball, baseball bat, baseball glove, toothbrush, toaster, hair drier
"""

_STREET = """
35 road; 20 building; 15 vegetation; 6 car, sidewalk; 4 sky; 1.2 person, pole, terrain; 0.9 fence; 0.7 wall; 0.5 traffic sign
0.4 bicycle; 0.25 truck, bus, train; 0.2 traffic light; 0.13 rider; 0.1 motorcycle
"""

VOC_FIRST = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person"
    " pottedplant sheep sofa train tvmonitor bag bed bench book building cabinet ceiling cloth"
    " computer cup door fence floor flower food grass ground keyboard light mountain mouse curtain"
    " platform sign plate road rock shelves sidewalk sky snow bedclothes track tree truck wall"
    " water window wood"
).split()
"""The 59 classes of Pascal Context as the PASCAL-in-Detail interface orders them: those of VOC
first."""


def typical_shares(vocabulary: Vocabulary) -> dict[str, float]:
    """Typical share of the pixels, in percent, of those classes of a list that are known.

    These are rough orders of magnitude, written down from general knowledge of photo collections
    and not measured on any: for everyday photos, and another table for lists of street scenes. Only
    their ranks are used.
    """
    street = _parse(_STREET)
    known = {name: _plain(name) for name in vocabulary.names}
    table = (
        street
        if len(street.keys() & set(known.values())) >= 0.8 * len(street) and len(vocabulary) < 60
        else _parse(_EVERYDAY)
    )
    return {name: table[plain] for name, plain in known.items() if plain in table}


def _parse(text: str) -> dict[str, float]:
    """Shares from `SHARE NAME, NAME; SHARE NAME` lines."""
    rows = [row.strip().partition(" ") for row in text.replace("\n", ";").split(";") if row.strip()]
    return {_plain(name): float(share) for share, _, names in rows for name in names.split(",")}


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


@dataclass(frozen=True)
class OrderCheck:
    """What the pixel frequencies say about the order of a class list."""

    verdict: str
    """good, unusual, permuted, or unknown (too little to judge by)."""
    text: str
    """The verdict in words."""
    names: int = 0
    """Classes that were compared."""
    agreement: float | None = None
    """Spearman's rank correlation of found and typical shares, -1..1."""
    better: str = ""
    """The order that fits better, if any."""
    better_agreement: float | None = None


def check_order(values: Mapping[int, int], masks: int, vocabulary: Vocabulary) -> OrderCheck:
    """Judge the order of a class list by the pixels of every raw value of the masks."""
    typical = typical_shares(vocabulary)
    if not values:
        return OrderCheck("unknown", "class order not checked: no index masks")
    if len(typical) < SMALLEST_NAMES or masks < SMALLEST_IMAGES:
        return OrderCheck(
            "unknown",
            f"class order not checked: it needs {SMALLEST_NAMES} classes whose typical frequency is"
            f" known and {SMALLEST_IMAGES} masks, here are {len(typical)} and {masks}",
        )
    given = _given_order(vocabulary)
    agreement = rank_agreement(given, values, typical)
    rated = [
        (rank_agreement(order, values, typical), text)
        for text, order in _other_orders(vocabulary, given)
    ]
    best, better = max(rated, key=lambda row: row[0], default=(-1.0, ""))  # of equal ones the first
    # 2.5 times the spread of the correlation of unrelated ranks
    margin = max(0.3, 2.5 / (len(typical) - 1) ** 0.5)
    rank = (
        f"rank agreement {agreement:.2f} of found and typical pixel frequencies over {len(typical)}"
        " well-known names"
    )
    if agreement < GOOD and best >= GOOD and best - agreement >= margin:
        text = f"labels look permuted: {rank}, but {best:.2f} if the names are read {better}"
        return OrderCheck("permuted", text, len(typical), agreement, better, best)
    if agreement < POOR:
        return OrderCheck(
            "unusual",
            f"class frequencies are unusual: {rank}, and no known order fits better",
            len(typical),
            agreement,
        )
    return OrderCheck("good", f"class order looks right: {rank}", len(typical), agreement)


def rank_agreement(
    order: Mapping[int, str], values: Mapping[int, int], typical: Mapping[str, float]
) -> float:
    """Spearman's rank correlation of found and typical shares, if raw values mean the names of
    `order`; 0 where none is found."""
    found = dict.fromkeys(typical, 0)
    for value, name in order.items():
        if name in found:
            found[name] += values.get(value, 0)
    if len(set(found.values())) < 2:
        return 0.0
    pixels = torch.tensor(list(found.values()), dtype=torch.float64)
    return float(
        spearman_corrcoef(pixels, torch.tensor(list(typical.values()), dtype=torch.float64))
    )


def _given_order(vocabulary: Vocabulary) -> dict[int, str]:
    pairs = (
        vocabulary.raw_values
        if vocabulary.raw_values is not None
        else tuple((label, label) for label in range(len(vocabulary)))
    )
    return {value: vocabulary.names[label] for value, label in pairs if label >= 0}


def _other_orders(
    vocabulary: Vocabulary, given: Mapping[int, str]
) -> list[tuple[str, dict[int, str]]]:
    """Other meanings of the mask values that are known to happen, each with its description."""
    names, places = vocabulary.names, sorted(given)
    same = [name for name in list_vocabularies() if set(load_vocabulary(name).names) == set(names)]
    orders = [("in alphabetical order", sorted(names, key=str.casefold))]
    orders += [
        (f"in the order of the packaged list {name}", list(load_vocabulary(name).names))
        for name in same
    ]
    if set(VOC_FIRST) == set(names):
        orders.append(
            (
                "with the classes of VOC first (the order of the PASCAL-in-Detail interface)",
                list(VOC_FIRST),
            )
        )
    found = [(text, dict(zip(places, order, strict=False))) for text, order in orders]
    found += [
        (f"as the raw values of the packaged list {name}", _given_order(load_vocabulary(name)))
        for name in same
    ]
    found.append(("in list order from mask value 0", dict(enumerate(names))))
    found.append(("in list order from mask value 1", dict(enumerate(names, start=1))))
    found.append(("one mask value higher", {value + 1: name for value, name in given.items()}))
    found.append(("one mask value lower", {value - 1: name for value, name in given.items()}))
    return [
        (text, order)
        for place, (text, order) in enumerate(found)
        if order not in (given, *(earlier for _, earlier in found[:place]))
    ]
