"""Names and shapes of the shipped models' weights."""

from __future__ import annotations

import pytest
from observe import model_shapes, read_fixture

FROZEN = read_fixture("weights.json")


@pytest.mark.parametrize("name", FROZEN)
def test_weights_keep_names_and_shapes(name: str) -> None:
    assert model_shapes(name) == FROZEN[name]
