"""Settings of the network. Block numbers count from 1, as in the paper."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cascade_clip.config.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Aggregation,
    Decoder,
    TextEncoder,
    check,
    check_least,
    check_part,
    check_range,
    check_share,
)


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP carries the method, and where its weights come from."""

    name: str = "ViT-B-16-quickgelu"
    """Model name of open_clip; or a folder in open_clip's format: `local-dir:FOLDER`,
    `hf-hub:OWNER/NAME`, `package:mini_clip`."""
    weights: str = "openai"
    """Weights tag of open_clip, a local file (OpenAI's ViT-B-16.pt, .safetensors, a state dict), or
    `random`. Ignored with a folder."""
    architecture: dict[str, Any] | None = None
    """open_clip model configuration to use instead of the one of `name`, for unlisted towers."""
    sha256: str = ""
    """Expected SHA-256 of a weights file. Empty: the published one; `any`: trust it unseen."""
    tokenizer: bool = True
    """Whether the text tower is loaded. Without it text embeddings must be given as arrays."""
    text_encoder: TextEncoder = "clip"
    """What turns prompts into text embeddings. `clip`: CLIP's own text tower."""

    def __post_init__(self) -> None:
        check_part("text_encoders", self.text_encoder, "model.clip.text_encoder")


@dataclass(frozen=True)
class PromptConfig:
    """Visual prompt tokens, the trained part of the encoder (paper section 3.2)."""

    kind: Literal["deep", "shallow", "none"] = "deep"
    """`deep`: fresh tokens before every block; `shallow`: only before block 1; `none`: none."""
    tokens: int = 10
    """Number of prompt tokens (the paper: 10 for VOC, 35 for Context, 50 for COCO-Stuff)."""
    dropout: float = 0.1
    """Dropout on the projected prompt tokens while training."""
    spectral: bool = False
    """Spectral prompts (SPT-SEG): add to the patch tokens their product with the class token,
    filtered by spatial frequency. Whatever `kind` is."""
    spectral_blocks: tuple[int, ...] = (1, 2)
    """Blocks before which that happens, counted from 1; one filter serves all."""
    spectral_trained: bool = True
    """Whether the filter is trained (our reading, not in the released code) or stays random."""

    def __post_init__(self) -> None:
        blocks = self.spectral_blocks
        check(
            len(blocks) > 0, "model.prompts.spectral_blocks is empty; set spectral: false instead"
        )
        check(min(blocks) >= 1, f"spectral_blocks counts from 1, got {list(blocks)}")
        check(
            1 <= self.tokens <= 4096,
            f"model.prompts.tokens must lie in 1..4096, got {self.tokens}; for none set kind: none",
        )
        check_share("model.prompts", self, "dropout")


@dataclass(frozen=True)
class AggregationConfig:
    """How the blocks of a stage become one feature map (paper section 3.3, Table 8)."""

    kind: Aggregation = "nga"
    """`nga`: neighbourhood Gaussian aggregation; `sum`: equal weights; `concat`: concatenation +
    linear; `attention`: across blocks."""
    sigma: float = 1.0
    """Standard deviation of the Gaussian that gives the first weights of `nga`."""
    trained: bool = True
    """Whether the weights of `nga` and `sum` are trained or stay fixed."""

    def __post_init__(self) -> None:
        check_part("aggregations", self.kind, "model.aggregation.kind")
        # infinity makes all weights equal
        check(self.sigma > 0, f"model.aggregation.sigma must be positive, got {self.sigma}")


@dataclass(frozen=True)
class ProjectionConfig:
    """How the tapped middle blocks reach CLIP's joint space."""

    init: Literal["random", "clip"] = "random"
    """`random`: fresh per block, as published; `clip`: copies of CLIP's last norm and matrix."""
    trained: bool = False
    """Whether these projections are trained; the published models leave them frozen."""


