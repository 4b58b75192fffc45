"""Every setting of the package, as frozen dataclasses whose field docs are the help texts.

Block numbers count from 1, as in the paper. A checkpoint folder stores these settings as `config.yaml`;
reading it back refuses keys that do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Protocol = Literal["inductive", "transductive", "supervised"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP carries the method, and where its weights come from."""

    name: str = "ViT-B-16-quickgelu"
    """Model name of open_clip; or a folder in open_clip's format: `local-dir:FOLDER`, `hf-hub:OWNER/NAME`, `package:mini_clip`."""
    weights: str = "openai"
    """Weights tag of open_clip, a local file (OpenAI's ViT-B-16.pt, .safetensors, a state dict), or `random`. Unused with a folder."""
    architecture: dict[str, Any] | None = None
    """open_clip model configuration to use instead of the built-in one of `name` (for towers that open_clip does not list)."""
    sha256: str = ""
    """Expected SHA-256 of a local weights file. Empty: the published hash of that file name. `any`: trust the file unseen."""
    tokenizer: bool = True
    """Whether the text tower is loaded. Without it text embeddings must be given as arrays."""


@dataclass(frozen=True)
class PromptConfig:
    """Visual prompt tokens, the trained part of the encoder (paper section 3.2)."""

    kind: Literal["deep", "shallow", "none"] = "deep"
    """`deep`: fresh tokens before every block; `shallow`: tokens before block 1 only, carried on; `none`: plain CLIP."""
    tokens: int = 10
    """Number of prompt tokens (the paper: 10 for VOC, 35 for Context, 50 for COCO-Stuff)."""
    dropout: float = 0.1
    """Dropout on the projected prompt tokens while training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.tokens >= 1, f"model.prompts.tokens must be at least 1, got {self.tokens}; for none set kind: none")
        _check(0 <= self.dropout < 1, f"model.prompts.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class AggregationConfig:
    """How the blocks of a stage become one feature map (paper section 3.3, Table 8)."""

    kind: Literal["nga", "sum", "concat", "attention"] = "nga"
    """`nga`: neighbourhood Gaussian aggregation; `sum`: equal weights; `concat`: concatenation + linear; `attention`: across blocks."""
    sigma: float = 1.0
    """Standard deviation of the Gaussian that gives the first weights of `nga`."""
    trained: bool = True
    """Whether the weights of `nga` and `sum` are trained or stay fixed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.sigma > 0, f"model.aggregation.sigma must be positive, got {self.sigma}")


@dataclass(frozen=True)
class ProjectionConfig:
    """How the tapped middle blocks reach CLIP's joint space."""

    init: Literal["random", "clip"] = "random"
    """`random`: a random matrix and a fresh norm per block, as published; `clip`: copies of CLIP's last norm and projection."""
    trained: bool = False
    """Whether these projections are trained; the published models leave them frozen."""


@dataclass(frozen=True)
class DecoderConfig:
    """The text-image decoder that every stage has of its own (paper section 3.2)."""

    layers: int = 3
    """Number of layers; the last one gives the mask logits."""
    heads: int = 8
    """Attention heads."""
    feedforward: int = 2048
    """Width of the feed-forward part."""
    dropout: float = 0.1
    """Dropout on attention weights, attention output and feed-forward while training."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.layers >= 1, f"model.decoder.layers must be at least 1, got {self.layers}")
        _check(self.heads >= 1, f"model.decoder.heads must be at least 1, got {self.heads}")
        _check(0 <= self.dropout < 1, f"model.decoder.dropout must lie in [0, 1), got {self.dropout}")


def _default_stages() -> tuple[tuple[int, ...], ...]:
    return ((6, 7, 8), (9, 10, 11), (12,))


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to build a model: CLIP tower x prompts x stages x aggregation x projections x queries x decoder."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    """The CLIP underneath; always frozen."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """Visual prompt tokens."""
    stages: tuple[tuple[int, ...], ...] = field(default_factory=_default_stages)
    """Blocks of every stage, counted from 1. `[[12]]` is ZegCLIP; `[[6,7,8],[9,10,11],[12]]` the published cascade."""
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    """How the blocks of a stage are put together."""
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    """How middle blocks reach the joint space."""
    queries: Literal["independent", "shared"] = "independent"
    """Whether every stage has its own projection of the class queries, or all share one (paper Table 9)."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoders."""
    drop_path: float = 0.0
    """Probability that an image skips the last block while training, rising linearly from the first block. Published: never applied."""
    class_embedding_twice: bool = True
    """Add the class embedding to the class token twice, as the released programs do. Switch off for plain CLIP."""
    position_grid: tuple[int, int] | None = (32, 32)
    """Grid (rows, columns) to which the position embedding is resized once at loading; null keeps CLIP's own."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the red, green and blue input in [0, 1]; the published models use ImageNet's, not CLIP's."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the red, green and blue input."""

    def __post_init__(self) -> None:
        """Check the stages."""
        _check(0 <= self.drop_path < 1, f"model.drop_path must lie in [0, 1), got {self.drop_path}")
        _check(len(self.stages) > 0, "model.stages is empty; name at least one stage, for example [[12]]")
        for stage in self.stages:
            _check(len(stage) > 0, f"model.stages holds an empty stage: {self.stages}")
            _check(len(set(stage)) == len(stage), f"model.stages names a block twice in one stage: {stage}")
            _check(min(stage) >= 1, f"model.stages counts blocks from 1, got {stage}")


