"""Many pictures: what words mean which files, results that are neither lost nor made twice, broken
files, videos."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_clip.cli.main import main
from cascade_clip.inference import image_batch as batch
from cascade_clip.inference.image_batch import Source, find_sources, read_frames, segment_sources
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.results.segmentation import Segmentation, file_name


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(
        path
    )
    return path


def write_video(path: Path, frames: int) -> Path:
    """Frame number n has the grey value 20 n."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            array = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Predictor:
    return load_predictor(tiny_folder, "cpu")


def test_folders_patterns_lists_and_files(tmp_path: Path) -> None:
    for name in ("a/one.jpg", "a/b/two.png", "c/one.png"):
        write_picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    assert [source.name for source in find_sources([str(tmp_path / "a")])] == ["b/two", "one"]
    assert [source.name for source in find_sources([str(tmp_path / "*" / "one.*")])] == [
        "a_one",
        "c_one",
    ]
    lines = io.StringIO(f"{tmp_path / 'c/one.png'}\n\n{tmp_path / 'gone.png'}\n")
    # what is missing is reported when its turn comes
    assert [source.name for source in find_sources(["-"], lines)] == ["one", "gone"]
    twice = find_sources([str(tmp_path / "a"), str(tmp_path / "a/one.jpg")])
    assert [source.path.name for source in twice] == ["two.png", "one.jpg"]
    with pytest.raises(FileNotFoundError, match="no file fits"):
        find_sources([str(tmp_path / "*.gif")])
    with pytest.raises(FileNotFoundError, match="no images in the folder"):
        (tmp_path / "empty").mkdir()
        find_sources([str(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError, match="standard input is empty"):
        find_sources(["-"], io.StringIO("\n"))


def test_names_of_results_never_collide(tmp_path: Path) -> None:
    files = [
        write_picture(tmp_path / name) for name in ("x/a.png", "x/a.jpg", "y/x/a.png", "x_a.png")
    ]
    names = [source.name for source in find_sources([str(file) for file in files])]
    assert names == ["x_a", "x_a_jpg", "x_a_png", "x_a_png_2"] and len(set(names)) == 4


def test_pictures_in_brackets_are_files_not_patterns(tmp_path: Path) -> None:
    file = write_picture(tmp_path / "a[1].png")
    assert find_sources([str(file)]) == [Source(file, "a[1]")]


def test_results_equal_the_predictor_and_say_what_was_asked(
    tiny: Predictor, tmp_path: Path
) -> None:
    file = write_picture(tmp_path / "p.png")
    bound = tiny.bind("cat, grass", threshold=0.1)
    (one,) = segment_sources(
        tiny,
        bound,
        [Source(file, "sub/p")],
        tmp_path / "out",
        ("overlay", "index", "heatmaps", "labelme", "coco"),
    )
    expected = tiny.segment(file, "cat, grass", threshold=0.1)
    assert one.result is not None and np.array_equal(one.result.labels, expected.labels)
    values = json.loads((tmp_path / "out/sub/p.json").read_text())
    assert values["source"] == str(file) and values["bytes"] == file.stat().st_size
    names = {path.name for path in (tmp_path / "out/sub").iterdir()}
    heat = {
        f"p_heat_{expected.class_names.index(name):03d}_{name}.png"
        for name, share in expected.coverage.items()
        if share
    }
    assert (
        names == {"p.json", "p_overlay.png", "p_index.png", "p_labelme.json", "p_coco.json"} | heat
    )
    assert np.array_equal(Segmentation.load(tmp_path / "out/sub/p.json").labels, expected.labels)


def test_what_is_done_is_left_out_and_what_differs_is_done_again(
    tiny: Predictor, tmp_path: Path
) -> None:
    files = [write_picture(tmp_path / f"{index}.png", index) for index in range(3)]
    sources, out = find_sources([str(file) for file in files]), tmp_path / "out"
    bound = tiny.bind("cat, grass")

    def states(names: str = "cat, grass", **more: bool) -> list[bool]:
        return sorted(
            one.skipped for one in segment_sources(tiny, tiny.bind(names), sources, out, **more)
        )

    assert states() == [False, False, False]
    assert states() == [True, True, True]
    (out / "1.json").unlink()
    assert states() == [False, True, True]
    write_picture(files[0], 7, (60, 48))  # another picture of that name
    assert states() == [False, True, True]
    (out / "2.json").write_text((out / "2.json").read_text()[:40])  # half a file
    assert states() == [False, True, True]
    assert states("cat, water") == [False, False, False]
    assert states("cat, water", overwrite=True) == [False, False, False]
    assert [one.source.name for one in segment_sources(tiny, bound, sources, out)] == [
        "0",
        "1",
        "2",
    ]


def test_broken_pictures_do_not_stop_the_rest(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        write_picture(tmp_path / "in" / f"{index}.png", index)
    (tmp_path / "in" / "1.png").write_bytes(b"no picture at all")
    words = [
        "segment",
        str(tmp_path / "in"),
        "--model",
        str(tiny_folder),
        "--classes",
        "cat,grass",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--outputs", "coco"]) == 2  # nothing else is needed
    captured = capsys.readouterr()
    assert captured.err.count("cascade-clip: error:") == 1 and "1.png" in captured.err
    assert "2 images segmented" in captured.out and "1 failed" in captured.out
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [Path(image["file_name"]).name for image in coco["images"]] == ["0.png", "2.png"]
    assert [category["name"] for category in coco["categories"]] == ["cat", "grass"]
    assert sum(part["area"] for part in coco["annotations"]) == 2 * 40 * 48
    assert all(0 < part["score"] <= 1 for part in coco["annotations"])
    assert main([*words, "--outputs", "coco"]) == 2
    assert "0 images segmented, 2 done before, 1 failed" in capsys.readouterr().out
    assert main([*words, "--outputs", "index,png"]) == 2
    assert (
        "--outputs does not know png; choose from overlay, index, coco, labelme, heatmaps"
        in capsys.readouterr().err
    )


def test_one_large_picture_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each picture that comes out: those that were given to the readers by then."""
    given: list[str] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Any, source: Source) -> Any:  # type: ignore[override]
            given.append(source.name)
            return super().submit(function, source)

    monkeypatch.setattr(batch, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(batch, "is_large", lambda path: path.name.isupper())
    monkeypatch.setattr(batch, "_read", lambda source: batch.Item(source, None))
    found = [
        (item.source.name, "".join(given))
        for item in batch._read_ahead([Source(Path(name), name) for name in "abcLMdefgh"])
    ]
    every = "abcLMdefgh"
    assert found[:6] == [
        ("a", "abc"),
        ("b", "abc"),
        ("c", "abcL"),
        ("L", "abcLM"),
        ("M", "abcLMd"),
        ("d", every),
    ]
    assert [name for name, _ in found] == list(every)


def test_frames_of_a_video(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "film.mp4", 5)
    levels = [int(frame.mean().round()) for frame in read_frames(video)]
    assert np.allclose(levels, [0, 20, 40, 60, 80], atol=3)
    words = [
        "segment",
        str(video),
        "--model",
        str(tiny_folder),
        "--classes",
        "cat,grass",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--every", "2"]) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "film_frames").glob("*.json"))
    assert names == ["000000.json", "000002.json", "000004.json"]
    overlay = np.asarray(Image.open(tmp_path / "out/film_frames/000004_overlay.png"))
    assert overlay.shape[0] == 48 and overlay.shape[1] > 64
    capsys.readouterr()
    assert main([*words, "--every", "2"]) == 0
    assert "0 images segmented, 3 done before" in capsys.readouterr().out
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    assert (
        main(
            [
                "segment",
                str(tmp_path / "bad.mp4"),
                "--model",
                str(tiny_folder),
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 2
    )
    assert "cannot be read" in capsys.readouterr().err


def test_without_pyav_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pip install 'cascade-clip\[video\]'"):
        find_sources([str(tmp_path / "film.mp4")])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("../../etc/passwd", "etc-passwd"),
        ("traffic light", "traffic-light"),
        ("草", "草"),
        ("...", "class"),
        ("a" * 300, "a" * 60),
    ],
)
def test_class_names_as_file_names(name: str, expected: str) -> None:
    assert file_name(name) == expected


def test_killed_at_any_moment_nothing_is_lost_or_done_twice(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle: every JSON that is there belongs to whole files, and the next start
    does the others only."""
    for index in range(24):
        write_picture(tmp_path / "in" / f"{index:02d}.png", index)
    out = tmp_path / "out"
    words = ["segment", str(tmp_path / "in"), "--model", str(tiny_folder), "--classes", "cat,grass"]
    words += ["--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cascade_clip", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert 5 <= len(before) < 24
    for path in before:
        assert Segmentation.load(path).labels.shape == (40, 48)
        Image.open(path.with_name(f"{path.stem}_overlay.png")).load()
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{24 - len(before)} images segmented" in told
    assert f"{len(before)} done before" in told
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not touched again
    assert len(list(out.glob("*.json"))) == len(list(out.glob("*_index.png"))) == 24


def test_results_that_were_removed_are_made_again(tiny: Predictor, tmp_path: Path) -> None:
    (source,) = find_sources([str(write_picture(tmp_path / "p.png"))])
    bound, out = tiny.bind("cat, grass"), tmp_path / "out"
    assert [one.skipped for one in segment_sources(tiny, bound, [source], out)] == [False]
    (out / "p_overlay.png").unlink()
    assert [one.skipped for one in segment_sources(tiny, bound, [source], out)] == [False]
    assert (out / "p_overlay.png").is_file()


def test_results_of_another_picture_are_not_overwritten(tiny: Predictor, tmp_path: Path) -> None:
    first, second = (
        write_picture(tmp_path / "a" / "p.png", 1),
        write_picture(tmp_path / "b" / "p.png", 2, (64, 48)),
    )
    bound, out = tiny.bind("cat, grass"), tmp_path / "out"
    list(segment_sources(tiny, bound, [Source(first, "p")], out))
    before = (out / "p_index.png").read_bytes()
    (one,) = segment_sources(tiny, bound, [Source(second, "p")], out)
    assert f"holds the results of {first}; choose another --out, or --overwrite" in one.error
    assert (out / "p_index.png").read_bytes() == before
    (one,) = segment_sources(tiny, bound, [Source(second, "p")], out, overwrite=True)
    assert not one.error and (out / "p_index.png").read_bytes() != before


def test_a_file_is_no_output_folder(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_picture(tmp_path / "p.png")
    for out in (picture, picture / "below"):
        assert main(["segment", str(picture), "--model", str(tiny_folder), "--out", str(out)]) == 2
        assert "p.png is a file and no folder" in capsys.readouterr().err
    assert (
        main(
            [
                "segment",
                str(picture),
                "--model",
                str(tiny_folder),
                "--threshold",
                "50",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 2
    )
    assert "scores in 0..1, got 50" in capsys.readouterr().err
    assert (
        main(
            [
                "segment",
                str(picture),
                "--model",
                str(tiny_folder),
                "--threshold",
                "1",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    assert "p.png: unlabelled 100.0 %" in capsys.readouterr().out
