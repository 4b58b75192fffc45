"""Every command and flag that existed before the modules moved is still accepted."""

from __future__ import annotations

import pytest
from observe import flags, is_known, read_fixture

FROZEN = read_fixture("commands.json")


@pytest.mark.parametrize("command", FROZEN)
def test_command_keeps_its_flags(command: str) -> None:
    lost = set(FROZEN[command]) - set(flags(command))
    assert not {
        name
        for name in lost
        if not name.startswith("--") or not is_known(command, *name.partition("=")[::2])
    }


def test_hidden_spellings_are_known_and_others_are_not() -> None:
    """What the test above relies on; none of these calls runs its command."""
    assert is_known("segment", "--flip")
    assert is_known("segment", "--model")
    assert is_known("segment", "--device", "cpu")
    assert not is_known("segment", "--device", "never")
    assert not is_known("segment", "--never-existed")