@dataclass(frozen=True)
class InferenceConfig:
    """How an image of any size becomes mask scores (paper section 4.1)."""

    window: int = 512
    """Side of the square window, in pixels of the resized image."""
    stride: int = 426
    """Step between windows; the last one in each direction is shifted back inside the image."""
    score_size: int = 0
    """Side to which mask logits of a window are upsampled before the sigmoid (the training crop); 0 means `window`."""
    resize: bool = True
    """Resize the short side to `window` first, up or down; otherwise the image is taken as it is."""
    calibration: float = 0.1
    """Subtracted from the score of every seen class (0 after transductive or supervised training)."""
    class_chunk: int = 16
    """Number of classes whose full-size scores are held at once; changes memory, never the result."""
    window_batch: int = 1
    """Number of windows that go through the network together."""
    precision: Precision = "fp32"
    """Number format of the network; similarities and scores are always float32."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.window >= 1, f"inference.window must be at least 1, got {self.window}")
        _check(1 <= self.stride <= self.window, f"inference.stride must lie in 1..window ({self.window}), got {self.stride}")
        _check(self.class_chunk >= 1, f"inference.class_chunk must be at least 1, got {self.class_chunk}")
        _check(self.window_batch >= 1, f"inference.window_batch must be at least 1, got {self.window_batch}")


@dataclass(frozen=True)
class DataConfig:
    """Where images, masks and class names lie."""

    name: Literal["folder", "sandbox"] = "folder"
    """`folder`: the two folders below; `sandbox`: the built-in world, which needs no files."""
    images: str = ""
    """Folder of images."""
    masks: str = ""
    """Folder of index masks with the same file stems (8- or 16-bit PNG)."""
    classes: str = ""
    """Class list: a file with one name a line in label order (`sofa = couch; settee` adds synonyms) or with `VALUE NAME` lines,
    or a packaged list by name (voc, coco-stuff, context, ...)."""
    unseen: str = ""
    """Unseen class names: a file with one name a line, names separated by commas, or a packaged split by name."""
    ignore: int | None = None
    """Mask value of pixels without a label; null: the one of the class list, 255 unless it says otherwise."""
    templates: str = ""
    """Prompt templates: `single`, `paper15`, or a text file with one template a line, `{}` standing for the name.
    Empty: those that the paper uses for a packaged class list, else `single`."""
    text_embeddings: str = ""
    """A .npy file (classes, width) to use instead of the text tower, rows in label order."""
    limit: int = 0
    """Use the first N images only; 0 means all (in the sandbox: 100,000 scenes)."""
    seed: int = 0
    """Which scenes of the sandbox; other seeds give fresh ones."""
    size: int = 128
    """Side of the sandbox's scenes, in pixels."""
    workers: int = 2
    """Processes that load and augment images."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.size >= 16, f"data.size must be at least 16, got {self.size}")
        _check(self.limit >= 0, f"data.limit must be 0 (all) or more, got {self.limit}")
        _check(self.workers >= 0, f"data.workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation (method: random scale, crop, flip, photometric distortion)."""

    scale: tuple[int, int] = (2048, 512)
    """Long and short side that a picture is fitted into, before the random ratio."""
    ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the random ratio."""
    crop: int = 512
    """Side of the square crop, in pixels."""
    largest_share: float = 0.75
    """A crop is drawn again (ten times at most) while one class fills this share of its labelled pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Whether brightness, contrast, saturation and hue are distorted."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.crop >= 1, f"train.augment.crop must be at least 1, got {self.crop}")
        _check(0 < self.ratio[0] <= self.ratio[1], f"train.augment.ratio must rise from above 0, got {self.ratio}")


