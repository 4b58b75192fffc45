"""Our outputs equal the released programs' arrays, through import, load and the public calls.

`python tests/models/test_parity.py` prints the table of arrays and largest differences that the
docs show.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade_clip.checkpoints.released import convert_released
from cascade_clip.config import Config, OptimizerConfig
from cascade_clip.encoders.positions import resize_positions
from cascade_clip.inference.loading import load_predictor
from cascade_clip.inference.predictor import Predictor
from cascade_clip.inference.windows import list_windows
from cascade_clip.losses.mask_losses import mask_loss, present_pairs, upsample
from cascade_clip.models.segmenter import relation_descriptor
from cascade_clip.training.task import SegmentationTask, learning_rate
from tiny_models import TINY_SETTINGS, import_reference, read_reference, tensor

FEATURES, SCORES = 3e-5, 3e-6
ROWS: list[tuple[str, float, float]] = []
"""Array, largest difference, tolerance: filled by `same`."""


def same(
    name: str, ours: Tensor, reference: np.ndarray, tolerance: float, *, relative: bool = False
) -> None:
    """Compare with the reference array of that name; `relative` divides by the array's norm (or
    value)."""
    wanted = torch.from_numpy(np.asarray(reference))
    assert ours.shape == wanted.shape, (
        f"{name}: shape {tuple(ours.shape)}, reference {tuple(wanted.shape)}"
    )
    gap = (ours.detach().double() - wanted.double()).abs()
    largest = float(gap.max())
    if relative:
        largest = float(
            (ours.detach().double() - wanted.double()).norm()
            / wanted.double().norm().clamp(min=1e-30)
        )
    ROWS.append((name, largest, tolerance))
    assert largest <= tolerance, f"{name}: {largest:.2e} over the tolerance {tolerance:.0e}"


CASES = [("cascade", "eval", (6, 7, 8, 9, 10, 11, 12)), ("zegclip", "zegclip_eval", (12,))]


@pytest.mark.parametrize(("model", "file", "blocks"), CASES)
def test_hidden_states_of_every_block(
    model: str, file: str, blocks: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays = read_reference(file)
    features = predictor.model.features(tensor(arrays["img"]), range(1, 13), projected=False)
    assert features.grid == (4, 4)
    for block in range(1, 13):
        name = f"bb/block{block - 1:02}_out"
        # patches come after class and 3 prompt tokens
        reference = arrays[name][4:].transpose(1, 0, 2)
        same(f"{file}: {name}", features.patches[block], reference, FEATURES)


@pytest.mark.parametrize(("model", "file", "blocks"), CASES)
def test_backbone_parts(
    model: str, file: str, blocks: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """Every array between pixels and features that no public call returns, from the parts that the
    forward pass is made of."""
    predictor: Predictor = request.getfixturevalue(model)
    arrays, backbone = read_reference(file), predictor.model.backbone
    images = tensor(arrays["img"])
    same(f"{file}: bb/conv1", backbone.tower.visual.conv1(images), arrays["bb/conv1"], FEATURES)
    class_token, patches = backbone.tower.embed(images)
    embedded = torch.cat([class_token, patches], dim=1)
    same(f"{file}: bb/ln_pre", embedded, arrays["bb/ln_pre"], FEATURES)
    sequence = torch.cat([class_token, backbone.prompts.before(1, 2), patches], dim=1)
    same(f"{file}: bb/block00_in", sequence.transpose(0, 1), arrays["bb/block00_in"], FEATURES)
    for block in range(1, 12):
        previous = tensor(arrays[f"bb/block{block - 1:02}_out"]).transpose(0, 1)  # (B, N, W)
        entering = torch.cat(
            [previous[:, :1], backbone.prompts.before(block + 1, 2), previous[:, 4:]], dim=1
        )
        same(
            f"{file}: bb/block{block:02}_in",
            entering.transpose(0, 1),
            arrays[f"bb/block{block:02}_in"],
            FEATURES,
        )
        name = f"bb/prompt_proj#{block}"
        same(f"{file}: {name}", backbone.prompts.before(block + 1, 1)[0], arrays[name], FEATURES)
    same(
        f"{file}: bb/prompt_proj", backbone.prompts.before(1, 1), arrays["bb/prompt_proj"], FEATURES
    )
    last = tensor(arrays["bb/block11_out"])
    final = "bb/prompt_norm#6" if file == "eval" else "bb/prompt_norm#1"
    same(f"{file}: {final}", backbone.prompt_norm(last), arrays[final], FEATURES)
    if file == "zegclip_eval":  # computed for block 11 too, where it reaches no output
        ours = backbone.prompt_norm(tensor(arrays["bb/block10_out"]))
        same(f"{file}: bb/prompt_norm", ours, arrays["bb/prompt_norm"], FEATURES)
    normed = tensor(arrays[final]).transpose(0, 1)
    same(f"{file}: bb/ln_post", backbone.tower.final_norm()(normed), arrays["bb/ln_post"], FEATURES)
    for index, block in enumerate(blocks[:-1]):
        name = "bb/prompt_norm" + (f"#{index}" if index else "")
        same(
            f"{file}: {name}",
            backbone.prompt_norm(tensor(arrays[f"bb/block{block - 1:02}_out"])),
            arrays[name],
            FEATURES,
        )
        tapped = backbone.taps.norms[index](tensor(arrays[name]).transpose(0, 1))
        same(f"{file}: bb/ln_layer{index}", tapped, arrays[f"bb/ln_layer{index}"], FEATURES)


@pytest.mark.parametrize(("model", "file", "blocks"), CASES)
def test_features_and_decoders(
    model: str, file: str, blocks: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays, segmenter = read_reference(file), predictor.model
    text = tensor(arrays["text_emb"])
    features = segmenter.features(tensor(arrays["img"]))
    same(f"{file}: bb/cls", features.class_token, arrays["bb/cls"], FEATURES)
    for index, block in enumerate(blocks):
        same(
            f"{file}: bb/feat{index}",
            features.patches[block].transpose(1, 2).unflatten(2, (4, 4)),
            arrays[f"bb/feat{index}"],
            FEATURES,
        )
    relation = relation_descriptor(features.class_token, text)
    masks = segmenter.decode(features, text)
    for stage, of_stage in enumerate(segmenter.stages):
        same(f"{file}: head/q_in{stage}", relation, arrays[f"head/q_in{stage}"], FEATURES)
        queries = segmenter.queries[stage](relation)
        same(f"{file}: head/q{stage}", queries, arrays[f"head/q{stage}"], FEATURES)
        memory = segmenter.aggregations[stage]([features.patches[block] for block in of_stage])
        same(
            f"{file}: head/memory{stage}",
            memory.transpose(0, 1),
            arrays[f"head/memory{stage}"],
            FEATURES,
        )
        decoder = segmenter.decoders[stage]
        for number, layer in enumerate(decoder.layers):
            name = f"head/dec{stage}_layer{number}"
            same(
                f"{file}: {name}_attn",
                layer.attention.mask_logits(queries, memory),
                arrays[f"{name}_attn"],
                FEATURES,
            )
            queries = layer(queries, memory)
            same(f"{file}: {name}_out", queries.transpose(0, 1), arrays[f"{name}_out"], FEATURES)
        logits = decoder.mask_attention.mask_logits(queries, memory)
        same(
            f"{file}: head/dec{stage}_layer2_attn",
            logits,
            arrays[f"head/dec{stage}_layer2_attn"],
            FEATURES,
        )
        same(
            f"{file}: head/mask{stage}", masks.stages[stage], arrays[f"head/mask{stage}"], FEATURES
        )
    same(
        f"{file}: head/mask_sum",
        segmenter(tensor(arrays["img"]), text),
        arrays["head/mask_sum"],
        FEATURES,
    )
    if "head/pred_masks" in arrays:
        same(
            f"{file}: head/pred_masks",
            upsample(masks.total, 16, (64, 64)),
            arrays["head/pred_masks"],
            FEATURES,
        )


@pytest.mark.parametrize(
    ("model", "file", "calibration"),
    [
        ("cascade", "eval", 0.1),
        ("zegclip", "zegclip_eval", 0.1),
        ("cascade", "eval_self_training", 0.0),  # transductive: no calibration
        ("cascade", "eval_text_fp16", 0.1),  # float16 embeddings, not normalised again
    ],
)
def test_scores(model: str, file: str, calibration: float, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays = read_reference(file)
    target = predictor.bind(text=tensor(arrays["text_emb"]), calibration=calibration)
    scores = torch.stack(
        [predictor.scores_of_input(image, target) for image in tensor(arrays["img"])]
    )
    same(f"{file}: scores", scores, arrays["scores"], SCORES)
    if "head/pred" in arrays:
        same(f"{file}: head/pred", scores, arrays["head/pred"], SCORES)
    if "q_in0" in arrays:
        features = predictor.model.features(tensor(arrays["img"]))
        same(
            f"{file}: q_in0",
            relation_descriptor(features.class_token, target.text.float()),
            arrays["q_in0"],
            FEATURES,
        )


@pytest.mark.parametrize(("model", "file"), [("cascade", "slide"), ("zegclip", "zegclip_slide")])
def test_sliding_window(model: str, file: str, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays = read_reference(file)
    image = tensor(arrays["img"])[0]
    windows = list_windows((96, 80), 64, 43)
    edges = [
        [window.top, window.top + window.height, window.left, window.left + window.width]
        for window in windows
    ]
    assert edges == arrays["windows_y1y2x1x2"].tolist()
    count = torch.zeros(1, 1, 96, 80)
    target = predictor.bind(text=tensor(arrays["text_emb"]), calibration=0.1)
    for index, (top, bottom, left, right) in enumerate(edges):
        count[:, :, top:bottom, left:right] += 1
        scores = predictor.scores_of_input(image[:, top:bottom, left:right], target)
        same(f"{file}: window_scores[{index}]", scores, arrays["window_scores"][index], SCORES)
    same(f"{file}: count", count, arrays["count"], 0)
    same(f"{file}: preds", predictor.scores_of_input(image, target)[None], arrays["preds"], SCORES)
    size = (int(arrays["ori_shape"][0]), int(arrays["ori_shape"][1]))
    rescaled = predictor.scores_of_input(image, target, size)
    same(f"{file}: preds_rescaled", rescaled[None], arrays["preds_rescaled"], SCORES)
    same(f"{file}: softmax", rescaled.softmax(dim=0)[None], arrays["softmax"], SCORES)
    labels = predictor.label_map_of_input(image, target, size).labels
    assert np.array_equal(labels.numpy(), arrays["label_map"])
    ROWS.append((f"{file}: label_map", 0.0, 0.0))


def training_task(
    predictor: Predictor, protocol: str, text: np.ndarray, **train: object
) -> SegmentationTask:
    """A training task on imported weights; every dropout of the tiny settings is 0."""
    config = predictor.checkpoint.config
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, protocol=protocol, **train)
    )  # type: ignore[arg-type]
    seen = torch.tensor(predictor.vocabulary.seen_mask)
    return SegmentationTask(predictor.model.train(), tensor(text).float(), seen, config)


def released_labels(labels: np.ndarray) -> Tensor:
    """Released labels (B, 1, H, W) with 255 as ignore, as ours with -1."""
    return torch.where(tensor(labels) == 255, -1, tensor(labels))[:, 0]


@pytest.mark.parametrize(
    ("model", "file", "protocol"),
    [
        ("cascade", "loss_inductive", "inductive"),
        ("cascade", "loss_inductive_all_ignore", "inductive"),
        ("cascade", "loss_transductive", "transductive"),
        ("zegclip", "zegclip_loss_inductive", "inductive"),
    ],
)
def test_losses_and_gradients(
    model: str, file: str, protocol: str, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays = read_reference(file)
    task = training_task(predictor, protocol, arrays["text_emb"])
    images, labels = tensor(arrays["img"]), released_labels(arrays["label"])
    same(f"{file}: text_used", task.queries, arrays["text_used"], 0)
    logits = task.model(images, task.queries)
    full = upsample(logits, 16, (64, 64))
    same(f"{file}: pred_masks", full, arrays["pred_masks"], FEATURES)
    targets = task.protocol.targets(labels, logits, 16)
    assert torch.equal(targets, released_labels(arrays["label_final"]))
    check_loss_parts(file, full, targets, task, arrays)
    result = task.accumulate_gradients(images, labels)
    same(f"{file}: num_masks", result.masks, arrays["num_masks"], 0)
    same(
        f"{file}: decode.loss_mask",
        result.focal[None],
        arrays["loss/decode.loss_mask"],
        1e-6,
        relative=True,
    )
    same(
        f"{file}: decode.loss_dice",
        result.dice[None],
        arrays["loss/decode.loss_dice"],
        1e-6,
        relative=True,
    )
    same(f"{file}: loss/total", result.total[None], arrays["loss/total"], 1e-6, relative=True)
    weights = task.config.train.loss
    same(
        f"{file}: loss_raw/mask",
        result.focal[None] / weights.focal,
        arrays["loss_raw/mask"],
        1e-6,
        relative=True,
    )
    same(
        f"{file}: loss_raw/dice",
        result.dice[None] / weights.dice,
        arrays["loss_raw/dice"],
        1e-6,
        relative=True,
    )
    check_gradients(file, task, arrays)


def test_pseudo_labels_and_label_tables(cascade: Predictor) -> None:
    """The guess of every pixel, and what becomes of every label value, as the released look-up
    tables say (255 and -1 are ignored)."""
    arrays = read_reference("loss_transductive")
    task = training_task(cascade, "transductive", arrays["text_emb"])
    logits = task.model(tensor(arrays["img"]), task.queries)
    everywhere = torch.full((2, 64, 64), 2)  # class 2 is unseen: every pixel gets the model's guess
    assert np.array_equal(
        task.protocol.targets(everywhere, logits, 16)[:, None].numpy(), arrays["pseudo_argmax"]
    )
    labels = torch.arange(7)[None, None].expand(1, 16, 7)
    released = tensor(read_reference("loss_inductive")["visibility_seen_mask"])[:7]
    inductive = training_task(cascade, "inductive", arrays["text_emb"]).protocol
    assert torch.equal(inductive.targets(labels, logits, 16)[0, 0], released)


def check_loss_parts(
    file: str, full: Tensor, targets: Tensor, task: SegmentationTask, arrays: dict[str, np.ndarray]
) -> None:
    """Present classes, binary targets, and the focal loss of every (image, class)."""
    classes = full.shape[1]
    present = present_pairs(targets, classes)
    assert [row.nonzero()[:, 0].tolist() for row in present] == json.loads(
        str(arrays["labels_per_image"])
    )
    binary = targets[:, None] == torch.arange(classes)[:, None, None]
    assert np.array_equal(binary.numpy(), arrays["focal_targets"].astype(bool))
    config = dataclasses.replace(task.config.train.loss, focal=1.0)
    for image in range(len(full)):
        for index in range(classes):
            one = full[image : image + 1, index : index + 1]
            own = torch.where(targets[image : image + 1] == index, 0, -1)
            same(
                f"{file}: focal_per_image_class",
                mask_loss(one, own, 1, config).focal,
                arrays["focal_per_image_class"][image, index],
                1e-6,
            )


def without_gradient(name: str) -> bool:
    """Released parameters whose true gradient is 0: the key biases before a softmax."""
    return name.endswith("multihead_attn.k.bias") and ".layers.2." not in name


def check_gradients(file: str, task: SegmentationTask, arrays: dict[str, np.ndarray]) -> None:
    released = {
        name.removeprefix("grad/"): tensor(value)
        for name, value in arrays.items()
        if name.startswith("grad/")
    }
    compared = compare_named(
        file,
        "grad",
        released,
        {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None},
        task.config,
        2e-5,
    )
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert compared == trained, f"never compared: {sorted(trained - compared)}"


def compare_named(
    file: str,
    kind: str,
    released: dict[str, Tensor],
    ours: dict[str, Tensor],
    config: Config,
    tolerance: float,
) -> set[str]:
    """Compare tensors by released name within `tolerance` times their norm; returns our names that
    were covered."""
    covered = set()
    for name, wanted in convert_released(released, config)[0].items():
        covered.add(name)
        if name.endswith("attention.key.bias") and "mask_attention" not in name:
            continue
        same(f"{file}: {kind}/{name}", ours[name], wanted.numpy(), tolerance, relative=True)
    return covered


@pytest.mark.parametrize(
    ("model", "file"), [("cascade", "train3_fast"), ("zegclip", "zegclip_train3_fast")]
)
def test_three_optimiser_steps(model: str, file: str, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(model)
    arrays = read_reference(file)
    settings = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, final_rate=1e-6)
    task = training_task(predictor, "inductive", arrays["text_emb"], steps=10, optimizer=settings)
    start = {name: parameter.detach().clone() for name, parameter in task.model.named_parameters()}
    optimizer = task.configure_optimizers()
    for step in range(3):
        rate = task.set_learning_rate(optimizer, step)
        assert rate == pytest.approx(float(arrays[f"step{step}/lr_trainable"][0]), rel=1e-12)
        optimizer.zero_grad()
        result = task.accumulate_gradients(
            tensor(arrays[f"step{step}/img"]), released_labels(arrays[f"step{step}/label"])
        )
        same(
            f"{file}: step{step}/loss",
            result.total,
            arrays[f"step{step}/log/loss"],
            1e-6,
            relative=True,
        )
        optimizer.step()
        prefix = f"step{step}/delta/"
        released = {
            name.removeprefix(prefix): tensor(value)
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        moved = {
            name: parameter.detach() - start[name]
            for name, parameter in task.model.named_parameters()
        }
        # of the tensor's norm
        compare_named(file, f"step{step}/delta", released, moved, task.config, 1e-4)
    still = {
        name
        for name, parameter in task.model.named_parameters()
        if torch.equal(parameter, start[name])
    }
    assert still == {
        name for name, parameter in task.model.named_parameters() if not parameter.requires_grad
    }


def test_learning_rate_schedules() -> None:
    arrays = read_reference("lr")
    schedules = {"voc20_20k": 20000, "voc20_st_10k": 10000, "context_40k": 40000, "coco_80k": 80000}
    for name, total in schedules.items():
        ours = [
            learning_rate(int(step), total, OptimizerConfig())
            for step in arrays[f"{name}/iterations"]
        ]
        same(
            f"lr: {name}",
            torch.tensor(ours, dtype=torch.float64),
            arrays[f"{name}/lr_trainable"].reshape(-1),
            1e-12,
        )
    trained = arrays["group_trainable"].astype(bool)
    assert set(arrays["group_weight_decay"][trained]) == {OptimizerConfig().weight_decay}
    rates = torch.tensor(
        [learning_rate(int(step), 20000, OptimizerConfig()) for step in arrays["iterations"]],
        dtype=torch.float64,
    )
    same(
        "lr: every trained group",
        rates[:, None].expand(-1, int(trained.sum())),
        arrays["lr"][:, trained],
        1e-12,
    )


def test_position_embedding_resize() -> None:
    arrays = read_reference("posemb")
    source = tensor(arrays["src_first16ch"])
    resized = resize_positions(source[1:], (14, 14), (32, 32))
    same("posemb: dst_first16ch", torch.cat([source[:1], resized]), arrays["dst_first16ch"], 1e-5)


def text_state(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The text tower's state dict; rows of tokens that never occur are left out of the stored table
    and are 0 here."""
    state = {
        name.removeprefix("state/"): tensor(value)
        for name, value in arrays.items()
        if name.startswith("state/")
    }
    table = torch.zeros(49408, 32)
    table[tensor(arrays["token_ids"])] = tensor(arrays["token_rows"])
    return state | {"token_embedding.weight": table}


