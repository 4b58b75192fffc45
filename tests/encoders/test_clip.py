"""CLIP's weights from every place they may lie in, and clear errors for every way that fails."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from archives import random_clip, write_openai_archive
from cascade_clip.config import ClipConfig
from cascade_clip.encoders import weights as module
from cascade_clip.encoders.clip import load_clip
from tiny_models import TINY_CLIP


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openai_archive(
        tmp_path_factory.mktemp("openai") / "ViT-B-16.pt", random_clip(TINY_CLIP), 64
    )


def from_file(path: object, **changes: Any) -> ClipConfig:
    return ClipConfig(
        **{
            "name": "tiny",
            "weights": str(path),
            "architecture": TINY_CLIP,
            "sha256": "any",
            **changes,
        }
    )


def write_folder(folder: Path, model: nn.Module, settings: dict[str, Any] = TINY_CLIP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, settings)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": settings, "preprocess_cfg": {}})
    )


def test_openai_archive(archive: Path) -> None:
    """Read for its state dict; half precision becomes float32; the settings in it are no
    weights."""
    found = load_clip(from_file(archive))
    expected = random_clip(TINY_CLIP)
    own = found.visual.transformer.resblocks[3].mlp.c_fc.weight
    assert own.dtype == torch.float32
    assert torch.equal(own, expected.visual.transformer.resblocks[3].mlp.c_fc.weight.half().float())
    assert found.text is not None and found.tokenizer is not None
    assert not any(parameter.requires_grad for parameter in found.text.parameters())
    assert not found.visual.training and not found.text.training
    assert found.text.visual is None  # each tower is held once


def test_random_weights_are_the_same_each_time_and_draw_nothing() -> None:
    config = from_file("random", weights="random", tokenizer=False)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load_clip(config).visual.state_dict()
    # a seed set by the user means the same with every CLIP
    assert torch.equal(torch.rand(3), expected)
    second = load_clip(config).visual.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_archive_needs_a_known_hash(archive: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert load_clip(from_file(archive, sha256=digest.upper())).fingerprint
    published = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    with pytest.raises(ValueError, match=f"{digest}, expected {published}"):  # by its name
        load_clip(from_file(archive, sha256=""))
    renamed = tmp_path / "mine.pt"
    renamed.write_bytes(archive.read_bytes())
    with pytest.raises(
        ValueError, match=rf"{digest} is not a published one; .*model\.clip\.sha256"
    ):
        load_clip(from_file(renamed, sha256=""))
    with pytest.raises(ValueError, match="expected 0000"):
        load_clip(from_file(archive, sha256="0000"))


def test_quickgelu_must_fit(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("started a download")
    )
    with pytest.raises(ValueError, match=r"set model\.clip\.name to ViT-B-16-quickgelu"):
        load_clip(ClipConfig(name="ViT-B-16", weights="openai"))  # found before any download
    # GELU weights have no tag under a QuickGELU name
    with pytest.raises(FileNotFoundError, match=r"tags \[.*openai"):
        load_clip(ClipConfig(name="ViT-B-16-quickgelu", weights="laion2b_s34b_b88k"))
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_clip(from_file(archive, architecture={**TINY_CLIP, "quick_gelu": False}))
    monkeypatch.setattr(
        module.open_clip, "get_pretrained_cfg", lambda name, tag: {"url": "x", "quick_gelu": False}
    )
    with pytest.raises(
        ValueError,
        match=r"trained with GELU, .* computes QuickGELU; set model\.clip\.name to ViT-B-16$",
    ):
        load_clip(ClipConfig(name="ViT-B-16-quickgelu", weights="other"))


class Malicious:
    """A pickle that writes a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "executed"))


class RaisesTypeError:
    """A pickle that torch refuses with a TypeError when it reads safely, and builds when it does
    not."""

    def __reduce__(self) -> Any:
        return (OrderedDict, (), (None, {"attribute": 1}))


def break_directory(data: bytes) -> bytes:
    """A zip file whose table of contents is overwritten with zeros."""
    start = int.from_bytes(data[data.rindex(b"PK\x05\x06") + 16 :][:4], "little")
    return data[:start] + bytes(40) + data[start + 40 :]


