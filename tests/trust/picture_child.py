"""Reads lines of JSON, `["picture", PATH]` or `["mask", PATH]`, and says in one line of JSON each
what became of the file.

A picture is segmented, a mask paired with a picture of 40 x 56. What it prints: `shape`, `corner`
(colour of the upper left pixel of a picture), `labels` (lowest and highest); or `error`; or
`defect` for what a command would not print in one line; and always `seconds` of processor time and
`memory`, the most that this process ever had, in MiB.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cascade_clip.data.samples import LabelledFiles
from cascade_clip.errors import CascadeClipError
from cascade_clip.files.image_tensors import load_image
from cascade_clip.inference.loading import load_predictor
from cascade_clip.research.benchmark.work import peak_memory
from cascade_clip.vocabulary import parse_classes


class Files:
    """What files are tried with."""

    def __init__(self, folder: Path) -> None:
        """Load the model, and write the picture that masks are paired with."""
        self.predictor = load_predictor("mini", device="cpu")
        self.target = self.predictor.bind("sky, sand, star")
        self.vocabulary = parse_classes("sky, sand, star")
        self.image = folder / "image.png"
        Image.new("RGB", (56, 40)).save(self.image)

    def picture(self, path: Path) -> dict[str, Any]:
        """Segment a picture."""
        pixels = load_image(path)
        labels = self.predictor.segment_pixels(pixels, self.target).labels
        return {
            "shape": list(labels.shape),
            "corner": pixels[:, 0, 0].tolist(),
            "labels": [int(labels.min()), int(labels.max())],
        }

    def mask(self, path: Path) -> dict[str, Any]:
        """Read a mask as training and evaluation do."""
        labels = LabelledFiles([(self.image, path)], self.vocabulary).sample(0).labels
        return {"shape": list(labels.shape), "labels": [int(labels.min()), int(labels.max())]}

    def judge(self, kind: str, path: Path) -> dict[str, Any]:
        """What becomes of one file."""
        try:
            return self.picture(path) if kind == "picture" else self.mask(path)
        except CascadeClipError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"defect": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    files = Files(Path(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        kind, path = json.loads(line)
        begin = time.process_time()
        found = files.judge(kind, Path(path))
        found |= {"seconds": time.process_time() - begin, "memory": peak_memory()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
