"""Class names to embeddings: templates, synonyms, and the cache on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.text import TextEncoder, load_embeddings


class CountingTower(nn.Module):
    """Embeds each prompt by its letters, and counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, 8, generator=torch.Generator().manual_seed(0)))
        self.calls = 0

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return self.table[tokens].sum(dim=1)


def tokenize(prompts: list[str]) -> Tensor:
    return torch.tensor([list(prompt.encode().ljust(40))[:40] for prompt in prompts])


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextEncoder:
    monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path / "cache"))
    return TextEncoder(CountingTower(), tokenize)


def test_templates_and_synonyms_are_averaged_as_unit_vectors(encoder: TextEncoder) -> None:
    templates = ("a {}", "the {}")
    found = encoder.embed([("sofa", "couch"), ("cat",)], templates)
    unit = {word: encoder.encode([template.replace("{}", word) for template in templates]) for word in ("sofa", "couch", "cat")}
    for rows in unit.values():
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2))
    words = {word: F.normalize(rows.mean(dim=0), dim=-1) for word, rows in unit.items()}
    expected = torch.stack([F.normalize((words["sofa"] + words["couch"]) / 2, dim=-1), words["cat"]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))


def test_embeddings_are_kept_on_disk(encoder: TextEncoder, tmp_path: Path) -> None:
    tower = encoder.tower
    assert isinstance(tower, CountingTower)
    first = encoder.embed([("cat",)], ("a {}",))
    calls = tower.calls
    assert torch.equal(encoder.embed([("cat",)], ("a {}",)), first)
    assert tower.calls == calls
    for words, templates in (([("dog",)], ("a {}",)), ([("cat",)], ("the {}",)), ([("cat", "puss")], ("a {}",))):
        encoder.embed(words, templates)
    assert tower.calls == calls + 3  # everything that matters is in the key
    with torch.no_grad():
        tower.table.add_(1)
    other = TextEncoder(tower, tokenize)
    assert not torch.equal(other.embed([("cat",)], ("a {}",)), first)  # other weights, other key


@pytest.mark.parametrize("content", [b"", b"not numpy", "wrong shape", "nan"])
def test_a_damaged_cache_is_made_again(encoder: TextEncoder, tmp_path: Path, content: object) -> None:
    first = encoder.embed([("cat",), ("dog",)], ("a {}",))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, np.zeros((1, 8), dtype=np.float32) if content == "wrong shape" else np.full((2, 8), np.nan, dtype=np.float32))
    assert torch.equal(encoder.embed([("cat",), ("dog",)], ("a {}",)), first)


def test_a_cache_that_cannot_be_written_only_costs_time(encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path / "file"))
    assert encoder.embed([("cat",)], ("a {}",)).shape == (1, 8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8), dtype=np.float32), r"shape \(2, 8\)"),
        (np.zeros((2, 9), dtype=np.float32), r"shape \(2, 8\)"),
        (np.zeros((2, 8), dtype=np.int64), "must hold floats"),
        (np.array([object()] * 2), "not a .npy file of numbers"),  # a pickle inside is refused
    ],
)
def test_embeddings_that_do_not_fit(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "text.npy", array)
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "text.npy", 2, 8)


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.full((2, 8), 0.3, dtype=np.float16))
    found = load_embeddings(tmp_path / "text.npy", 2, 8)
    assert found.dtype == torch.float32
    assert float(found[0, 0]) == float(np.float16(0.3))  # as stored, not normalised again
    with pytest.raises(FileNotFoundError, match="no text embeddings"):
        load_embeddings(tmp_path / "nowhere.npy", 2, 8)
