"""Models for other runtimes.

In: a predictor with bound class names. Out: an ONNX file with a runner beside it, or a
torch.export program, and a comparison of either with the model.
"""

from cascade_clip.export.compare import (
    compare_logits,
    draw_models,
    exported_predictor,
    random_text,
    read_facts,
    windows_per_second,
)
from cascade_clip.export.onnx import export_onnx, export_text, export_torch, require
