"""The textbook variant against the program, the fast kernels against the plain ones, and the
benchmark command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import normalize

from cascade_clip.cli.main import main
from cascade_clip.config import Config, InferenceConfig
from cascade_clip.errors import StorageError
from cascade_clip.losses.mask_losses import Places, mask_loss, upsample
from cascade_clip.models.builder import build_segmenter
from cascade_clip.models.segmenter import Segmenter
from cascade_clip.ops.running_argmax import first_best
from cascade_clip.research.benchmark import reference as textbook
from cascade_clip.research.benchmark.cases import (
    TUNED,
    Variant,
    list_cases,
    list_scaling,
    measure_variants,
    run_process,
)
from cascade_clip.research.benchmark.gpu import GpuPlan, labels_of, measure_gpu
from cascade_clip.research.benchmark.machine import Measurement
from cascade_clip.research.benchmark.work import (
    Work,
    blocky_labels,
    build_predictor,
    count_flops,
    model_config,
    peak_memory,
    prepare,
    time_work,
)


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(model_config("tiny")).eval()


def text(classes: int = 9) -> Tensor:
    return normalize(torch.randn(classes, 32, generator=torch.Generator().manual_seed(1)), dim=-1)


# --- the yardstick computes the same thing


def test_textbook_masks_are_ours(model: Segmenter) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = upsample(model(images, text()), 16, (64, 64))
        plain = textbook.Textbook(model).eval()(images, text())
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-5)


def test_textbook_labels_are_ours(model: Segmenter) -> None:
    """Several windows, one held-back class fewer than there are, and the calibration decides
    somewhere."""
    image, shift = torch.randn(3, 100, 150), torch.full((9,), 0.1)
    shift[-1] = 0.0
    predictor = build_predictor(model, text(), InferenceConfig(window=64, stride=48))
    target = predictor.bind(text=text(), calibration=0.1)
    found = predictor.label_map_of_input(image, target).labels
    plain = textbook.Textbook(model).eval()
    assert (
        float((found == textbook.label_map(plain, image, text(), shift, 64, 48)).float().mean())
        > 0.999
    )
    assert not torch.equal(found, textbook.label_map(plain, image, text(), shift * 0, 64, 48))


def test_textbook_loss_and_gradients_are_ours(model: Segmenter) -> None:
    """Also the tokens' gradients, although ours never computes what becomes of them."""
    images, labels = torch.randn(2, 3, 64, 64), blocky_labels(2, 9, 64, 64, cell=16)
    config = Config().train.loss
    names, trained = zip(
        *((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True
    )
    ours = mask_loss(model(images, text()), labels, 16, config).total
    plain = textbook.loss(textbook.Textbook(model).eval()(images, text()), labels, config)
    assert float(plain) == pytest.approx(float(ours), rel=1e-5)
    # the textbook holds a copy of those
    kept = [index for index, name in enumerate(names) if "mask_attention" not in name]
    wanted = torch.autograd.grad(plain, [trained[index] for index in kept])
    for index, expected, found in zip(
        kept, wanted, torch.autograd.grad(ours, [trained[index] for index in kept]), strict=True
    ):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-5, names[
            index
        ]


# --- the fast kernels


def test_first_best_is_the_first_of_the_largest() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 0.0], [2.0, 5.0, 3.0, 0.0], [2.0, 4.0, 9.0, 0.0]])[
        ..., None
    ]
    best, index = first_best(scores)
    assert best[:, 0].tolist() == [2, 5, 9, 0]
    assert index[:, 0].tolist() == [1, 0, 2, 0]
    assert not index.is_floating_point()
    assert [part.tolist() for part in first_best(scores[:1])] == [scores[0].tolist(), [[0]] * 4]
    best, _ = first_best(scores[:1])
    best.add_(1)
    assert not torch.equal(best, scores[0])  # a running best may write into it
    many = torch.randint(0, 9, (300, 4, 5)).float()  # more than an 8-bit number can count
    assert torch.equal(first_best(many)[1], first_best(many[:, None])[1][0])
    assert torch.equal(many.gather(0, first_best(many)[1][None])[0], many.amax(dim=0))
    assert int(first_best(torch.full((3, 1, 1), math.nan))[1]) in range(3)