def other_model(**vision: Any) -> dict[str, torch.Tensor]:
    return dict(
        random_clip({**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], **vision}}).state_dict()
    )


def write_damaged(kind: str, path: Path, archive: Path) -> Path:
    harm = Malicious(path.parent / "harm")
    makers: dict[str, Callable[[], Any]] = {
        "truncated archive.pt": lambda: path.write_bytes(archive.read_bytes()[:-5000]),
        "broken directory.pt": lambda: path.write_bytes(break_directory(archive.read_bytes())),
        "text.pt": lambda: path.write_text("not weights"),
        "empty.pt": lambda: path.write_bytes(b""),
        "truncated.safetensors": lambda: path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}"),
        "malicious.pt": lambda: torch.save({"state_dict": {"a": harm}}, path),
        "malicious.pkl": lambda: path.write_bytes(pickle.dumps({"a": harm})),
        "malicious behind an error.pt": lambda: torch.save(
            {"a": RaisesTypeError(), "b": harm}, path
        ),
        "another model.pt": lambda: torch.save(nn.Linear(3, 3).state_dict(), path),
        "half a model.pt": lambda: torch.save(
            dict(list(random_clip(TINY_CLIP).state_dict().items())[:9]), path
        ),
        "other image size.pt": lambda: torch.save(other_model(image_size=96), path),
        "list.pt": lambda: torch.save([torch.zeros(1)], path),
        "nothing.pt": lambda: torch.save({}, path),
        "numbers.pt": lambda: torch.save({"state_dict": {"a": 1}}, path),
        "numbered.pt": lambda: torch.save({1: torch.zeros(1)}, path),
        "numpy.npz": lambda: np.savez(path, a=np.zeros(3)),
    }
    makers[kind]()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated archive.pt", ""),
        ("broken directory.pt", ""),  # still looks like a zip
        ("text.pt", "damaged"),
        ("empty.pt", ""),
        ("truncated.safetensors", ""),
        ("malicious.pt", "nothing in it was run"),
        ("malicious.pkl", "nothing in it was run"),
        # open_clip opens it again, unsafely
        ("malicious behind an error.pt", "nothing in it was run"),
        ("another model.pt", r"Missing key.*visual\.class_embedding"),
        ("half a model.pt", r"Missing key.*visual\.transformer"),
        # never resized in silence
        (
            "other image size.pt",
            r"visual\.positional_embedding has shape \(37, 64\), expected \(17, 64\)",
        ),
        ("list.pt", "holds a list, no state dict"),
        ("nothing.pt", "no state dict"),
        ("numbers.pt", "no state dict of named tensors"),
        ("numbered.pt", "no state dict of named tensors"),
        ("numpy.npz", ""),
    ],
)
def test_damaged_and_foreign_files(
    kind: str, message: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as torch before 2.6: pickles run unless told otherwise
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write_damaged(kind, tmp_path / kind, archive)
    with pytest.raises(
        ValueError, match=f"{kind} does not hold weights of tiny: .*{message}"
    ) as found:
        load_clip(from_file(path))
    assert "\n" not in str(found.value) and "\x1b" not in str(found.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["malicious.pt", "malicious behind an error.pt"])
def test_a_folder_with_a_pickle(
    kind: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    weights = tmp_path / "open_clip_pytorch_model.bin"
    write_settings(tmp_path, TINY_CLIP)
    torch.save(random_clip(TINY_CLIP).state_dict(), weights)
    assert load_clip(ClipConfig(name=f"local-dir:{tmp_path}")).fingerprint
    write_damaged(kind, weights, archive)
    with pytest.raises(ValueError, match=r"cannot load the CLIP in .*nothing in it was run"):
        load_clip(ClipConfig(name=f"local-dir:{tmp_path}"))
    assert not (tmp_path / "harm").exists()


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    state = random_clip(TINY_CLIP).state_dict()
    state["visual.proj"][0, 0] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"NaN or infinity in \['visual\.proj'\]: the file is damaged"
    ):
        load_clip(from_file(tmp_path / "weights.pt"))


def test_state_dicts_and_safetensors(tmp_path: Path) -> None:
    model = random_clip(TINY_CLIP)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}},
        tmp_path / "trained.pt",
    )
    save_file(dict(model.state_dict()), tmp_path / "trained.safetensors")
    prints = {
        load_clip(from_file(tmp_path / f"trained.{suffix}", sha256="")).fingerprint
        for suffix in ("pt", "safetensors")
    }
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


