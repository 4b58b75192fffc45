"""Exported models compute what the predictor computes, with and without torch around them."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cascade_clip.checkpoints.checkpoint import save_checkpoint
from cascade_clip.cli.main import main
from cascade_clip.export import runner as export_runner
from cascade_clip.files.image_tensors import load_image
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.ops.resize import resize_image
from paths import ROOT
from tiny_models import TINY_CLIP, TINY_MODEL, build_tiny

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from cascade_clip.export.compare import compare_logits, exported_predictor  # noqa: E402
from cascade_clip.export.onnx import export_onnx, export_text, export_torch  # noqa: E402

WORDS = "cat, dog = puppy, grass, sky"


def short_model(blocks: int, **changes: Any) -> dict[str, Any]:
    """Settings of a tiny model whose tower has few blocks, each a stage, since exporting takes long
    per block."""
    vision = {**TINY_CLIP["vision_cfg"], "layers": blocks}  # type: ignore[dict-item]
    clip = {
        "name": "tiny",
        "weights": "random",
        "architecture": {**TINY_CLIP, "vision_cfg": vision},
    }
    decoder = {"layers": 2, "heads": 4, "feedforward": 64, "dropout": 0.0}
    stages = [[block] for block in range(1, blocks + 1)]
    return {**TINY_MODEL, "clip": clip, "stages": stages, "decoder": decoder, **changes}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny", build_tiny(short_model(2), WORDS, "grass, sky")
    )


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return load_predictor(model_folder, device="cpu")


@pytest.fixture(scope="module")
def small() -> Predictor:
    return Predictor(build_tiny(short_model(1)), device="cpu")


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with text embeddings as an input, in 32 bits, written by the command."""
    file = tmp_path_factory.mktemp("export") / "new" / "tiny.onnx"
    assert (
        main(["export", "onnx", str(model_folder), "--out", str(file), "--calibration", "0.1"]) == 0
    )
    names = ["tiny.json", "tiny.npy", "tiny.onnx", "tiny_run.py"]
    assert sorted(path.name for path in file.parent.iterdir()) == names  # nothing left over
    return file


def embeddings(classes: int, width: int = 32) -> torch.Tensor:
    return F.normalize(
        torch.randn(classes, width, generator=torch.Generator().manual_seed(classes)), dim=-1
    )


def picture(height: int, width: int) -> np.ndarray:
    smooth = np.random.default_rng(height).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("batch", "rows", "columns", "classes"),
    [(1, 4, 4, 1), (3, 9, 2, 11), (2, 3, 13, 5), (1, 1, 1, 2)],
)
def test_onnx_logits_equal_pytorch(
    predictor: Predictor, exported: Path, batch: int, rows: int, columns: int, classes: int
) -> None:
    """Any batch, any grid (square, tall, wide, one patch), any number of names; pixels are raw."""
    pixels = (
        torch.rand(batch, 3, 16 * rows, 16 * columns, generator=torch.Generator().manual_seed(rows))
        * 255
    ).float()
    config = predictor.checkpoint.config.model
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.inference_mode():
        expected = predictor.model((pixels / 255 - mean) / std, embeddings(classes))
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels.numpy(), "text": embeddings(classes).numpy()})
    assert logits.shape == (batch, classes, rows, columns)
    assert np.abs(logits - expected.numpy()).max() < 1e-5
    assert np.abs(expected.numpy()).max() > 0.01  # there is something to compare


def test_the_check_notices_another_network(predictor: Predictor, exported: Path) -> None:
    """Other position embeddings move logits far beyond the tolerance."""
    assert (
        max(
            one.largest
            for one in compare_logits(
                predictor, exported_predictor(exported, predictor), embeddings(6)
            )
        )
        < 1e-5
    )
    other = Predictor(build_tiny(short_model(2)), device="cpu")
    with torch.no_grad():
        other.model.backbone.tower.position_embedding.positions.mul_(0.5)  # type: ignore[union-attr]
    assert (
        min(
            one.largest
            for one in compare_logits(other, exported_predictor(exported, other), embeddings(6))
        )
        > 1e-3
    )


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"resize": True}, (75, 110)),  # short side to the window, then several windows
        ({"resize": False}, (131, 90)),
        ({"resize": False}, (40, 37)),  # smaller than the window: windows stick out
        ({"resize": True, "score_size": 48}, (64, 100)),
        # the patch does not divide the window
        ({"resize": False, "window": 58, "stride": 30}, (90, 64)),
        ({"resize": True, "flip": True, "scales": (1.0, 1.5)}, (70, 64)),
    ],
)
def test_the_runner_labels_as_the_predictor(
    predictor: Predictor,
    exported: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    size: tuple[int, int],
) -> None:
    own = predictor.with_settings(**changes)
    facts = json.loads(exported.with_suffix(".json").read_text())
    facts["inference"] = {
        **facts["inference"],
        **{key: getattr(own.settings, key) for key in facts["inference"]},
    }
    for file in (exported, exported.with_suffix(".npy")):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tiny.json").write_text(json.dumps(facts))
    image = picture(*size)
    expected = own.segment(image, WORDS, 0.1).labels
    assert len(np.unique(expected)) > 1
    # ties within float rounding
    assert (export_runner.Runner(tmp_path / "tiny.json").label(image) != expected).mean() < 1e-3