@pytest.mark.parametrize("pixels", [64, 50])
def test_upsampling_as_a_matrix(pixels: int) -> None:
    values = torch.randn(1, 1, 4, 1)
    wanted = F.interpolate(values, size=(64, 1), mode="bilinear", align_corners=False)[
        0, 0, :pixels
    ]
    torch.testing.assert_close(
        Places.find(4, 16, pixels, values.device).matrix() @ values[0, 0], wanted
    )


def test_loss_in_the_tails() -> None:
    """Confident logits of either sign: value against float64, to float32 rounding."""
    for level in (-30.0, -9.0, 9.0, 30.0, 200.0):
        logits = torch.full((1, 2, 2, 2), level)
        labels = torch.full((1, 8, 8), 1)
        config = Config().train.loss
        masks = logits.double()
        score = masks.sigmoid()
        negative = 0.75 * score[0, 0, 0, 0] ** 2 * F.softplus(masks[0, 0, 0, 0], threshold=1000)
        positive = (
            0.25
            * (-masks[0, 0, 0, 0]).sigmoid() ** 2
            * F.softplus(-masks[0, 0, 0, 0], threshold=1000)
        )
        assert float(mask_loss(logits, labels, 4, config).focal) == pytest.approx(
            float(100 * (negative + positive)), rel=1e-5
        )


def test_cast_weights_follow_the_weights(model: Segmenter) -> None:
    """Frozen weights are cast once for bf16; when they change, the next call sees it."""
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        first, again = model(images, text()), model(images, text())
        for parameter in model.backbone.tower.parameters():
            parameter.mul_(1.5)
        changed = model(images, text())
        fresh = build_segmenter(model_config("tiny")).eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(changed, fresh(images, text()))
    assert torch.equal(first, again)
    assert not torch.equal(first, changed)


# --- what is measured