def test_a_folder_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "clip", random_clip(TINY_CLIP))
    assert load_clip(ClipConfig(name="local-dir:~/clip")).fingerprint


def test_the_tokenizer_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may need a package that we do not install, and then only text does; it must not bring
    code."""
    own = {**TINY_CLIP["text_cfg"], "hf_tokenizer_name": "owner/clip"}
    folder = write_folder(tmp_path / "clip", random_clip(TINY_CLIP), {**TINY_CLIP, "text_cfg": own})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install transformers; .*model\.clip\.tokenizer"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))
    found = load_clip(ClipConfig(name=f"local-dir:{folder}", tokenizer=False))
    assert found.text is None and found.tokenizer is None
    write_settings(
        folder, {**TINY_CLIP, "text_cfg": {**own, "tokenizer_kwargs": {"trust_remote_code": True}}}
    )
    with pytest.raises(ValueError, match="run code of its own"):
        load_clip(ClipConfig(name=f"local-dir:{folder}"))


def test_hub_folder_from_the_offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"cannot reach the hub for owner/clip.*local-dir:FOLDER"
    ):
        load_clip(ClipConfig(name="hf-hub:owner/clip"))
    repository = tmp_path / "models--owner--clip"
    write_folder(repository / "snapshots" / ("a" * 40), random_clip(TINY_CLIP))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert load_clip(ClipConfig(name="hf-hub:owner/clip")).fingerprint
    assert load_clip(ClipConfig(name=f"hf-hub:owner/clip@{'a' * 40}")).fingerprint
    with pytest.raises(FileNotFoundError, match="cannot reach the hub for owner/clip"):
        # another revision is not the same model
        load_clip(ClipConfig(name=f"hf-hub:owner/clip@{'b' * 40}"))
    with pytest.raises(ValueError, match="not a repository name"):
        load_clip(ClipConfig(name="hf-hub:what is this"))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            ClipConfig(name="ViT-B-17"),
            ValueError,
            "knows no model 'ViT-B-17'; close names: .*ViT-B-16",
        ),
        (
            ClipConfig(weights="nowhere.pt"),
            FileNotFoundError,
            "neither a file nor one of ViT-B-16-quickgelu's tags .*openai",
        ),
        (
            ClipConfig(name="coca_ViT-B-32", weights="random"),
            ValueError,
            "no plain two-tower CLIP",
        ),
        (
            ClipConfig(name="x", weights="random", architecture={"wings": 2}),
            ValueError,
            "not an open_clip model configuration",
        ),
        (
            ClipConfig(name="x", weights="random", architecture={**TINY_CLIP, "vision_cfg": 3}),
            ValueError,
            "not an open_clip model conf",
        ),
        (ClipConfig(name="hf-hb:owner/clip"), ValueError, "knows no model 'hf-hb:owner/clip'"),
    ],
)
def test_names_that_mean_nothing(config: ClipConfig, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_clip(config)


# Downloads: a server on this machine plays the place that open_clip's tag points to.


class Server(http.server.ThreadingHTTPServer):
    body = b""
    claimed: int | None = None
    chunked = False
    status = 200


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.send_response(server.status)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(server.claimed or len(server.body)))
        self.end_headers()
        self.wfile.write(b"fffff\r\n" + server.body if server.chunked else server.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        running.body = archive.read_bytes()
        digest = hashlib.sha256(running.body).hexdigest()
        url = f"http://127.0.0.1:{running.server_port}/openaipublic/{digest}/ViT-B-16.pt"
        monkeypatch.setattr(
            module.open_clip,
            "get_pretrained_cfg",
            lambda name, tag: {"url": url, "hf_hub": "", "quick_gelu": True},
        )
        monkeypatch.setattr(module.open_clip, "get_model_config", lambda name: dict(TINY_CLIP))
        monkeypatch.setattr(module, "_known_hashes", lambda: {"ViT-B-16.pt": digest})
        monkeypatch.setenv("CASCADE_CLIP_CACHE", str(tmp_path / "cache"))
        yield running
        running.shutdown()


def test_a_tag_is_downloaded_once_with_its_hash(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ClipConfig(tokenizer=False)
    first = load_clip(config)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ViT-B-16.pt"]
    assert "351 MB" in caplog.text and "licence: MIT" in caplog.text
    server.body = b"gone"
    assert load_clip(config).fingerprint == first.fingerprint
    (tmp_path / "cache" / "ViT-B-16.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is damaged.*delete it"):
        load_clip(config)


@pytest.mark.parametrize("fault", ["wrong file", "cut off", "cut off in a chunk", "not there"])
def test_nothing_half_written_stays(server: Server, tmp_path: Path, fault: str) -> None:
    server.claimed = len(server.body) if fault == "cut off" else None
    server.chunked = fault == "cut off in a chunk"
    server.status = 404 if fault == "not there" else 200
    server.body = server.body[:1000] if fault.startswith("cut off") else b"another file"
    with pytest.raises(
        FileNotFoundError,
        match=(
            r"cannot download ViT-B-16\.pt \(about 351 MB\).*Get it from http.* put it at .*cache"
        ),
    ):
        load_clip(ClipConfig(tokenizer=False))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_connection(server: Server, tmp_path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match=r"cannot download ViT-B-16\.pt"):
        load_clip(ClipConfig(tokenizer=False))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights in the hub's cache, laid out as its client does: a link in a snapshot to a file named
    by its hash."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--clip"
    for folder in ("blobs", "refs", f"snapshots/{'a' * 40}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    save_file(dict(random_clip(TINY_CLIP).state_dict()), tmp_path / "weights.safetensors")
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    blob = (tmp_path / "weights.safetensors").rename(repository / "blobs" / digest)
    (repository / "snapshots" / ("a" * 40) / "open_clip_model.safetensors").symlink_to(blob)
    return blob


def test_a_tag_whose_weights_lie_on_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"hf_hub": "owner/clip/", "quick_gelu": True}
    monkeypatch.setattr(module.open_clip, "get_pretrained_cfg", lambda name, tag: entry)
    monkeypatch.setattr(module.open_clip, "get_model_config", lambda name: dict(TINY_CLIP))
    config = ClipConfig(weights="tag", tokenizer=False)
    assert load_clip(config).fingerprint
    hub.write_bytes(hub.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"is damaged: its SHA-256 is not {hub.name}; delete it"):
        load_clip(config)
    entry["hf_hub"] = "owner/other/weights.bin"
    with pytest.raises(
        FileNotFoundError,
        match=(
            r"open_clip_model\.safetensors from the hub repository owner/other"
            r" .*model\.clip\.weights"
        ),
    ):
        load_clip(config)


def test_the_hub_stands_in_for_an_address_that_fails(
    server: Server, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {**module.open_clip.get_pretrained_cfg("", ""), "hf_hub": "owner/clip/"}
    monkeypatch.setattr(module.open_clip, "get_pretrained_cfg", lambda name, tag: entry)
    server.status = 404
    assert load_clip(ClipConfig(tokenizer=False)).fingerprint


def test_fingerprints_follow_the_weights(archive: Path, tmp_path: Path) -> None:
    """The same for every file that gives the same float32 values; another one for any other
    weight."""
    loaded = load_clip(from_file(archive))
    model = random_clip(TINY_CLIP)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not any(part in name for part in ("ln_", "embedding", "logit_scale")):
                parameter.copy_(parameter.half().float())
    assert (
        load_clip(
            ClipConfig(name=f"local-dir:{write_folder(tmp_path / 'same', model)}")
        ).fingerprint
        == loaded.fingerprint
    )
    with torch.no_grad():
        model.visual.proj[0, 0] = torch.nextafter(model.visual.proj[0, 0], torch.tensor(9.0))
    assert (
        load_clip(
            ClipConfig(name=f"local-dir:{write_folder(tmp_path / 'other', model)}")
        ).fingerprint
        != loaded.fingerprint
    )
    assert load_clip(from_file("random", weights="random")).fingerprint == ""
