"""Class lists, splits by name, synonyms, label maps, and names that cannot be used."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest

from cascade_clip.config import DataConfig
from cascade_clip.vocabulary import (
    IGNORED,
    Vocabulary,
    build_palette,
    default_templates,
    list_vocabularies,
    load_templates,
    load_vocabulary,
    load_words,
    parse_classes,
    split_classes,
)

PAPER_UNSEEN = {  # the paper's Table 11
    "voc": {"pottedplant", "sheep", "sofa", "train", "tvmonitor"},
    "context": {
        "aeroplane",
        "bird",
        "boat",
        "cat",
        "cow",
        "motorbike",
        "sofa",
        "tvmonitor",
        "fence",
        "keyboard",
    },
}


@pytest.mark.parametrize(
    ("name", "classes", "unseen", "known"),
    [
        ("voc", 20, 5, [*range(21), 255]),  # 0 is background, ignored
        ("coco-stuff", 171, 15, [0, 10, 12, 181, 255]),  # 11 never occurs
        ("context", 59, 10, range(60)),
        ("context-released", 59, 10, range(60)),
        ("ade20k", 150, 0, range(151)),
        ("cityscapes", 19, 0, [7, 33]),
    ],
)
def test_packaged_lists(name: str, classes: int, unseen: int, known: object) -> None:
    vocabulary = load_vocabulary(name)
    assert (len(vocabulary), len(vocabulary.unseen), len(vocabulary.seen)) == (
        classes,
        unseen,
        classes - unseen,
    )
    assert vocabulary.unknown_values(known) == []  # type: ignore[arg-type]
    labels = vocabulary.label_table()
    assert set(labels[labels != IGNORED].tolist()) == set(range(classes))
    assert name in list_vocabularies()


@pytest.mark.parametrize("name", PAPER_UNSEEN)
def test_splits_of_the_paper(name: str) -> None:
    assert set(load_vocabulary(name).unseen) == PAPER_UNSEEN[name]


def test_the_released_context_split_holds_out_six_other_classes() -> None:
    assert (
        len(
            set(load_vocabulary("context").unseen) - set(load_vocabulary("context-released").unseen)
        )
        == 6
    )


def test_raw_values_of_voc() -> None:
    table = load_vocabulary("voc").label_table()
    assert table[[0, 1, 20, 255]].tolist() == [IGNORED, 0, 19, IGNORED]
    assert load_vocabulary("voc").unknown_values([0, 20, 21, 254, 255]) == [21, 254]


def test_coco_raw_values_close_the_gaps() -> None:
    table = load_vocabulary("coco-stuff").label_table()
    assert table[[10, 11, 12, 181]].tolist() == [10, IGNORED, 11, 170]
    assert load_vocabulary("coco-stuff").unknown_values([11]) == [11]


@pytest.mark.parametrize(
    ("text", "names", "synonyms"),
    [
        ("cat,grass", ("cat", "grass"), (("cat",), ("grass",))),
        (" cat , sofa = couch; settee ", ("cat", "sofa"), (("cat",), ("sofa", "couch", "settee"))),
        ("sofa = sofa; couch", ("sofa",), (("sofa", "couch"),)),  # the name itself is no synonym
        ("犬, кошка, 🐈", ("犬", "кошка", "🐈"), (("犬",), ("кошка",), ("🐈",))),  # any script
        ("cafe\u0301", ("caf\u00e9",), (("caf\u00e9",),)),  # one spelling of accents
    ],
)
def test_own_words(
    text: str, names: tuple[str, ...], synonyms: tuple[tuple[str, ...], ...]
) -> None:
    vocabulary = parse_classes(text)
    assert vocabulary.names == names
    assert vocabulary.synonyms == synonyms
    assert vocabulary.seen_mask == (True,) * len(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("cat,,dog", "empty"),
        ("cat, CAT", "twice"),  # case makes no difference to CLIP
        ("CAT, Cat", "twice"),
        ("cat\x07", "control characters"),
        ("x" * 201, "201 characters"),
        ("sofa = ;", "empty"),
    ],
)
def test_own_words_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_classes(text)


def test_lists_in_files(tmp_path: Path) -> None:
    plain, numbered = tmp_path / "plain.txt", tmp_path / "numbered.txt"
    plain.write_text("\ufeff# a comment\ncat\n\nsofa = couch\n", encoding="utf-8")
    numbered.write_text("0 null\n7 cat\n300 traffic light\n")
    (tmp_path / "unseen.txt").write_text("sofa\n")
    vocabulary = load_vocabulary(str(plain), str(tmp_path / "unseen.txt"))
    assert (vocabulary.names, vocabulary.unseen) == (("cat", "sofa"), ("sofa",))
    assert vocabulary.label_table()[[0, 1, 2, 255]].tolist() == [0, 1, IGNORED, IGNORED]
    vocabulary = load_vocabulary(str(numbered), "cat")
    assert vocabulary.names == ("cat", "traffic light")
    assert vocabulary.label_table()[[0, 7, 300]].tolist() == [IGNORED, 0, 1]  # 16-bit values work
    assert vocabulary.unknown_values([0, 7, 8, 255, 300]) == [8]


@pytest.mark.parametrize(
    "text",
    ["0 null\n1 sky\n2 grass\n", "0,null\n1, sky\n2 , grass\n", "0: null\n1\tsky\n2 grass\n"],
)
def test_what_may_stand_after_a_mask_value(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    vocabulary = load_vocabulary(str(tmp_path / "list.txt"))
    assert vocabulary.names == ("sky", "grass")
    assert vocabulary.raw_values == ((0, IGNORED), (1, 0), (2, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0 null\n1 sky\n2 grass\nwater\n",
            r"list\.txt: 'water' is not `VALUE NAME` as most lines are",
        ),
        ("sky\n1 grass\n2 water\n", "'sky' is not `VALUE NAME`"),
        ("null\nsky\ngrass\n", r"list\.txt: 'null' marks pixels that do not count.*`0 null`"),
        ("sky\ngrass\nIgnore\n", "'Ignore' marks pixels"),
        ("0 null\nsky\n", None),  # no majority: names alone, strange as they are
        ("7 up\ncola\nwater\n", None),
    ],
)
def test_lists_that_are_half_numbered(text: str, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    if message is None:
        assert load_vocabulary(str(tmp_path / "list.txt")).names == tuple(text.splitlines())
        return
    with pytest.raises(ValueError, match=message):
        load_vocabulary(str(tmp_path / "list.txt"))


def test_void_names_between_commas_are_refused() -> None:
    with pytest.raises(ValueError, match="'void' marks pixels that do not count"):
        load_vocabulary("sky, void, grass")


def test_no_unseen_class_at_all() -> None:
    assert (
        load_vocabulary("voc", "none").unseen == ()
        and not load_vocabulary("voc", "none").inherits_split
    )
    assert load_vocabulary("cat, dog").inherits_split
    assert split_classes(load_vocabulary("voc"), "").unseen == load_vocabulary("voc").unseen
    assert split_classes(load_vocabulary("voc"), "cat, dog").unseen == ("cat", "dog")


@pytest.mark.parametrize(
    "text",
    [
        "0 0 0 null\n128 64 128 road\n70 130 180 sky = heaven; blue\n0 0 142 road\n",
        (
            "# R G B NAME\n0,0,0,ignore\n128,64,128: road\n70,130,180 sky = heaven; blue\n0, 0, 142"
            " road\n"
        ),
        "#comment\n#000000 Void\n#804080 road\n#4682B4 sky = heaven; blue\n#00008e road\n",
    ],
)
def test_lists_with_mask_colours(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    vocabulary = load_vocabulary(str(tmp_path / "list.txt"), "sky")
    assert vocabulary.names == ("road", "sky")
    assert vocabulary.synonyms == (("road",), ("sky", "heaven", "blue"))
    assert vocabulary.mask_colors == (
        ((0, 0, 0), IGNORED),
        ((128, 64, 128), 0),
        ((70, 130, 180), 1),
        ((0, 0, 142), 0),
    )
    # people see the first colour of a class
    assert vocabulary.colors == ((128, 64, 128), (70, 130, 180))
    assert vocabulary.raw_values is None
    codes, labels = vocabulary.color_table()
    assert codes.tolist() == [0, 0x00008E, 0x4682B4, 0x804080]
    assert labels.tolist() == [IGNORED, 0, 1, 0]


def test_colours_in_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(
        '{"names": ["road", "sky", "car"], "mask_colors": {"70 130 180": "sky", "#804080": "road",'
        ' "#000000": null}}'
    )
    vocabulary = load_vocabulary(str(path))
    assert vocabulary.mask_colors == (
        ((70, 130, 180), 1),
        ((128, 64, 128), 0),
        ((0, 0, 0), IGNORED),
    )
    assert vocabulary.colors == ((128, 64, 128), (70, 130, 180), build_palette(3)[2])
    path.write_text(
        '{"names": ["road"], "mask_colors": {"#804080": "road"}, "palette": [[1, 2, 3]]}'
    )
    assert load_vocabulary(str(path)).colors == ((1, 2, 3),)  # a palette of its own goes before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # a number is missing
        ("0 0 0 road\n1 2 3 sky\n128 64 car\n", "'128 64 car' is not `R G B NAME`"),
        # a digit is missing: no comment
        ("#000000 road\n#010203 sky\n#80408 car\n", "'#80408 car' is not"),
        (
            "0 0 0 road\n0 0 256 sky\n",
            r"list\.txt: colours must be \(red, green, blue\) in 0\.\.255",
        ),
        ("0 0 0 road\n#000000 sky\n", "mask colours are given twice: #000000"),
        ("0 0 0 null\n", "no class names"),
    ],
)
def test_colour_lists_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_vocabulary(str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        # six hex letters, but the list has no colours
        ("#facade is a comment\ncat\ndog\n", ("cat", "dog")),
        # `VALUE NAME` with a strange name
        ("#added later\n0 cat\n1 2 3 go\n2 dog\n", ("cat", "2 3 go", "dog")),
    ],
)
def test_lists_that_only_look_like_colours(
    text: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(text)
    vocabulary = load_vocabulary(str(tmp_path / "list.txt"))
    assert vocabulary.names == names
    assert vocabulary.mask_colors is None and not len(vocabulary.color_table()[0])


def test_synonyms_in_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(
        '{"names": ["cat", "sofa = couch"], "synonyms": {"sofa": ["settee", "couch", " divan "]}}'
    )
    vocabulary = load_vocabulary(str(path))
    assert vocabulary.names == ("cat", "sofa")
    assert vocabulary.synonyms == (("cat",), ("sofa", "couch", "settee", "divan"))


def test_an_ignore_value_that_is_a_class() -> None:
    many = Vocabulary(
        tuple(f"c{index}" for index in range(300)),
        tuple((f"c{index}",) for index in range(300)),
        build_palette(300),
    )
    with pytest.raises(ValueError, match="mask value 255 means both"):
        many.label_table()
    numbered = dataclasses.replace(load_vocabulary("a, b"), raw_values=((255, 0), (7, 1)))
    with pytest.raises(ValueError, match="mask value 255 means both"):
        numbered.label_table()
    assert dataclasses.replace(many, ignore=65535).label_table()[[255, 299, 65535]].tolist() == [
        255,
        299,
        IGNORED,
    ]


def test_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(
        '{"names": ["cat", "dog"], "unseen": ["dog"], "raw_values": {"1": "cat", "2": "dog", "3":'
        ' null}, "ignore": 0}'
    )
    vocabulary = load_vocabulary(str(path))
    assert vocabulary.unseen == ("dog",)
    assert vocabulary.label_table()[[0, 1, 2, 3]].tolist() == [IGNORED, 0, 1, IGNORED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"names": ["cat"], "raw_values": {"1": "cow"}}', "cow"),
        ('{"names": ["cat"], "raw_values": {"70000": "cat"}}', r"0\.\.65535"),
        ('{"names": ["cat"], "raw_values": ["cat"]}', "not a class list"),
        ('{"names": ["cat"], "palette": ["red"]}', "not a class list"),
        ('{"names": ["cat"], "mask_colors": {"#000000": "cow"}}', "mask_colors name .'cow'"),
        ('{"names": ["cat"], "mask_colors": {"red": "cat"}}', "'red' is no colour; write #rrggbb"),
        ('{"names": ["cat"], "mask_colors": {"0 0 300": "cat"}}', r"0\.\.255"),
        ('{"names": ["cat"], "synonyms": {"cow": ["ox"]}}', "synonyms name .'cow'"),
        ('{"names": ["cat"], "synonyms": {"cat": "kitten"}}', "must be lists"),
        ('{"names": ["cat"], "synonyms": {"cat": [""]}}', "empty"),
        ('{"names": "cat"}', "mapping"),
        ("[1, 2", "not JSON"),
    ],
)
def test_json_that_is_no_class_list(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_vocabulary(str(path))


@pytest.mark.parametrize(
    ("text", "names"),
    [("voc", 20), ("cat", 1), ("cat, grass", 2), ("coco-stuff", 171)],
)
def test_words_for_own_images(text: str, names: int) -> None:
    assert len(load_words(text)) == names


@pytest.mark.parametrize("text", ["clases.txt", "lists/voc", "list.json"])
def test_what_looks_like_a_file_must_be_one(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="no class list"):
        load_words(text)


def test_templates_go_with_a_packaged_list() -> None:
    assert [default_templates(name) for name in ("voc", "context", "coco-stuff", "cat, dog")] == [
        "single",
        "paper15",
        "paper15",
        "single",
    ]


@pytest.mark.parametrize(
    ("source", "unseen", "error", "message"),
    [
        ("nowhere", "", FileNotFoundError, "packaged lists are ade20k, .*voc"),
        ("voc", "sofa, unicorn", ValueError, "unicorn"),
        ("x" * 5000, "", FileNotFoundError, "no class list"),  # no file can have that name
    ],
)
def test_lists_that_do_not_exist(
    source: str, unseen: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_vocabulary(source, unseen)


def test_templates(tmp_path: Path) -> None:
    assert load_templates("single") == ("a photo of a {}",)
    assert len(load_templates("paper15")) == 15
    path = tmp_path / "templates.txt"
    path.write_text("a {}\nthe {}\n")
    assert load_templates(str(path)) == ("a {}", "the {}")
    path.write_text("a cat\n")
    with pytest.raises(ValueError, match="exactly once"):
        load_templates(str(path))
    with pytest.raises(
        FileNotFoundError, match="choose one of imagenet80, paper15, single, or give a text file"
    ):
        load_templates("nowhere")


def test_the_templates_of_imagenet() -> None:
    templates = load_templates("imagenet80")
    assert len(set(templates)) == len(templates) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


def test_the_help_names_every_template_set() -> None:
    source = inspect.getsource(DataConfig)
    text = source[source.index("templates: str") : source.index("text_embeddings: str")]
    assert all(f"`{name}`" in text for name in ("single", "paper15", "imagenet80"))


def test_palette_is_distinct_and_never_black_or_white() -> None:
    colors = build_palette(180)
    assert len(set(colors)) == 180
    assert build_palette(5) == colors[:5]
    assert all(20 < np.mean(color) < 235 for color in colors)


def test_a_vocabulary_counts_its_parts() -> None:
    with pytest.raises(ValueError, match="as many"):
        Vocabulary(("a", "b"), (("a",),), build_palette(2))


def test_some_of_the_classes() -> None:
    whole = parse_classes("cat = kitty, sky, sea").with_unseen(["sky"])
    part = whole.take([2, 0])
    assert part.names == ("sea", "cat") and part.synonyms == (("sea",), ("cat", "kitty"))
    assert part.colors == (whole.colors[2], whole.colors[0]) and part.unseen == ()