def test_operations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours leaves out what reaches no output; a training step costs more than twice a forward pass;
    images and windows multiply."""
    one = count_flops(Work("inference", classes=20, height=64, width=64, size="tiny"))
    assert one < count_flops(
        Work("inference", "textbook", classes=20, height=64, width=64, size="tiny")
    )
    assert count_flops(Work("inference", classes=20, height=64, width=100, size="tiny")) == 2 * one
    step = count_flops(Work("train", classes=20, height=64, width=64, batch=3, size="tiny"))
    assert 2 * one < step / 3 < 4 * one
    monkeypatch.setattr(
        "cascade_clip.models.backbone.checkpoint", lambda function, *given, **_: function(*given)
    )
    # nothing counts twice
    assert count_flops(Work("train", classes=20, height=64, width=64, batch=3, size="tiny")) == step


@pytest.mark.parametrize("variant", ["ours", "textbook"])
@pytest.mark.parametrize("kind", ["inference", "train"])
def test_work_is_done(kind: str, variant: str) -> None:
    work = Work(
        kind,
        variant,
        classes=4,
        height=64,
        width=80 if kind == "inference" else 64,
        batch=2,
        size="tiny",
    )  # type: ignore[arg-type]
    found = time_work(work)
    assert found["seconds"] > 0 and found["processor"] > 0
    assert found["memory"] == pytest.approx(peak_memory(), rel=0.2)
    result = prepare(work)()
    assert result is None if kind == "train" else result.shape == (64, 80)


def test_rows_take_turns_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def fake(argument: str, environment: dict[str, str]) -> dict[str, float]:
        work = json.loads(argument)
        asked.append((work["variant"] == "ours", environment == TUNED))
        return {"seconds": float(len(asked)), "processor": 2.0, "memory": 100.0}

    monkeypatch.setattr("cascade_clip.research.benchmark.cases.run_process", fake)
    rows = list_cases("sliding", "tiny")
    measure_variants(rows, 3, lambda text: None, flops=False)
    rows[0].flops = 10**9
    assert asked == [(False, False), (True, False), (False, True), (True, False)] * 3
    assert [row.median("seconds") for row in rows] == [5, 6, 7, 8]  # the second of three turns
    assert rows[0].share(peak=1.0) == pytest.approx(0.5)  # 2 s for what the peak does in 1


@pytest.mark.slow
def test_a_failing_process_is_reported() -> None:
    with pytest.raises(StorageError, match=r"benchmark process for .* failed: .*depth"):
        run_process(
            '{"kind": "inference", "depth": 3}',
            {"PYTHONWARNINGS": "error::RuntimeWarning"},  # runpy warns of a module imported before
        )


def test_cases() -> None:
    assert [row.work.classes for row in list_cases("classes")] == [20, 1000]
    assert {(row.work.classes, row.work.batch) for row in list_cases("train")} == {
        (156, 2),
        (15, 2),
    }
    assert {(row.work.height, row.work.width) for row in list_cases("sliding")} == {(1024, 1365)}
    assert [
        row.work.precision for row in list_cases("inference") if row.work.variant == "textbook"
    ] == ["fp32"] * 4


def test_gpu_plan_runs_on_a_cpu_in_small() -> None:
    plan = GpuPlan(
        "cpu",
        "tiny",
        (2,),
        (5,),
        train_batch=2,
        train_classes=4,
        sliding=(64, 100),
        compiled=False,
        seconds=0.0,
    )
    found = measure_gpu(plan, lambda text: None)
    assert [row.unit for row in found] == [
        "TFLOP/s",
        "images/s",
        "images/s",
        "images/s",
        "images/s",
        "steps/s",
        "steps/s",
    ]
    assert all(isinstance(row, Measurement) and row.value > 0 for row in found)


def test_gpu_labels_are_those_of_all_classes_at_once() -> None:
    logits = torch.randn(2, 70, 4, 4)
    wanted = (
        F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
        .sigmoid()
        .argmax(dim=1)
    )
    assert float((labels_of(logits, 64) == wanted).float().mean()) > 0.999


# --- the commands


def test_benchmark_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"seconds": 1.0, "processor": 1.0, "memory": 100.0, "fp32": 50.0, "bf16": 100.0}
    monkeypatch.setattr(
        "cascade_clip.research.benchmark.cases.run_process",
        lambda argument, environment: dict(found),
    )
    monkeypatch.setattr(
        "cascade_clip.research.benchmark.cases.count_flops", lambda work: 25 * 10**9
    )
    monkeypatch.setattr("cascade_clip.cli.benchmark.console", Console(width=200))
    words = [
        "benchmark",
        "inference",
        "--rounds",
        "1",
        "--size",
        "tiny",
        "--out",
        str(tmp_path / "benchmark.json"),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "textbook, tuned allocator" in printed and "1.00 / 1.00" in printed and "50%" in printed
    values = json.loads((tmp_path / "benchmark.json").read_text())
    assert {row["variant"] for row in values["inference"]["rows"]} == {
        "ours fp32",
        "ours bf16",
        "textbook",
        "textbook, tuned allocator",
    }
    assert values["machine"]["torch"] == torch.__version__


def test_scaling_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cascade_clip.research.benchmark.cases.run_process",
        lambda argument, environment: {"seconds": 1.0, "processor": 2.0, "memory": 9.0},
    )
    picture = tmp_path / "deep" / "scaling.png"
    assert (
        main(
            [
                "benchmark",
                "scaling",
                "--rounds",
                "1",
                "--picture",
                str(picture),
                "--out",
                str(tmp_path / "b.json"),
            ]
        )
        == 0
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [row.name for row in list_scaling("tiny")] == ["classes"] * 3 + ["pixels"] * 3
    assert Variant("x", Work("train")).variant == "ours fp32"


def test_profile_command(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--train"]):
        assert main(["profile", "--size", "tiny", "--classes", "5", "--rows", "3", *more]) == 0
        printed = capsys.readouterr().out
        assert "aten::" in printed and "all operators" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark", "data", "--seconds", "0"], "--seconds must be positive, got 0"),
        (["benchmark", "train", "--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["benchmark", "data", "--workers", "-1"], "--workers must be 0 or more"),
        (["benchmark", "speed"], "speed"),
    ],
)
def test_bad_flags(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_gpu_needs_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["benchmark", "gpu", "--out", str(tmp_path / "b.json")]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
