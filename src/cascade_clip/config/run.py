"""The settings of one run."""

from dataclasses import dataclass, field, replace

from cascade_clip.config.data import DataConfig
from cascade_clip.config.inference import InferenceConfig
from cascade_clip.config.model import ModelConfig
from cascade_clip.config.train import TrainConfig


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

    def __post_init__(self) -> None:
        """Look for the evaluation data where the training data lie, unless another place is set."""
        if self.evaluation is not None and self.data.root and not self.evaluation.root:
            object.__setattr__(self, "evaluation", replace(self.evaluation, root=self.data.root))
