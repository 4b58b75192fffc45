"""Pairing of files, labels of masks, and the order and randomness of training."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cascade_clip.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from cascade_clip.data.augmentation import TrainTransform
from cascade_clip.data.folder import find_files
from cascade_clip.data.masks import UNKNOWN, MaskReader
from cascade_clip.data.samples import Sample, SegmentationFolder
from cascade_clip.data.sampling import StepSampler, TrainingSet
from cascade_clip.vocabulary import Vocabulary, load_vocabulary, parse_classes

CLASSES = parse_classes("cat, dog, grass")


@pytest.fixture(autouse=True)
def single_thread() -> None:
    """As in a loader's worker; two threads on busy cores wait for each other at every small
    step."""
    torch.set_num_threads(1)


def write(path: Path, values: object, size: tuple[int, int] = (6, 4)) -> Path:
    """An image (a colour) or a mask (a value or rows of values)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(values, tuple):
        Image.new("RGB", size, values).save(path)
    else:
        Image.fromarray(
            np.full(size[::-1], values, dtype=np.uint8)
            if isinstance(values, int)
            else np.array(values)
        ).save(path)
    return path


def fill(folder: Path, images: list[str], masks: list[str]) -> tuple[Path, Path]:
    for index, name in enumerate(images):
        write(folder / "images" / name, (index, index, index))
    for index, name in enumerate(masks):
        write(folder / "masks" / name, index % 3)
    return folder / "images", folder / "masks"


def stems(dataset: SegmentationFolder, folder: Path) -> list[tuple[str, str]]:
    return [
        (
            image.relative_to(folder / "images").as_posix(),
            mask.relative_to(folder / "masks").as_posix(),
        )
        for image, mask in dataset.pairs
    ]


# Pairing


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        # sorted
        (["b.jpg", "a.jpg"], ["a.png", "b.png"], [("a.jpg", "a.png"), ("b.jpg", "b.png")]),
        (
            ["a.JPG", "b.JPeG", "c.PNG"],
            ["a.png", "b.PNG", "c.png"],
            [("a.JPG", "a.png"), ("b.JPeG", "b.PNG"), ("c.PNG", "c.png")],
        ),
        # every suffix
        (["a.bmp", "b.webp", "c.tif", "d.tiff"], ["a.tif", "b.png", "c.bmp", "d.tiff"], None),
        (["a.jpg"], ["a_labelTrainIds.png"], [("a.jpg", "a_labelTrainIds.png")]),  # COCO-Stuff
        # raw labels beside training labels
        (["a.jpg"], ["a.png", "a_labelTrainIds.png"], [("a.jpg", "a_labelTrainIds.png")]),
        # one stem in two folders
        (
            ["y/a.jpg", "x/a.jpg"],
            ["x/a.png", "y/a.png"],
            [("x/a.jpg", "x/a.png"), ("y/a.jpg", "y/a.png")],
        ),
        (
            ["x/a.jpg", "b.jpg", "a/c.jpg"],
            ["a/c.png", "b.png", "x/a.png"],
            [("a/c.jpg", "a/c.png"), ("b.jpg", "b.png"), ("x/a.jpg", "x/a.png")],
        ),
        # dots in names
        (
            ["a.1.jpg", "a.2.jpg"],
            ["a.1.png", "a.2.png"],
            [("a.1.jpg", "a.1.png"), ("a.2.jpg", "a.2.png")],
        ),
    ],
)
def test_files_pair_by_stem(
    images: list[str], masks: list[str], expected: list[tuple[str, str]] | None, tmp_path: Path
) -> None:
    dataset = SegmentationFolder(*fill(tmp_path, images, masks), CLASSES)
    found = stems(dataset, tmp_path)
    assert found == (expected if expected is not None else list(zip(images, masks, strict=True)))
    assert len(dataset) == len(images)


def test_other_files_do_not_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, masks = fill(tmp_path, ["a.jpg", "._a.jpg"], ["a.png", "._a.png"])
    (images / "readme.txt").write_text("hello")
    assert stems(SegmentationFolder(images, str(masks), CLASSES), tmp_path) == [("a.jpg", "a.png")]
    assert not caplog.records