@dataclass(frozen=True)
class DecoderConfig:
    """The text-image decoder of every stage (paper section 3.2)."""

    kind: Decoder = "transformer"
    """`transformer`: the paper's trained decoder; `spectral`: SPT-SEG's; `similarity`: nothing
    trained, the softmax over class names of CLIP's own similarity."""
    layers: int = 3
    """Number of layers; the last one gives the mask logits."""
    heads: int = 8
    """Attention heads."""
    feedforward: int = 2048
    """Width of the feed-forward part."""
    dropout: float = 0.1
    """Dropout on attention weights, attention output and feed-forward while training."""
    window: int = 3
    """Side in patches of the windows of local attention and of pooling (only `spectral`)."""
    low_share: float = 0.9
    """Share of heads, rounded down, on pooled patches (only `spectral`); the rest use windows."""
    gate_leak: float = 0.1
    """Slope of the gate below 0 (only `spectral`). With 0, as published, patches on the wrong side
    of a random direction, often all of them, start silent and without gradient; a leak (our guard)
    lets them learn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a decoder that another package adds, by name."""

    def __post_init__(self) -> None:
        check_part("decoders", self.kind, "model.decoder.kind")
        check_range("model.decoder", self, layers=(1, 64), feedforward=(1, 65536))
        check_least("model.decoder", self, heads=1, window=1)
        check_share("model.decoder", self, "dropout", "gate_leak")
        share = self.low_share
        check(0 < share < 1, f"model.decoder.low_share must lie between 0 and 1, got {share}")


LastBlock = Literal["standard", "maskclip", "sclip", "clearclip"]


@dataclass(frozen=True)
class ModelConfig:
    """What a model is: CLIP tower x prompts x stages x aggregation x projections x decoder."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    """The CLIP underneath; always frozen."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    """Visual prompt tokens."""
    stages: tuple[tuple[int, ...], ...] = ((6, 7, 8), (9, 10, 11), (12,))
    """Blocks of every stage, counted from 1. `[[12]]` is ZegCLIP; `[[6,7,8],[9,10,11],[12]]` the
    published cascade. Stages may share blocks and may be equal: each has a decoder of its own."""
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    """How the blocks of a stage are put together."""
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    """How middle blocks reach the joint space."""
    queries: Literal["independent", "shared", "text_linear", "text"] = "independent"
    """Whether every stage has its own projection of the class queries, or all share one (paper
    Table 9); `text_linear`: every stage projects the text embeddings alone, without the image's
    class token; `text`: the text embeddings themselves are the queries."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The decoders."""
    stage_weights: Literal["sum", "learned"] = "sum"
    """How stages are put together. `sum`: their mask logits are added, as published; `learned`:
    each stage's mask logits times a trained number of its own, which starts at 1."""
    drop_path: float = 0.0
    """Chance to skip the last block in training, rising from block 1; published: never applied."""
    class_embedding_twice: bool = True
    """Add the class embedding to the class token twice, as released. Switch off for plain CLIP."""
    last_block: LastBlock = "standard"
    """How the last block makes patch features. `standard`: as trained; `maskclip`: values instead
    of attention (MaskCLIP); `sclip`: query-query plus key-key attention (SCLIP); `clearclip`:
    query-query attention without residual and feed-forward (ClearCLIP)."""
    position_grid: tuple[int, int] | None = (32, 32)
    """Grid (rows, columns) to which positions are resized at loading; null keeps CLIP's own."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of red, green, blue input in [0, 1]; the published models use ImageNet's, not CLIP's."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the red, green and blue input."""

    def __post_init__(self) -> None:
        check_share("model", self, "drop_path")
        count = len(self.stages)
        check(count > 0, "model.stages is empty; name at least one stage, for example [[12]]")
        check(count <= 64, f"model.stages has {count} stages; 64 at most are allowed")
        grid = self.position_grid or (1, 1)
        inside = all(1 <= side <= 512 for side in grid)
        check(inside, f"model.position_grid must lie in 1..512, got {list(grid)}")
        for stage in self.stages:
            check(len(stage) > 0, f"model.stages holds an empty stage: {self.stages}")
            twice = len(set(stage)) < len(stage)
            check(not twice, f"model.stages names a block twice in one stage: {stage}")
            check(min(stage) >= 1, f"model.stages counts blocks from 1, got {stage}")
