"""Class names to embeddings: templates, synonyms, and the cache on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_clip.encoders.text import TextEncoder, load_embeddings


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


class NamedTower(nn.Module):
    """Gives each prompt, known by its length, an embedding from a table."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(rows))

    def encode_text(self, lengths: Tensor) -> Tensor:
        return self.table[lengths - 1]


@pytest.mark.parametrize(
    ("words", "templates", "expected"),
    [
        ([("1",)], ("{}",), [1.0, 0.0]),  # length 2 becomes 1
        # each word counts the same, whatever its length
        ([("1", "22")], ("{}",), [0.5**0.5, 0.5**0.5]),
        ([("1",)], ("{}", "{}!"), [0.5**0.5, 0.5**0.5]),  # and each template
        # words: (1, 1)/sqrt 2 and (-3/5, 1 + 4/5)/norm, then made unit again
        ([("1", "333")], ("{}", "{}!"), [0.2297529, 0.9732490]),
        ([("1",)], ("{}{}{}",), [-0.6, 0.8]),  # every brace is filled
    ],
)
def test_averages_by_hand(
    words: list[tuple[str, ...]],
    templates: tuple[str, ...],
    expected: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path))
    rows = [[2.0, 0.0], [0.0, 7.0], [-3.0, 4.0], [0.0, 1.0]]  # prompts of 1, 2, 3 and 4 letters
    encoder = TextEncoder(
        NamedTower(rows), lambda prompts: torch.tensor([len(prompt) for prompt in prompts])
    )
    assert encoder.embed(words, templates)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_prompts_go_through_the_tower_in_batches(encoder: TextEncoder) -> None:
    prompts = [f"word {index}" for index in range(7)]
    torch.testing.assert_close(encoder.encode(prompts, batch=3), encoder.encode(prompts))
    assert encoder.tower.calls == 3 + 1


def test_embeddings_can_enter_a_training_step(encoder: TextEncoder) -> None:
    for _ in ("computed", "from the cache"):
        found = encoder.embed([("cat",)], ("a {}",))
        (torch.ones(1, 8, requires_grad=True) * found).sum().backward()


def test_templates_and_synonyms_are_averaged_as_unit_vectors(encoder: TextEncoder) -> None:
    templates = ("a {}", "the {}")
    found = encoder.embed([("sofa", "couch"), ("cat",)], templates)
    unit = {
        word: encoder.encode([template.replace("{}", word) for template in templates])
        for word in ("sofa", "couch", "cat")
    }
    for rows in unit.values():
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2))
    words = {word: F.normalize(rows.mean(dim=0), dim=-1) for word, rows in unit.items()}
    expected = torch.stack(
        [F.normalize((words["sofa"] + words["couch"]) / 2, dim=-1), words["cat"]]
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))


def test_embeddings_are_kept_on_disk(encoder: TextEncoder, tmp_path: Path) -> None:
    tower = encoder.tower
    assert isinstance(tower, CountingTower)
    first = encoder.embed([("cat",)], ("a {}",))
    calls = tower.calls
    assert torch.equal(encoder.embed([("cat",)], ("a {}",)), first)
    assert tower.calls == calls
    for words, templates in (
        ([("dog",)], ("a {}",)),
        ([("cat",)], ("the {}",)),
        ([("cat", "puss")], ("a {}",)),
    ):
        encoder.embed(words, templates)
    assert tower.calls == calls + 3  # everything that matters is in the key
    with torch.no_grad():
        tower.table.add_(1)
    other = TextEncoder(tower, tokenize)
    assert not torch.equal(other.embed([("cat",)], ("a {}",)), first)  # other weights, other key


BROKEN_HEADER = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'shape': (2, 8), ((("


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        b"PK\x03\x04",
        BROKEN_HEADER.ljust(192),
        "wrong shape",
        "wrong type",
        "nan",
        "folder",
    ],
)
def test_a_damaged_cache_is_made_again(
    encoder: TextEncoder, tmp_path: Path, content: object
) -> None:
    first = encoder.embed([("cat",), ("dog",)], ("a {}",))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    arrays = {
        "wrong shape": np.zeros((1, 8), dtype=np.float32),
        "wrong type": np.zeros((2, 8)),
        "nan": np.full((2, 8), np.nan, dtype=np.float32),
    }
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "folder":
        file.unlink()
        file.mkdir()
    else:
        np.save(file, arrays[str(content)])
    assert torch.equal(encoder.embed([("cat",), ("dog",)], ("a {}",)), first)


def test_a_cache_that_cannot_be_written_only_costs_time(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path / "file"))
    assert encoder.embed([("cat",)], ("a {}",)).shape == (1, 8)


def test_without_a_home_directory(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CASCADE_CLIP_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    encoder.embed([("cat",)], ("a {}",))
    assert [file.suffix for file in (tmp_path / "cascade_clip" / "text").iterdir()] == [".npy"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8), dtype=np.float32), r"shape \(2, 8\)"),
        (np.zeros((2, 9), dtype=np.float32), r"shape \(2, 8\)"),
        (np.zeros((2, 8), dtype=np.int64), "must hold floats"),
        (np.array([object()] * 2), r"not a \.npy file of numbers"),  # a pickle inside is refused
        (np.full((2, 8), np.inf, dtype=np.float16), "contains NaN or infinity"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "text.npy", array)
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "text.npy", 2, 8)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", BROKEN_HEADER.ljust(192), "npz"])
def test_files_that_hold_no_embeddings(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "text.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, text=np.zeros((2, 8), dtype=np.float32))
    with pytest.raises(ValueError, match=r"text\.npz is not a \.npy file of numbers"):
        load_embeddings(path, 2, 8)


def test_embeddings_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.full((2, 8), 0.3, dtype=np.float16))
    found = load_embeddings(tmp_path / "text.npy", 2, 8)
    assert found.dtype == torch.float32
    assert float(found[0, 0]) == float(np.float16(0.3))  # as stored, not normalised again
    with pytest.raises(FileNotFoundError, match="no text embeddings"):
        load_embeddings(tmp_path / "nowhere.npy", 2, 8)
