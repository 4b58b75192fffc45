"""Draw docs/python.jpg: a scene of the built-in world, its overlay, and the heat map of an unseen class."""

from pathlib import Path

from PIL import Image

import cascade_clip
from cascade_clip.data import SandboxScenes

scene = SandboxScenes(count=40, seed=5, size=128).sample(3).image.permute(1, 2, 0).numpy()
picture = Image.fromarray(scene).resize((320, 320), Image.Resampling.BICUBIC)
result = cascade_clip.load("mini").segment(picture)
parts = [picture, result.overlay(picture), result.heatmap_image("mushroom", picture)]
canvas = Image.new("RGB", (sum(part.width for part in parts) + 20, 320), "white")
left = 0
for part in parts:
    canvas.paste(part, (left, 0))
    left += part.width + 10
canvas.save(Path(__file__).with_name("python.jpg"), quality=88)