@dataclass(frozen=True)
class LossConfig:
    """Focal and dice loss on the summed mask logits (paper Eq. 8, Table 18)."""

    focal: float = 100.0
    """Weight of the sigmoid focal loss."""
    dice: float = 1.0
    """Weight of the dice loss."""
    alpha: float = 0.25
    """Balance of the focal loss between present and absent pixels."""
    gamma: float = 2.0
    """Exponent that lowers the focal loss of easy pixels."""
    ignored: Literal["negative", "masked"] = "negative"
    """`negative`: unlabelled pixels count as negatives of every class, as published; `masked`: they count nowhere."""
    class_chunk: int = 32
    """Number of classes whose full-size mask is held at once; changes memory, never the result."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.class_chunk >= 1, f"train.loss.class_chunk must be at least 1, got {self.class_chunk}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: float = 2e-4
    """Peak learning rate of prompts and decoders (the published 2e-5 times its factor 10)."""
    weight_decay: float = 0.01
    """Weight decay of every trained tensor."""
    power: float = 0.9
    """Exponent of the polynomial decay."""
    final_rate: float = 1e-6
    """Learning rate at the end."""
    warmup_steps: int = 1500
    """Steps of linear warm-up."""
    warmup_ratio: float = 1e-6
    """Part of the learning rate at step 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.learning_rate > 0, f"train.optimizer.learning_rate must be positive, got {self.learning_rate}")
        _check(self.warmup_steps >= 0, f"train.optimizer.warmup_steps must be 0 or more, got {self.warmup_steps}")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    protocol: Protocol = "inductive"
    """`inductive`: unseen names unknown; `transductive`: unseen names known, pseudo-labels; `supervised`: all labels."""
    steps: int = 20000
    """Optimiser steps."""
    schedule_steps: int = 0
    """Steps over which the learning rate decays; 0 means `steps` (longer for the inductive half of a transductive run)."""
    batch_size: int = 16
    """Images per step over all devices."""
    micro_batch: int = 0
    """Images that go through the network at once on one device; 0 means all of its share. Changes memory, not the gradient."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    init_from: str = ""
    """Checkpoint folder whose weights start the run (stage 1 of a transductive run)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""
    precision: Precision = "fp32"
    """Number format of matrix products; weights, similarities and losses stay float32."""
    device: Device = "auto"
    """Where to train."""
    devices: int = 1
    """Number of devices (or CPU processes) that share every batch."""
    save_every: int = 1000
    """Steps between checkpoints for `--resume`."""
    log_every: int = 10
    """Steps between lines of `metrics.csv`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(self.steps >= 1, f"train.steps must be at least 1, got {self.steps}")
        _check(self.batch_size >= 1, f"train.batch_size must be at least 1, got {self.batch_size}")
        _check(self.micro_batch >= 0, f"train.micro_batch must be 0 or more, got {self.micro_batch}")
        _check(self.devices >= 1, f"train.devices must be at least 1, got {self.devices}")
        share, rest = divmod(self.batch_size, self.devices)
        _check(rest == 0, f"train.batch_size {self.batch_size} cannot be shared by {self.devices} devices; make it a multiple")
        _check(
            self.micro_batch == 0 or share % self.micro_batch == 0,
            f"train.micro_batch {self.micro_batch} does not divide the {share} images that each device gets",
        )
        _check(
            self.schedule_steps == 0 or self.schedule_steps >= self.steps,
            f"train.schedule_steps {self.schedule_steps} must be 0 or at least train.steps {self.steps}",
        )
        _check(self.save_every >= 1, f"train.save_every must be at least 1, got {self.save_every}")
        _check(self.log_every >= 1, f"train.log_every must be at least 1, got {self.log_every}")


@dataclass(frozen=True)
class Config:
    """Everything about one run; a YAML file states only what differs from these defaults."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    evaluation: DataConfig | None = None
    """Data of the final evaluation; null skips it."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Inference, stored with the checkpoint as its default."""
