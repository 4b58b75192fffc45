"""Attention on a CPU that keeps its inputs alone, against the textbook formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_clip.ops import attention


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MANY_WEIGHTS", 1)


def draw(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4))  # queries, keys, values: (B, H, n or m, d)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def formula(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, dropout: float) -> Tensor:
    weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)  # (B, H, n, m)
    return weights * kept / (1 - dropout) @ value


def slopes_of(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype)
    return list(torch.autograd.grad((result * weight).sum(), inputs))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_value_and_gradients_are_those_of_the_formula(dropout: float) -> None:
    inputs = draw(torch.float64)
    torch.manual_seed(3)
    kept = torch.rand(2, 3, 5, 7) >= dropout
    torch.manual_seed(3)
    found = attention._HeadByHead.apply(*inputs, dropout)
    expected = formula(*inputs, kept.double(), dropout)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        slopes_of(found, inputs), slopes_of(expected, inputs), rtol=1e-10, atol=1e-12
    )
    assert torch.autograd.gradcheck(lambda *args: attention._HeadByHead.apply(*args, 0.0), inputs)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    query, key, _ = draw()
    value = torch.ones(2, 3, 7, 4)
    torch.manual_seed(0)
    found = torch.stack([attention.attend(query, key, value, 0.25) for _ in range(400)])
    assert found.mean().item() == pytest.approx(1, abs=0.02)
    assert found.std().item() > 0.1


def test_bfloat16_is_close_to_float32_and_stays_bfloat16() -> None:
    exact, short = draw(), draw(torch.bfloat16)
    found = attention.attend(*short)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), F.scaled_dot_product_attention(*exact), rtol=0.02, atol=0.02
    )
    for one, other in zip(
        slopes_of(found, short),
        slopes_of(F.scaled_dot_product_attention(*exact), exact),
        strict=True,
    ):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.03)


def test_only_inputs_and_one_byte_a_weight_are_kept() -> None:
    inputs = draw()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        attention.attend(*inputs, 0.1)
    assert sorted(
        (tuple(tensor.shape), tensor.dtype) for tensor in kept if tensor.dtype == torch.bool
    ) == [((2, 3, 5, 7), torch.bool)]
    assert sum(tensor.numel() for tensor in kept if tensor.dtype != torch.bool) == sum(
        tensor.numel() for tensor in inputs
    )


def test_joining_the_heads_copies_nothing() -> None:
    found = attention.attend(*draw(), 0.1)
    joined = found.transpose(1, 2).flatten(2)
    assert joined.shape == (2, 5, 12)
    assert joined.data_ptr() == found.data_ptr()


def test_small_or_plain_attention_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw()
    torch.testing.assert_close(
        attention.attend(*inputs), F.scaled_dot_product_attention(*inputs), rtol=0, atol=0
    )
    monkeypatch.setattr(attention, "MANY_WEIGHTS", 10**6)
    monkeypatch.setattr(
        attention._HeadByHead, "apply", lambda *args: pytest.fail("too small for it")
    )
    torch.manual_seed(1)
    found = attention.attend(*inputs, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(
        found, F.scaled_dot_product_attention(*inputs, dropout_p=0.5), rtol=0, atol=0
    )
