"""CLIP's weights from every place they may lie in, and clear errors for every way that fails."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from archives import random_clip, write_openai_archive
from cascade_clip import clip as module
from cascade_clip.clip import load_clip
from cascade_clip.config import ClipConfig
from conftest import TINY_CLIP


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openai_archive(tmp_path_factory.mktemp("openai") / "ViT-B-16.pt", random_clip(TINY_CLIP), 64)


def from_file(path: object, **changes: Any) -> ClipConfig:
    return ClipConfig(**{"name": "tiny", "weights": str(path), "architecture": TINY_CLIP, "sha256": "any", **changes})


def write_folder(folder: Path, model: nn.Module, settings: dict[str, Any] = TINY_CLIP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def test_openai_archive(archive: Path) -> None:
    """Read for its state dict; half precision becomes float32; the settings in it are no weights."""
    found = load_clip(from_file(archive))
    expected = random_clip(TINY_CLIP)
    own = found.visual.transformer.resblocks[3].mlp.c_fc.weight
    assert own.dtype == torch.float32
    assert torch.equal(own, expected.visual.transformer.resblocks[3].mlp.c_fc.weight.half().float())
    assert found.text is not None and found.tokenizer is not None
    assert not any(parameter.requires_grad for parameter in found.text.parameters())


def test_an_archive_needs_a_known_hash(archive: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert load_clip(from_file(archive, sha256=digest)).fingerprint
    published = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    with pytest.raises(ValueError, match=f"{digest}, expected {published}"):  # by its name
        load_clip(from_file(archive, sha256=""))
    renamed = tmp_path / "mine.pt"
    renamed.write_bytes(archive.read_bytes())
    with pytest.raises(ValueError, match=rf"{digest} is not a published one; .*model\.clip\.sha256"):
        load_clip(from_file(renamed, sha256=""))
    with pytest.raises(ValueError, match="expected 0000"):
        load_clip(from_file(archive, sha256="0000"))


def test_quickgelu_must_fit(archive: Path) -> None:
    with pytest.raises(ValueError, match=r"set model\.clip\.name to ViT-B-16-quickgelu"):
        load_clip(ClipConfig(name="ViT-B-16", weights="openai"))  # found before any download
    with pytest.raises(FileNotFoundError, match=r"tags \[.*openai"):  # GELU weights have no tag under a QuickGELU name
        load_clip(ClipConfig(name="ViT-B-16-quickgelu", weights="laion2b_s34b_b88k"))
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_clip(from_file(archive, architecture={**TINY_CLIP, "quick_gelu": False}))


class Malicious:
    """A pickle that writes a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "executed"))


def write_damaged(kind: str, path: Path, archive: Path) -> Path:
    makers: dict[str, Callable[[], Any]] = {
        "truncated archive.pt": lambda: path.write_bytes(archive.read_bytes()[:-5000]),
        "text.pt": lambda: path.write_text("not weights"),
        "empty.pt": lambda: path.write_bytes(b""),
        "truncated.safetensors": lambda: path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}"),
        "malicious.pt": lambda: torch.save({"state_dict": {"a": Malicious(path.parent / "harm")}}, path),
        "malicious.pkl": lambda: path.write_bytes(pickle.dumps({"a": Malicious(path.parent / "harm")})),
        "another model.pt": lambda: torch.save(nn.Linear(3, 3).state_dict(), path),
        "half a model.pt": lambda: torch.save(dict(list(random_clip(TINY_CLIP).state_dict().items())[:9]), path),
    }
    makers[kind]()
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "truncated archive.pt",
        "text.pt",
        "empty.pt",
        "truncated.safetensors",
        "malicious.pt",
        "malicious.pkl",
        "another model.pt",
        "half a model.pt",
    ],
)
def test_damaged_and_foreign_files(kind: str, archive: Path, tmp_path: Path) -> None:
    path = write_damaged(kind, tmp_path / kind, archive)
    with pytest.raises(ValueError, match=kind.split(".")[0]) as found:
        load_clip(from_file(path))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "harm").exists()


def test_state_dicts_and_safetensors(tmp_path: Path) -> None:
    model = random_clip(TINY_CLIP)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "trained.pt")
    save_file(dict(model.state_dict()), tmp_path / "trained.safetensors")
    prints = {load_clip(from_file(tmp_path / f"trained.{suffix}", sha256="")).fingerprint for suffix in ("pt", "safetensors")}
    assert len(prints) == 1


