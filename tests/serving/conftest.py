"""One loaded model for all tests of the servers."""

from __future__ import annotations

import pytest

from cascade_clip.inference.predictor import Predictor


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """The packaged `mini`; tests that change it make a `copy.copy`."""
    from cascade_clip.inference.loading import load_predictor

    return load_predictor("mini", device="cpu")
