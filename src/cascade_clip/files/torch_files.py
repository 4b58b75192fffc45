"""PyTorch files from anywhere: nothing in them is executed, and their size limits their claims."""

import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade_clip.errors import WeightsError

MOST_REPEATED = 2**28
"""Values of a tensor at most that holds one stored value several times, as `expand` makes them."""


def read_pickle(path: Path, *, mmap: bool = False) -> Any:
    """The tensors and plain values in a file that `torch.save` wrote, on the CPU.

    Args:
        path: the file.
        mmap: leave the tensors of a zip on the disk until they are used.

    Raises:
        ValueError: damaged, objects that would have to be executed, or tensors that the file does
            not hold.
    """
    _check_container(path)
    try:
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path)
        )
    except Exception as error:  # readers of files from elsewhere raise many kinds
        text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split()) or type(error).__name__
        known = re.search(r"Unsupported \w+:? [\w. ]*\w", text)  # behind advice to trust the file
        reason = known[0] if known else text[:160]
        problem = "damaged, or it holds objects that are never executed here; nothing in it was run"
        raise WeightsError(f"{problem} ({reason})") from error
    for tensor in _tensors(loaded):
        _check_tensor(tensor)
    return loaded


def _check_container(path: Path) -> None:
    """Refuse archives that unpack to more than they are, and tar, which old PyTorch executes."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
            unpacked, size = sum(part.file_size for part in parts), path.stat().st_size
            if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                claim = f"its parts claim {unpacked:,} bytes, compressed, in a file of {size:,}"
                raise WeightsError(f"{claim}; PyTorch writes none of that kind")
        elif tarfile.is_tarfile(path):
            raise WeightsError("a tar archive of an old PyTorch, which is never executed here")
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"a damaged archive ({error})") from error


def _tensors(loaded: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, lists and tuples, each container visited once."""
    waiting, visited = [loaded], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (Mapping, list, tuple, set)) and id(item) not in visited:
            visited.add(id(item))
            waiting += [*item.values(), *item.keys()] if isinstance(item, Mapping) else [*item]


def _check_tensor(tensor: Tensor) -> None:
    """Refuse tensors that reach beyond what is stored, and repeat it (stride 0) without measure."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = f"{tensor.layout} on {tensor.device}"
        raise WeightsError(f"a tensor of kind {kind}; plain ones are expected")
    stored, size, values = tensor.untyped_storage().nbytes(), tensor.element_size(), tensor.numel()
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    steps = sum((side - 1) * stride for side, stride in strides)
    end = tensor.storage_offset() + 1 + steps if values else 0  # of the last value
    if end * size > stored or values > max(MOST_REPEATED, stored // size):
        raise WeightsError(f"a tensor claims shape {tuple(tensor.shape)} and stores {stored} bytes")