def test_local_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", random_clip(TINY_CLIP))
    found = load_clip(ClipConfig(name=f"local-dir:{folder}"))
    images = torch.randn(1, 3, 64, 64)
    expected = open_clip.create_model(f"local-dir:{folder}").eval()
    torch.testing.assert_close(found.visual(images), expected.encode_image(images))
    assert found.architecture is not None and found.architecture["embed_dim"] == 32
    (folder / "open_clip_model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ValueError, match="clip"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))
    with pytest.raises(FileNotFoundError, match=r"no open_clip_config\.json"):
        load_clip(ClipConfig(name=f"local-dir:{tmp_path}"))
    with pytest.raises(FileNotFoundError, match="carries no CLIP named 'nothing'"):
        load_clip(ClipConfig(name="package:nothing"))


def test_hub_folder_from_the_offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"cannot reach the hub for owner/clip.*local-dir:FOLDER"):
        load_clip(ClipConfig(name="hf-hub:owner/clip"))
    repository = tmp_path / "models--owner--clip"
    write_folder(repository / "snapshots" / ("a" * 40), random_clip(TINY_CLIP))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert load_clip(ClipConfig(name="hf-hub:owner/clip")).fingerprint
    with pytest.raises(ValueError, match="not a repository name"):
        load_clip(ClipConfig(name="hf-hub:what is this"))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (ClipConfig(name="ViT-B-17"), ValueError, "knows no model 'ViT-B-17'; close names: .*ViT-B-16"),
        (ClipConfig(weights="nowhere.pt"), FileNotFoundError, "neither a file nor one of ViT-B-16-quickgelu's tags .*openai"),
        (ClipConfig(name="coca_ViT-B-32", weights="random"), ValueError, "not a plain two-tower CLIP"),
        (ClipConfig(name="x", weights="random", architecture={"wings": 2}), ValueError, "not an open_clip model configuration"),
    ],
)
def test_names_that_mean_nothing(config: ClipConfig, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_clip(config)


# Downloads: a server on this machine plays the place that open_clip's tag points to.


class Server(http.server.ThreadingHTTPServer):
    body = b""
    claimed: int | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.send_response(200)
        self.send_header("Content-Length", str(server.claimed or len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.body = archive.read_bytes()
        digest = hashlib.sha256(running.body).hexdigest()
        url = f"http://127.0.0.1:{running.server_port}/openaipublic/{digest}/ViT-B-16.pt"
        monkeypatch.setattr(module.open_clip, "get_pretrained_cfg", lambda name, tag: {"url": url, "hf_hub": "", "quick_gelu": True})
        monkeypatch.setattr(module.open_clip, "get_model_config", lambda name: dict(TINY_CLIP))
        monkeypatch.setattr(module, "_known_hashes", lambda: {"ViT-B-16.pt": digest})
        monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path / "cache"))
        yield running
        running.shutdown()


def test_a_tag_is_downloaded_once_with_its_hash(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = ClipConfig(tokenizer=False)
    first = load_clip(config)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ViT-B-16.pt"]
    assert "351 MB" in caplog.text and "licence: MIT" in caplog.text
    server.body = b"gone"
    assert load_clip(config).fingerprint == first.fingerprint
    (tmp_path / "cache" / "ViT-B-16.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is damaged.*delete it"):
        load_clip(config)


@pytest.mark.parametrize("fault", ["wrong file", "cut off"])
def test_nothing_half_written_stays(server: Server, tmp_path: Path, fault: str) -> None:
    if fault == "cut off":
        server.claimed = len(server.body)
        server.body = server.body[:1000]
    else:
        server.body = b"another file"
    with pytest.raises(FileNotFoundError, match=r"cannot download ViT-B-16\.pt \(about 351 MB\).*Get it from http.* put it at .*cache"):
        load_clip(ClipConfig(tokenizer=False))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_connection(server: Server, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match=r"cannot download ViT-B-16\.pt"):
        load_clip(ClipConfig(tokenizer=False))


def test_fingerprints_follow_the_weights(archive: Path, tmp_path: Path) -> None:
    """The same for every file that gives the same float32 values; another one for any other weight."""
    loaded = load_clip(from_file(archive))
    model = random_clip(TINY_CLIP)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not any(part in name for part in ("ln_", "embedding", "logit_scale")):
                parameter.copy_(parameter.half().float())
    assert load_clip(ClipConfig(name=f"local-dir:{write_folder(tmp_path / 'same', model)}")).fingerprint == loaded.fingerprint
    with torch.no_grad():
        model.visual.proj[0, 0] += 1e-3
    assert load_clip(ClipConfig(name=f"local-dir:{write_folder(tmp_path / 'other', model)}")).fingerprint != loaded.fingerprint
    assert load_clip(from_file("random", weights="random")).fingerprint == ""