def test_tokenizer() -> None:
    import open_clip

    arrays, tokenizer = read_reference("text"), open_clip.SimpleTokenizer()
    for group in ("voc20", "context59", "coco171"):
        ours = tokenizer([f"a photo of a {name}" for name in arrays[f"{group}/classes"]])
        assert np.array_equal(ours.numpy(), arrays[f"{group}/tokens"]), group
    assert np.array_equal(
        tokenizer([str(text) for text in arrays["odd/texts"]]).numpy(), arrays["odd/tokens"]
    )


def test_text_encoder(tmp_path: Path) -> None:
    """The text tower's output, its block outputs, and scores from class names alone."""
    arrays = read_reference("text")
    extra = {f"text_encoder.{name}": value for name, value in text_state(arrays).items()}
    names = [str(name) for name in arrays["voc20/classes"][:7]]
    settings = {
        **TINY_SETTINGS,
        "data": {"classes": ", ".join(names), "unseen": f"{names[2]}, {names[5]}"},
    }
    predictor = load_predictor(
        import_reference("text_model_state", tmp_path, settings, extra), device="cpu"
    )
    encoder = predictor.text_encoder
    assert encoder is not None
    same(
        "text: out_normalised",
        encoder.encode([f"a photo of a {name}" for name in names]),
        arrays["out_normalised"],
        FEATURES,
    )
    tower, tokens = encoder.tower, tensor(arrays["tokens"])
    same("text: out", tower.encode_text(tokens), arrays["out"], FEATURES)
    hidden = tower.token_embedding(tokens) + tower.positional_embedding
    same("text: embedded", hidden, arrays["embedded"], FEATURES)
    for index, block in enumerate(tower.transformer.resblocks):
        hidden = block(hidden, attn_mask=tower.attn_mask)
        same(
            f"text: block{index}_out", hidden.transpose(0, 1), arrays[f"block{index}_out"], FEATURES
        )
    assert np.array_equal(tower.attn_mask[:5, :5].numpy(), arrays["attn_mask_first5"])
    target = predictor.bind(names, calibration=0.1)
    scores = predictor.scores_of_input(tensor(arrays["img"])[0], target)
    same("text: scores_from_text_encoder", scores[None], arrays["scores_from_text_encoder"], SCORES)


def print_table() -> None:
    """Largest difference per kind of array; numbers in names become `*`."""
    table: dict[str, tuple[int, float, float]] = {}
    for name, gap, tolerance in ROWS:
        kind = re.sub(
            r"(?<=[a-z#\[])\d+|backbone\..*|queries\..*|decoders\..*|aggregations\..*", "*", name
        )
        count, largest, _ = table.get(kind, (0, 0.0, 0.0))
        table[kind] = (count + 1, max(gap, largest), tolerance)
    print("| array | compared | largest difference | tolerance |\n|---|---|---|---|")
    for name, (count, gap, tolerance) in table.items():
        print(f"| `{name}` | {count} | {gap:.1e} | {tolerance:.0e} |")


if __name__ == "__main__":
    sys.modules["test_parity"] = sys.modules["__main__"]
    pytest.main([__file__, "-q", "-p", "no:cacheprovider"])
    print_table()
