"""Where the tests find their files, and the repository around them."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SOURCES = ROOT / "src" / "cascade_clip"
REFERENCE = TESTS / "reference"
PHOTOS = TESTS / "photos"