def test_mask_folder_below_the_image_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (1, 2, 3))
    write(tmp_path / "masks" / "a.png", 0)
    dataset = SegmentationFolder(tmp_path, tmp_path / "masks", CLASSES)
    assert [image.name for image, _ in dataset.pairs] == ["a.png"]


def test_links_are_followed(tmp_path: Path) -> None:
    images, masks = fill(tmp_path / "far", ["a.jpg"], ["a.png"])
    for name, target in (("images", images), ("masks", masks)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train").symlink_to(target)
        (tmp_path / name / "again").symlink_to(tmp_path / name)  # a circle ends
    assert stems(
        SegmentationFolder(tmp_path / "images", tmp_path / "masks", CLASSES), tmp_path
    ) == [("train/a.jpg", "train/a.png")]


def test_masks_without_image_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SegmentationFolder(
            *fill(tmp_path, ["a.jpg"], ["a.png", "b.png", "c_labelTrainIds.png"]), CLASSES
        )
    assert "2 masks have no image and are not used: b.png, c_labelTrainIds.png" in caplog.text


def test_everything_that_does_not_pair_up_is_found(tmp_path: Path) -> None:
    images, masks = fill(
        tmp_path,
        ["a.jpg", "a.png", "b.jpg", "c.jpg"],
        ["a.png", "a.tif", "x/b.png", "c_labelTrainIds.png"],
    )
    found = find_files(images, masks)
    assert found.pairs == [
        (images / "a.jpg", masks / "a.png"),
        (images / "c.jpg", masks / "c_labelTrainIds.png"),
    ]
    assert (found.images, found.masks) == (3, 3)  # files of one name count once
    assert (found.images_alone, found.masks_alone) == ([images / "b.jpg"], [masks / "x" / "b.png"])
    assert found.clashes == [
        (images / "a.jpg", images / "a.png"),
        (masks / "a.png", masks / "a.tif"),
    ]


def test_suffixes_of_images_and_masks(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpeg", "c.png", "d.bmp", "e.webp", "f.tif", "g.tiff", "h.gif", "i.avif"]
    for name in (*names, "j.heic", "k.txt", "l.ico"):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / name).touch()
    found = find_files(tmp_path / "images", tmp_path / "masks")
    assert (found.images, found.masks) == (10, 6)
    # what their compression loses would change labels
    assert [path.name for path in found.images_alone] == ["a.jpg", "b.jpeg", "i.avif", "j.heic"]


def test_images_without_mask_are_an_error_that_names_five(tmp_path: Path) -> None:
    images = [f"{letter}.jpg" for letter in "abcdefgh"]
    with pytest.raises(
        ValueError,
        match=(
            r"7 of 8 images in .* have no mask: b\.jpg, c\.jpg, d\.jpg, e\.jpg, f\.jpg, \.\.\.;"
            r" a mask"
        ),
    ):
        SegmentationFolder(*fill(tmp_path, images, ["a.png"]), CLASSES)


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (
            lambda images, masks: (images.parent / "none", masks),
            FileNotFoundError,
            "image folder .*none does not exist",
        ),
        (
            lambda images, masks: (images, masks.parent / "none"),
            FileNotFoundError,
            "mask folder .*none does not exist",
        ),
        (
            lambda images, masks: (images / "a.jpg", masks),
            FileNotFoundError,
            "is a file; give a folder",
        ),
        (
            lambda images, masks: (write(images.parent / "empty" / "x.ico", 0).parent, masks),
            FileNotFoundError,
            "no images in .*empty",
        ),
        # a.jpg and a.png
        (
            lambda images, masks: (write(images / "a.png", (0, 0, 0)).parent, masks),
            ValueError,
            "have one name",
        ),
    ],
)
def test_wrong_folders(
    prepare: Callable[[Path, Path], tuple[Path, Path]],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    folders = fill(tmp_path, ["a.jpg"], ["a.png"])
    with pytest.raises(error, match=message):
        SegmentationFolder(*prepare(*folders), CLASSES)


@pytest.mark.parametrize(("limit", "expected"), [(0, 3), (2, 2), (9, 3)])
def test_limit_keeps_the_first(limit: int, expected: int, tmp_path: Path) -> None:
    dataset = SegmentationFolder(
        *fill(tmp_path, ["c.jpg", "a.jpg", "b.jpg"], ["a.png", "b.png", "c.png"]),
        CLASSES,
        limit=limit,
    )
    assert [image.stem for image, _ in dataset.pairs] == list("abc")[:expected]


def test_negative_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit must be 0"):
        SegmentationFolder(*fill(tmp_path, ["a.jpg"], ["a.png"]), CLASSES, limit=-1)


# Samples


def one_pair(
    folder: Path, mask: object, vocabulary: Vocabulary = CLASSES, size: tuple[int, int] = (6, 4)
) -> SegmentationFolder:
    write(folder / "images" / "a.png", (1, 2, 3), size)
    write(folder / "masks" / "a.png", mask)
    return SegmentationFolder(folder / "images", folder / "masks", vocabulary)


ROWS = np.array([[0, 1, 2, 255, 0, 1]] * 4, dtype=np.uint8)


def test_sample(tmp_path: Path) -> None:
    dataset = one_pair(tmp_path, ROWS)
    sample = dataset.sample(0)
    assert sample.image.shape == (3, 4, 6) and sample.image.dtype == torch.uint8
    assert sample.image[:, 0, 0].tolist() == [1, 2, 3]
    assert sample.labels.dtype == torch.int64
    assert sample.labels[0].tolist() == [0, 1, 2, -1, 0, 1]
    assert sample.path == tmp_path / "images" / "a.png"
    assert torch.equal(dataset[0].labels, sample.labels)
    with pytest.raises(IndexError):
        dataset.sample(1)


def test_class_list_with_values(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 null\n7 cat\n300 dog\n")
    vocabulary = load_vocabulary(str(tmp_path / "classes.txt"))
    mask = np.array([[0, 7, 300, 7, 255, 0]] * 4, dtype=np.uint16)
    assert one_pair(tmp_path, mask, vocabulary).sample(0).labels[0].tolist() == [
        -1,
        0,
        1,
        0,
        -1,
        -1,
    ]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.full((4, 6), 3, dtype=np.uint8),
            (
                r"a\.png holds values that name no class: 3 \(24 pixels\); .*VALUE NAME.*value,"
                r" now 255"
            ),
        ),
        # many
        (
            np.arange(24, dtype=np.uint8).reshape(4, 6),
            r"3 \(1 pixels\), .*, 7 \(1 pixels\) and 16 more;",
        ),
        (
            np.full((4, 5), 0, dtype=np.uint8),
            r"images.a\.png has 6 x 4 pixels .*masks.a\.png has 5 x 4",
        ),
        (
            np.zeros((4, 6, 3), dtype=np.uint8),
            (
                r"a\.png is a colour image, but the class list gives no colours; .*`#rrggbb NAME`"
                r" lines.*: #000000 \(24 pixels\)"
            ),
        ),
    ],
)
def test_masks_that_do_not_fit(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        one_pair(tmp_path, mask).sample(0)


# Masks by colour

COLORS = (
    "# a comment\n0 0 0 ignore\n#804080 road\n70, 130, 180 sky = heaven\n0 0 142 car\n#0000e6 car\n"
)
ROAD, SKY, CAR, BIKE, NOTHING, OTHER = (
    (128, 64, 128),
    (70, 130, 180),
    (0, 0, 142),
    (0, 0, 230),
    (0, 0, 0),
    (1, 2, 3),
)


def color_list(folder: Path, text: str = COLORS) -> Vocabulary:
    (folder / "colors.txt").write_text(text)
    return load_vocabulary(str(folder / "colors.txt"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_labels(mode: str, tmp_path: Path) -> None:
    rows = np.array([[ROAD, SKY, CAR, BIKE, NOTHING, ROAD]] * 4, dtype=np.uint8)
    mask = Image.fromarray(rows)
    if mode == "P":
        mask = mask.quantize(256)
    elif mode == "RGBA":
        mask.putalpha(7)  # transparency has no meaning
    (tmp_path / "masks").mkdir()
    write(tmp_path / "images" / "a.png", (1, 2, 3))
    mask.save(tmp_path / "masks" / "a.png")
    assert Image.open(tmp_path / "masks" / "a.png").mode == mode
    labels = (
        SegmentationFolder(tmp_path / "images", tmp_path / "masks", color_list(tmp_path))
        .sample(0)
        .labels
    )
    assert labels.dtype == torch.int64
    assert labels[0].tolist() == [0, 1, 2, 2, -1, 0]  # two colours of a car, black is ignored


def test_grey_masks_of_a_colour_list_are_colours(tmp_path: Path) -> None:
    vocabulary = color_list(tmp_path, "0 0 0 null\n255 255 255 building\n")
    mask = np.array([[0, 255, 255, 0, 0, 255]] * 4, dtype=np.uint8)
    assert one_pair(tmp_path, mask, vocabulary).sample(0).labels[0].tolist() == [
        -1,
        0,
        0,
        -1,
        -1,
        0,
    ]


def test_a_list_of_values_and_colours_reads_both(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(
        '{"names": ["cat", "dog"], "raw_values": {"5": "dog"}, "mask_colors": {"#804080": "cat"}}'
    )
    vocabulary = load_vocabulary(str(tmp_path / "list.json"))
    assert one_pair(tmp_path / "grey", np.full((4, 6), 5, dtype=np.uint8), vocabulary).sample(
        0
    ).labels.unique().tolist() == [1]
    assert one_pair(
        tmp_path / "color", np.full((4, 6, 3), ROAD, dtype=np.uint8), vocabulary
    ).sample(0).labels.unique().tolist() == [0]


def test_unknown_colours_are_named_with_their_pixels(tmp_path: Path) -> None:
    rows = np.array([[ROAD, OTHER, SKY, SKY, OTHER, (255, 255, 255)]] * 4, dtype=np.uint8)
    with pytest.raises(
        ValueError,
        match=(
            r"a\.png holds colours that name no class: #010203 \(8 pixels\), #ffffff \(4 pixels\);"
            r" .*`R G B NAME`"
        ),
    ):
        one_pair(tmp_path, rows, color_list(tmp_path)).sample(0)


@pytest.mark.parametrize("classes", [1, 19, 300])
def test_colour_labels_equal_a_search_pixel_by_pixel(classes: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(classes)
    codes = draws.choice(2**24, classes + 1, replace=False)  # the last one is left out of the list
    colors = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    reader = MaskReader(
        color_list(
            tmp_path, "".join(f"{r} {g} {b} class {i}\n" for i, (r, g, b) in enumerate(colors[:-1]))
        )
    )
    expected = draws.integers(0, classes + 1, (37, 53))
    Image.fromarray(np.array(colors, dtype=np.uint8)[expected]).save(tmp_path / "mask.png")
    labels = reader.labels(reader.read(tmp_path / "mask.png"))
    assert labels.tolist() == np.where(expected == classes, UNKNOWN, expected).tolist()


# Training


class Numbers:
    """Samples whose image and labels say their index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> Sample:
        draws = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8, generator=draws)
        return Sample(image, torch.full((24, 32), index), Path(str(index)))


def training_set(length: int = 10, seed: int = 0) -> TrainingSet:
    config = AugmentConfig(scale=(64, 32), crop=16)
    return TrainingSet(
        Numbers(length), TrainTransform(config, IMAGENET_MEAN, IMAGENET_STD), seed=seed
    )


def run(workers: int, start: int = 0, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
    sampler = StepSampler(10, batch_size=4, seed=3, steps=6, start=start, rank=rank, world=world)
    loader = DataLoader(training_set(), batch_size=4 // world, sampler=sampler, num_workers=workers)
    return [
        torch.cat([images.flatten(1), labels.flatten(1).float()], dim=1)
        for images, labels in loader
    ]


def test_crops_do_not_depend_on_workers_resuming_or_ranks() -> None:
    torch.manual_seed(1)
    alone = run(0)
    torch.manual_seed(2)
    assert len(alone) == 6
    for other in (run(2), run(0)):
        assert all(torch.equal(first, second) for first, second in zip(alone, other, strict=True))
    assert all(
        torch.equal(first, second) for first, second in zip(alone[2:], run(0, start=8), strict=True)
    )
    shared = [
        torch.cat(parts)
        for parts in zip(run(0, rank=0, world=2), run(0, rank=1, world=2), strict=True)
    ]
    assert all(torch.equal(first, second) for first, second in zip(alone, shared, strict=True))


@pytest.mark.parametrize(
    ("place", "seed", "same"),
    [
        ((5, 2), 0, True),
        ((6, 2), 0, False),  # the same image later in the run looks different
        ((5, 2), 1, False),  # another seed
    ],
)
def test_randomness_of_a_crop(place: tuple[int, int], seed: int, same: bool) -> None:
    image, labels = training_set()[5, 2]
    other, _ = training_set(seed=seed)[place]
    assert image.shape == (3, 16, 16) and labels.shape == (16, 16)
    assert set(labels.unique().tolist()) <= {2, -1}
    assert torch.equal(image, other) is same


def test_length_is_that_of_the_data_set() -> None:
    assert len(training_set(7)) == 7


@pytest.mark.parametrize("length", [1, 3, 8, 10, 25])
def test_every_epoch_holds_every_image_once_in_a_new_order(length: int) -> None:
    pairs = list(StepSampler(length, batch_size=4, seed=1, steps=25))
    assert [position for position, _ in pairs] == list(range(100))
    indices = [index for _, index in pairs]
    epochs = [indices[first : first + length] for first in range(0, 100 - length + 1, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length >= 8:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_depends_on_the_seed_only() -> None:
    orders = [list(StepSampler(50, batch_size=5, seed=seed, steps=10)) for seed in (1, 1, 2, -7)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_steps_hold_the_same_pairs_whatever_the_ranks(world: int) -> None:
    whole = list(StepSampler(17, batch_size=12, seed=2, steps=5))
    ranks = [
        list(StepSampler(17, batch_size=12, seed=2, steps=5, rank=rank, world=world))
        for rank in range(world)
    ]
    share = 12 // world
    for step in range(5):
        joined = list(
            itertools.chain.from_iterable(
                pairs[step * share : (step + 1) * share] for pairs in ranks
            )
        )
        assert joined == whole[12 * step : 12 * (step + 1)]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_start_goes_on_where_a_run_stopped(rank: int, world: int) -> None:
    sampler = StepSampler(7, batch_size=4, steps=9, rank=rank, world=world)
    whole = list(sampler)
    assert len(sampler) == len(whole) == 36 // world
    assert list(sampler) == whole  # a second walk is the same
    sampler.start = 20  # 5 steps are done
    assert list(sampler) == whole[20 // world :]
    assert len(sampler) == 16 // world
    sampler.start = 40  # beyond the end
    assert len(sampler) == len(list(sampler)) == 0


def test_without_steps_there_is_no_end() -> None:
    sampler = StepSampler(3, batch_size=2)
    assert len(list(itertools.islice(sampler, 1001))) == 1001
    with pytest.raises(TypeError, match="set steps"):
        len(sampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "at least 1 image"),
        ({"batch_size": 5, "world": 2}, "cannot be shared by 2 ranks"),
        ({"rank": 2, "world": 2}, r"rank must lie in 0\.\.1"),
        ({"start": 3}, "multiple of the batch size 4"),
        ({"start": -4}, "multiple of the batch size 4"),
        ({"steps": -1}, "steps must be 0"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepSampler(**{"length": 10, "batch_size": 4, **arguments})
