"""Run the command line: `python -m cascade_clip`."""

import sys

from cascade_clip.cli import main

if __name__ == "__main__":
    sys.exit(main())
