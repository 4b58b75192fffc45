"""Every setting of the package, as frozen dataclasses whose field docs are the help texts.

In: YAML, flags or plain values. Out: checked settings; a key that does not exist is refused. Block
numbers count from 1, as in the paper. `parts` lists what decoders, towers, datasets ... there are.
"""

from cascade_clip.config.data import DataConfig, DataName, FilesName
from cascade_clip.config.inference import InferenceConfig
from cascade_clip.config.model import (
    AggregationConfig,
    ClipConfig,
    DecoderConfig,
    LastBlock,
    ModelConfig,
    ProjectionConfig,
    PromptConfig,
)
from cascade_clip.config.parts import find_part, names_of
from cascade_clip.config.run import Config
from cascade_clip.config.serialization import (
    RENAMED,
    config_from_dict,
    config_to_dict,
    differing_settings,
    read_yaml,
    rename_settings,
)
from cascade_clip.config.service import MEBIBYTE, ServiceOptions, check_limit
from cascade_clip.config.train import AugmentConfig, LossConfig, OptimizerConfig, TrainConfig
from cascade_clip.config.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Device,
    Precision,
    Protocol,
    Resume,
    Upsampler,
)