def test_the_runner_keeps_background_words_and_threshold(
    predictor: Predictor, exported: Path, tmp_path: Path
) -> None:
    image = picture(64, 96)
    free = predictor.segment(image, "cat, dog")
    assert free.scores is not None
    threshold = float(np.median(free.scores))
    bound = predictor.bind("cat, dog", 0.1, background="wall, floor", threshold=threshold)
    file = tmp_path / "words.json"
    assert [path.name for path in export_text(predictor, file, bound)] == [
        "words.json",
        "words.npy",
    ]
    runner = export_runner.Runner(exported.with_suffix(".json"), file)
    assert runner.names == ["cat", "dog", "background"]
    expected = predictor.segment(
        image, "cat, dog", 0.1, background="wall, floor", threshold=threshold
    ).labels
    assert -1 in expected or 2 in expected
    assert (runner.label(image) != expected).mean() < 1e-3


@pytest.mark.parametrize("shape", [(60, 87), (128, 186), (97, 200), (97, 141), (300, 20)])
def test_bytes_are_resized_as_torch_does(shape: tuple[int, int]) -> None:
    values = torch.randint(
        0, 256, (3, 97, 141), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    difference = (
        export_runner.resize_bytes(values.numpy(), shape).astype(int)
        - resize_image(values, shape).numpy()
    )
    assert np.abs(difference).max() <= 1  # torch without vector instructions rounds once
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert not difference.any()


def test_floats_are_resized_as_torch_does() -> None:
    values = torch.rand(2, 5, 9)
    expected = F.interpolate(values[None], size=(17, 4), mode="bilinear", align_corners=False)[0]
    assert np.allclose(export_runner.resize(values.numpy(), (17, 4)), expected.numpy(), atol=1e-6)


def test_sigmoid_holds_for_large_values() -> None:
    assert export_runner.sigmoid(np.array([-1000, 0, 1000], np.float32)).tolist() == [0, 0.5, 1]


def test_the_runner_stands_alone(predictor: Predictor, exported: Path, tmp_path: Path) -> None:
    """The copied file, in a Python that refuses torch and this package, writes what the predictor
    finds."""
    picture_file = tmp_path / "photo.png"
    Image.fromarray(picture(75, 64)).save(picture_file)
    block = (
        "import sys\nfor name in ('torch', 'torchvision', 'cascade_clip', 'open_clip'):"
        " sys.modules[name] = None\n"
    )
    script = tmp_path / "start.py"
    script.write_text(
        f"{block}import runpy\nsys.argv = ['run', {str(picture_file)!r}, '--out',"
        f" {str(tmp_path / 'out')!r}]\nrunpy.run_path({str(exported.with_name('tiny_run.py'))!r},"
        " run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    labels = np.array(Image.open(tmp_path / "out" / "photo_index.png"))
    expected = predictor.segment(picture_file, WORDS, 0.1)
    assert (labels != expected.labels).mean() < 1e-3
    entries = json.loads((tmp_path / "out" / "photo.json").read_text())["classes"]
    assert [entry["name"] for entry in entries] == ["cat", "dog", "grass", "sky"]
    assert entries[1]["coverage"] == pytest.approx(expected.coverage["dog"], abs=1e-3)
    assert Image.open(tmp_path / "out" / "photo_overlay.png").size == (64, 75)
    assert "photo.png: " in done.stdout


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16", "CMYK"])
def test_pictures_are_read_as_the_predictor_reads_them(tmp_path: Path, mode: str) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (9, 11)).astype(np.uint16)
    made = (
        Image.fromarray(array) if mode == "I;16" else Image.fromarray(picture(9, 11)).convert(mode)
    )
    file = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    made.save(file)
    assert (export_runner.load_picture(file) == load_image(file).permute(1, 2, 0).numpy()).all()


def test_the_sidecar_says_what_is_needed(exported: Path) -> None:
    facts = json.loads(exported.with_suffix(".json").read_text())
    assert facts["words"]["names"] == ["cat", "dog", "grass", "sky"]
    # grass is unseen, sky unknown to the training
    assert facts["words"]["seen"] == [True, True, False, False]
    assert facts["words"]["calibration"] == 0.1
    assert (facts["patch"], facts["width"], facts["text"], facts["onnx"]["int8"]) == (
        16,
        32,
        "input",
        False,
    )
    assert facts["inference"]["window"] == 64
    assert facts["licence"] and facts["versions"]["torch"]
    assert np.load(exported.with_suffix(".npy")).shape == (4, 32)


def test_a_changed_file_is_refused(exported: Path, tmp_path: Path) -> None:
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tiny.npy").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"tiny\.npy is not the file that was exported"):
        export_runner.Runner(tmp_path / "tiny.json")


def test_names_baked_in_and_int8(small: Predictor, exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "baked.onnx"
    written = export_onnx(small, file, small.bind("dog, sky"), bake=True, int8=True)
    assert [path.name for path in written] == ["baked.onnx", "baked.json", "baked_run.py"]
    graph = onnx.load(file).graph
    fixed = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    kinds = [
        node.op_type for node in graph.node if node.op_type != "MatMul" or set(node.input) & fixed
    ]
    # a weight that is known is in 8 bits, also where it is a part of another
    assert "MatMulInteger" in kinds and "MatMul" not in kinds
    assert "Conv" in kinds and "ConvInteger" not in kinds  # older onnxruntimes have none
    assert_no_overflow(graph)
    image = picture(64, 80)
    runner = export_runner.Runner(tmp_path / "baked.json")
    assert runner.text is None
    # 8 bits: nearly the same
    assert (runner.label(image) == small.segment(image, "dog, sky").labels).mean() > 0.9
    with pytest.raises(ValueError, match="baked in"):
        export_runner.Runner(tmp_path / "baked.json", exported.with_suffix(".json"))
    with pytest.raises(ValueError, match="without --classes"):
        exported_predictor(file, small)


def assert_no_overflow(graph: Any) -> None:
    """CPUs without VNNI add two products (input 0..255 times weight) in signed 16 bits, which must
    hold the largest sum."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [weights[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert products and all(weight.dtype == np.int8 for weight in products)
    for weight in products:
        rows = np.abs(weight.astype(np.int64))  # (inputs, outputs)
        assert 255 * (rows[:-1] + rows[1:]).max() <= np.iinfo(np.int16).max


def test_a_full_disk_is_named(
    predictor: Predictor, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Written:
        """The graph that was written already, since exporting it again takes long."""

        def save(self, file: str, **_: object) -> None:
            shutil.copyfile(exported, file)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Protobuf serialization failed.")

    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: Written())
    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    with pytest.raises(
        OSError, match=r"in 8 bits \(Protobuf serialization failed\.\); is the disk full"
    ):
        export_onnx(predictor, tmp_path / "a.onnx", predictor.bind("dog, sky"), int8=True)
    assert not list(tmp_path.iterdir())


def test_torch_export_has_free_sizes(small: Predictor, tmp_path: Path) -> None:
    program = torch.export.load(export_torch(small, tmp_path / "tiny.pt2")).module()
    config = small.checkpoint.config.model
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    for batch, rows, columns, classes in ((1, 4, 4, 1), (3, 9, 2, 11)):
        pixels = torch.rand(batch, 3, 16 * rows, 16 * columns) * 255
        with torch.inference_mode():
            expected = small.model((pixels / 255 - mean) / std, embeddings(classes))
            assert (program(pixels, embeddings(classes)) - expected).abs().max() < 1e-5


def test_commands(
    model_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """export check passes the right model and fails another; export text gives the runner other
    words; a wrong ending is bad input."""
    assert main(["export", "check", str(model_folder), str(exported)]) == 0
    assert "64 x 64" in capsys.readouterr().out.replace("\n", "")
    changed = build_tiny(short_model(2), WORDS, "grass, sky")
    with torch.no_grad():
        changed.model.queries[0].weight.mul_(2)
    other = save_checkpoint(tmp_path / "other", changed)
    assert main(["export", "check", str(other), str(exported)]) == 1
    assert (
        main(
            [
                "export",
                "check",
                str(model_folder),
                str(exported),
                "--picture",
                str(tmp_path / "a.png"),
            ]
        )
        == 2
    )
    words = [
        "export",
        "text",
        str(model_folder),
        "--classes",
        "boat, car",
        "--out",
        str(tmp_path / "b.json"),
    ]
    assert main([*words, "--threshold", "none"]) == 0
    assert main(words) == 0
    image = picture(64, 64)
    expected = load_predictor(model_folder, "cpu").segment(image, "boat, car").labels
    assert (
        export_runner.Runner(exported.with_suffix(".json"), tmp_path / "b.json").label(image)
        != expected
    ).mean() < 1e-3
    assert main(["export", "onnx", str(model_folder), "--out", str(tmp_path / "a.bin")]) == 2
    assert "--out must end in .onnx" in capsys.readouterr().err


def test_a_graph_that_cannot_be_traced_leaves_nothing(
    small: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade_clip.export.onnx.trace", lambda model: 1 / 0)
    with pytest.raises(ValueError, match="cannot be written as ONNX"):
        export_onnx(small, tmp_path / "a.onnx", small.bind("dog, sky"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert main(["export", "onnx", "mini", "--out", str(tmp_path / "a.onnx")]) == 2
    assert (
        f"exporting to ONNX needs {package}: pip install 'cascade-clip[export]'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("module", ["export/onnx.py", "export/compare.py", "cli/export.py"])
def test_extras_are_imported_where_they_are_used(module: str) -> None:
    """Else the error above could not be given."""
    tree = ast.parse((Path(export_runner.__file__).parents[1] / module).read_text())
    names = [
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    ]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [
        name for name in names if name.partition(".")[0] in ("onnx", "onnxruntime", "onnxscript")
    ]
    assert "export.runner" not in " ".join(names)


@pytest.mark.slow
def test_training_free_models_export(tmp_path: Path) -> None:
    """CLIP alone: the softmax over names is in the graph, so names compete whatever their
    number."""
    settings = short_model(
        1,
        prompts={"kind": "none"},
        queries="text",
        last_block="clearclip",
        decoder={"kind": "similarity"},
    )
    free = Predictor(build_tiny(settings), device="cpu")
    other = exported_predictor(
        export_onnx(free, tmp_path / "clip.onnx", free.bind("sky, sand"))[0], free
    )
    assert max(one.largest for one in compare_logits(free, other, embeddings(5))) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"kind": "spectral", "layers": 2, "heads": 4, "feedforward": 64}},
        {"prompts": {"kind": "deep", "tokens": 3, "spectral": True, "spectral_blocks": [1]}},
    ],
    ids=["decoder", "prompts"],
)
def test_spectral_models_export_or_say_why(changes: dict[str, Any], tmp_path: Path) -> None:
    own = Predictor(build_tiny(short_model(1, **changes)), device="cpu")
    try:
        file = export_onnx(own, tmp_path / "own.onnx", own.bind("sky, sand"))[0]
    except ValueError as error:
        assert "cannot be written as ONNX" in str(error)
        assert list(tmp_path.iterdir()) == []
    else:
        assert (
            max(
                one.largest
                for one in compare_logits(own, exported_predictor(file, own), embeddings(5))
            )
            < 1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mini", "clip:mini"])
def test_packaged_models_export(source: str, tmp_path: Path) -> None:
    own = load_predictor(source, "cpu")
    other = exported_predictor(
        export_onnx(own, tmp_path / "own.onnx", own.bind("sky, sand"))[0], own
    )
    assert (
        max(one.largest for one in compare_logits(own, other, embeddings(5, own.model.joint_width)))
        < 1e-4
    )


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and the Python of docs/export.md, in an empty folder with a picture; two scenes
    instead of 300."""
    text = (ROOT / "docs" / "export.md").read_text()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(90, 120)).save("photo.jpg")
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.startswith(("    cascade-clip ", "    python "))
    ]
    assert len(lines) == 8
    for line in lines:
        words = shlex.split(line.replace("--limit 300", "--limit 2"))
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
        else:
            assert main(words[1:]) == 0, line
    assert (tmp_path / "docs" / "export.png").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/export.md", "exec"), found)
    assert found["logits"].shape == (2, 5, 8, 12)
