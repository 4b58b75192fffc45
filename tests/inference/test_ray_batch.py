"""Blocks of pictures for the actors of a cluster: the same files as without one, every picture
once, whatever dies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.inference.image_batch import Source, request_fingerprint, segment_sources
from cascade_clip.inference.loading import LoadOptions, load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.ray_batch import (
    BlockWorker,
    Recipe,
    Report,
    pack_block,
    require_ray,
    share_devices,
    unpack_block,
)
from cascade_clip.inference.ray_manifest import (
    FOLDER,
    Block,
    clear_folder,
    cut_blocks,
    group_files,
    is_complete,
    make_row,
    read_manifest,
    write_part,
)
from many_pictures import NAMES, read_results, write_pictures


class Death(BaseException):
    """A process that dies here: nothing after it happens, nothing catches it."""


def make_recipe(folder: Path, out: Path, **changes: Any) -> Recipe:
    predictor = load_predictor(folder, "cpu")
    bound = predictor.bind(NAMES)
    request = request_fingerprint(predictor, bound, ("index", "overlay"))
    recipe = Recipe(
        str(folder),
        LoadOptions(device="cpu"),
        predictor.settings,
        bound,
        ("index", "overlay"),
        out,
        request,
    )
    return dataclasses.replace(recipe, **changes)


def source_list(count: int) -> list[Source]:
    return [Source(Path(f"{index}.png"), f"{index}") for index in range(count)]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (3, [3]),
        (20, [8, 8, 4]),  # at least 8
        (1000, [16] * 62 + [8]),  # 1000 / 64 = 15.6
        (70_500, [1000] * 70 + [500]),  # at most 1000
    ],
)
def test_blocks(count: int, sizes: list[int]) -> None:
    sources = source_list(count)
    blocks = cut_blocks(sources, "r")
    assert [len(block.sources) for block in blocks] == sizes
    assert [source for block in blocks for source in block.sources] == sources
    assert len({block.part for block in blocks}) == len(sizes)


def test_the_name_of_a_part_depends_on_pictures_and_request_only() -> None:
    sources = source_list(3)
    (block,) = cut_blocks(sources, "r")
    assert cut_blocks(list(sources), "r") == [block]
    assert cut_blocks(sources, "s")[0].part != block.part
    assert cut_blocks([*sources[:2], sources[2]._replace(frame=0)], "r")[0].part != block.part


def test_frames_of_a_video_stay_together() -> None:
    film = [Source(Path("film.mp4"), f"film_frames/{frame:06d}", frame) for frame in range(30)]
    pictures = source_list(10)
    assert group_files([*pictures[:2], *film]) == [[pictures[0]], [pictures[1]], film]
    assert [
        len(block.sources) for block in cut_blocks([*pictures[:7], *film, *pictures[7:]], "r")
    ] == [37, 3]


@pytest.mark.parametrize("path", ["a/b c.png", "/x/ü.png", "bad\udcff.png", 'quo"te\\.png'])
def test_packing_keeps_every_path(path: str) -> None:
    block = Block(
        "part-0.parquet", (Source(Path(path), "n", None), Source(Path("f.mp4"), "f/1", 1))
    )
    row = pack_block(block)
    row["sources"].encode("utf-8")  # what Ray needs
    assert unpack_block(row) == block


@pytest.mark.parametrize(
    ("actors", "device", "cpus", "gpus", "expected"),
    [
        (0, "auto", 2, 0, (2, 0.0)),  # one per processor
        (3, "auto", 2, 0, (3, 0.0)),
        (0, "auto", 16, 4, (4, 1.0)),  # one per GPU
        (2, "auto", 16, 4, (2, 1.0)),
        (4, "cuda", 16, 2, (4, 0.5)),  # two share one
        (3, "cuda", 16, 2, (3, 0.5)),  # 2/3 each would leave room for one actor on each GPU
        (0, "cpu", 16, 4, (16, 0.0)),
        (0, "mps", 8, 0, (8, 0.0)),
    ],
)
def test_devices(
    actors: int, device: Any, cpus: int, gpus: int, expected: tuple[int, float]
) -> None:
    assert share_devices(actors, device, cpus, gpus) == expected


def test_a_cluster_without_gpus() -> None:
    with pytest.raises(ValueError, match="no GPU; choose --device cpu"):
        share_devices(0, "cuda", 4, 0)


def test_without_ray_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'cascade-clip\[ray\]'"):
        require_ray()
    assert main(["segment", "nowhere.png", "--engine", "ray"]) == 2
    assert (
        capsys.readouterr().err
        == "cascade-clip: error: --engine ray needs Ray Data: pip install 'cascade-clip[ray]'\n"
    )


@pytest.mark.parametrize("words", [["--actors", "2"], ["--engine", "ray", "--actors", "-1"]])
def test_actors_go_with_the_engine(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "nowhere.png", *words]) == 2
    assert "--actors is a positive number that goes with --engine ray" in capsys.readouterr().err


class TestWorker:
    """What an actor does, without a cluster."""

    @pytest.fixture(autouse=True)
    def _needs_arrow(self) -> None:
        pytest.importorskip("pyarrow")

    @pytest.fixture(scope="class")
    def tiny(self, tiny_folder: Path) -> Predictor:
        return load_predictor(tiny_folder, "cpu")

    def test_files_equal_those_of_the_local_engine(
        self, tiny: Predictor, tiny_folder: Path, tmp_path: Path
    ) -> None:
        sources = write_pictures(tmp_path / "in", 10)
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        list(segment_sources(tiny, tiny.bind(NAMES), sources, tmp_path / "local", recipe.outputs))
        worker = BlockWorker(recipe)
        assert [worker.work(block) for block in cut_blocks(sources, recipe.request)] == [
            Report(done=8),
            Report(done=2),
        ]
        expected = read_results(tmp_path / "local")
        assert len(expected) == 30
        assert read_results(tmp_path / "out") == expected

    def test_rows(self, tiny_folder: Path, tmp_path: Path) -> None:
        sources = write_pictures(tmp_path / "in", 3)
        (tmp_path / "in" / "001.png").write_bytes(b"no picture")
        sources.append(Source(tmp_path / "gone.png", "gone"))
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        (block,) = cut_blocks(sources, recipe.request)
        report = BlockWorker(recipe).work(block)
        assert (report.done, report.skipped, len(report.errors), report.stopped) == (2, 0, 2, "")
        rows = read_manifest(tmp_path / "out")
        assert [row["name"] for row in rows] == ["000", "001", "002", "gone"]
        index = np.array(Image.open(tmp_path / "out" / "000_index.png"))
        shares = [float((index == label).mean()) for label in (0, 1)]
        digest = hashlib.sha256((tmp_path / "in" / "000.png").read_bytes()).hexdigest()
        assert rows[0] == {
            "name": "000",
            "path": str(tmp_path / "in" / "000.png"),
            "frame": None,
            "sha256": digest,
            "classes": ["cat", "grass"],
            "coverage": shares,
            "unlabelled": 0.0,
            "output": "000.json",
            "request": recipe.request,
            "error": None,
        }
        assert (
            rows[1]["sha256"] == hashlib.sha256(b"no picture").hexdigest()
            and "001.png" in rows[1]["error"]
        )
        assert rows[1]["output"] is rows[1]["coverage"] is None
        assert rows[3]["sha256"] is None and "gone.png" in rows[3]["error"]

    def test_what_is_done_is_left_out(self, tiny_folder: Path, tmp_path: Path) -> None:
        sources = write_pictures(tmp_path / "in", 4)
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        (block,) = cut_blocks(sources, recipe.request)
        part = tmp_path / "out" / FOLDER / block.part
        assert BlockWorker(recipe).work(block) == Report(done=4)
        rows, state = read_manifest(tmp_path / "out"), part.stat().st_mtime_ns
        asleep = BlockWorker(recipe)
        assert asleep.work(block) == Report(skipped=4)
        # neither file nor model was needed
        assert part.stat().st_mtime_ns == state and "predictor" not in vars(asleep)
        part.unlink()  # killed between the last picture and the rows
        assert BlockWorker(recipe).work(block) == Report(skipped=4)
        assert read_manifest(tmp_path / "out") == rows
        (tmp_path / "out" / "002.json").unlink()
        assert BlockWorker(recipe).work(block) == Report(done=1, skipped=3)
        assert BlockWorker(dataclasses.replace(recipe, overwrite=True)).work(block) == Report(
            done=4
        )
        assert read_manifest(tmp_path / "out") == rows
        # another call took one away
        write_part(
            part, [make_row(source, tmp_path / "out", recipe.request) for source in sources[:3]]
        )
        assert not is_complete(part.parent, block)
        assert BlockWorker(recipe).work(block) == Report(skipped=4)
        assert read_manifest(tmp_path / "out") == rows

    def test_a_picture_that_kills_is_found_and_left_out(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sources = write_pictures(tmp_path / "in", 5)
        deadly = np.array(Image.open(sources[2].path))
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        (block,) = cut_blocks(sources, recipe.request)
        real, seen = Predictor.segment_pixels, []

        def segment_pixels(self: Predictor, pixels: Any, bound: Any) -> Any:
            seen.append(pixels)
            if np.array_equal(pixels.permute(1, 2, 0).numpy(), deadly):
                raise Death
            return real(self, pixels, bound)

        monkeypatch.setattr(Predictor, "segment_pixels", segment_pixels)
        for _ in range(3):  # with the block, then twice alone
            with pytest.raises(Death):
                BlockWorker(recipe).work(block)
            assert not (tmp_path / "out" / FOLDER / block.part).exists()
        report = BlockWorker(recipe).work(block)
        assert (report.done, report.skipped) == (4, 0)
        assert len(report.errors) == 1 and "002.png: 2 processes died" in report.errors[0]
        assert len(seen) == 2 + 3 + 2  # each of the others once
        assert [row["error"] is None for row in read_manifest(tmp_path / "out")] == [
            True,
            True,
            False,
            True,
            True,
        ]
        # the note is gone
        assert {path.name for path in (tmp_path / "out" / FOLDER).iterdir()} == {block.part}

    def test_pictures_that_were_there_when_others_killed_are_not_blamed(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        sources = write_pictures(tmp_path / "in", 3)
        recipe = make_recipe(tiny_folder, tmp_path / "out", overwrite=True)
        (block,) = cut_blocks(sources, recipe.request)
        note = tmp_path / "out" / FOLDER / f".{block.part}.begun"
        note.parent.mkdir(parents=True)
        word = f'"{sources[0].path}"'
        # one death only
        note.write_text("0\n" + f"begin {word}\nend {word}\n" * 5 + f"begin {word}\n")
        assert BlockWorker(recipe).work(block) == Report(done=3)

    def test_a_defect_at_one_picture_is_counted_and_the_others_are_done(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sources = write_pictures(tmp_path / "in", 3)
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        (block,) = cut_blocks(sources, recipe.request)
        real, calls = Predictor.segment_pixels, iter((False, True, False))

        def segment_pixels(self: Predictor, pixels: Any, target: Any) -> Any:
            return [][0] if next(calls) else real(self, pixels, target)

        monkeypatch.setattr(Predictor, "segment_pixels", segment_pixels)
        monkeypatch.chdir(tmp_path)
        report = BlockWorker(recipe).work(block)
        assert (report.done, report.defects, len(report.errors)) == (2, 1, 1)
        (written,) = tmp_path.glob("cascade-clip-defect-*.txt")
        assert str(written) in report.errors[0] and "IndexError" in written.read_text()

    def test_a_defect_that_stops_everything_is_one(
        self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(LoadOptions, "load", lambda *_: [][0])
        recipe = make_recipe(tiny_folder, tmp_path / "out")
        (block,) = cut_blocks(write_pictures(tmp_path / "in", 1), recipe.request)
        report = json.loads(BlockWorker(recipe)(pack_block(block))["report"])
        assert report[3].startswith("defect in cascade-clip, IndexError") and report[4] == 1

    def test_what_stops_everything_is_a_report(self, tiny_folder: Path, tmp_path: Path) -> None:
        sources = write_pictures(tmp_path / "in", 2)
        recipe = make_recipe(tiny_folder, tmp_path / "out")

        def stopped(**changes: Any) -> str:
            (block,) = cut_blocks(sources, recipe.request)
            return str(
                BlockWorker(dataclasses.replace(recipe, **changes))(pack_block(block))["report"]
            )

        assert "no checkpoint at nowhere" in stopped(model="nowhere")
        assert "differs from the one where the command runs" in stopped(request="0" * 16)
        (tmp_path / "file").write_text("in the way")
        assert "file" in stopped(out=tmp_path / "file")
        assert stopped() == '[2, 0, [], "", 0]'


class TestFolder:
    """A manifest whose parts were cut otherwise."""

    @pytest.fixture(autouse=True)
    def _needs_arrow(self) -> None:
        pytest.importorskip("pyarrow")

    def write(self, out: Path, names: list[str], request: str = "r") -> Block:
        sources = tuple(Source(out / f"{name}.png", name) for name in names)
        (block,) = cut_blocks(sources, request)
        write_part(
            out / FOLDER / block.part,
            [make_row(source, out, request, error="no such file") for source in sources],
        )
        return block

    def names(self, out: Path) -> list[str]:
        return [str(row["name"]) for row in read_manifest(out)]

    def test_rows_of_other_pictures_stay(self, tmp_path: Path) -> None:
        self.write(tmp_path, ["a", "b", "c"])
        self.write(tmp_path, ["d", "e"])
        again = self.write(tmp_path, ["f"])
        (tmp_path / FOLDER / ".part-1.parquet.begun").write_text("")
        planned = [
            again,
            *cut_blocks([Source(Path("x"), name) for name in ("b", "d", "e", "new")], "r"),
        ]
        clear_folder(tmp_path / FOLDER, planned)
        # b goes, the part of d and e too, the planned part stays
        assert self.names(tmp_path) == ["a", "c", "f"]
        assert len(list((tmp_path / FOLDER).iterdir())) == 2

    def test_another_request_takes_the_old_rows_away(self, tmp_path: Path) -> None:
        block = self.write(tmp_path, ["a", "b"])
        clear_folder(tmp_path / FOLDER, cut_blocks(block.sources, "other"))
        assert list((tmp_path / FOLDER).iterdir()) == []
        with pytest.raises(FileNotFoundError, match="no manifest in"):
            read_manifest(tmp_path)

    def test_a_folder_that_is_not_there_yet(self, tmp_path: Path) -> None:
        clear_folder(tmp_path / FOLDER, [])
