"""The command line: one file per command, and what commands share.

In: words of a command line. Out: an exit code; results are printed or written.
"""

from cascade_clip.cli.main import main
