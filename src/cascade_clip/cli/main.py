"""The command line: a table of commands whose flags and help grow out of typed functions.

Nothing heavy is imported before a command is called.
"""

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from cascade_clip.cli.exit_codes import ExitCode
from cascade_clip.errors import explain_error


class Command(NamedTuple):
    """One row of the table."""

    target: str
    """`module:function`; its signature gives the flags, its docstring the help."""
    summary: str


_SUMMARIES = {
    "quickstart": "five-minute tour on the built-in world, without a download",
    "segment": "label every pixel of your images with your own class names",
    "web": "open a local web page: upload an image, type class names, see the result",
    "serve": "answer segmentation requests over HTTP",
    "train": "train a model from a YAML file and flags",
    "evaluate": "score a model on labelled images",
    "compare": "say how sure a difference between two models is",
    "reproduce": "run the paper's tables and figures, and say whether they hold here",
    "threshold": "choose the score below which a pixel is none of the names",
    "calibration": "choose what is subtracted from the scores of seen classes",
    "verify": "evaluate a checkpoint again and compare with its stored figures",
    "export onnx": "write a model as ONNX, with a runner that needs no torch",
    "export torch": "write a model as a torch.export program",
    "export text": "write other class names for an exported model",
    "export check": "compare exported files with their model: exactness, speed, mIoU",
    "push": "upload a model with its model card to the hub",
    "import": "turn a state dict of the released programs into a checkpoint folder",
    "data prepare": "bring the original downloads of a data set into its folders",
    "data check": "say whether images, masks and class list fit together",
    "sandbox pretrain": "make the mini CLIP of the built-in world again",
    "sandbox preview": "draw scenes of the built-in world with their masks",
    "sandbox export": "write the built-in world as image and mask folders",
    "cost": "print parameters and operations, our way and the published way",
    "analyse similarity": "draw how alike patches are, block by block",
    "analyse stages": "draw the masks of every stage, and as they are added",
    "analyse cka": "draw how alike blocks are (centred kernel alignment)",
    "benchmark": "measure this machine, against a textbook variant",
    "profile": "show where the time of an image or a training step goes",
    "env": "print versions and devices, for bug reports",
}
_PLACES = {
    "verify": "evaluate:verify",
    "import": "models:import_file",
    "data prepare": "data_prepare:prepare",
    "data check": "data_check:check",
    "cost": "models:cost",
    "profile": "benchmark:profile",
    "env": "models:env",
}
"""Commands that are not `first word:last word`."""
COMMANDS = {
    name: Command(
        f"cascade_clip.cli.{_PLACES.get(name, f'{name.split()[0]}:{name.split()[-1]}')}", summary
    )
    for name, summary in _SUMMARIES.items()
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        return _answer(usage())
    if words[0] == "--version":
        from importlib.metadata import version

        return _answer(f"cascade-clip {version('cascade-clip')}")
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is not None:
        return run(name, words[len(name.split()) :], debug=debug)
    group = {name: row for name, row in COMMANDS.items() if name.startswith(f"{words[0]} ")}
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        return _answer("\n".join(f"  {name:<18} {row.summary}" for name, row in group.items()))
    import difflib

    given = " ".join(words[:2] if group else words[:1])
    if close := difflib.get_close_matches(given, COMMANDS, n=3):
        return _fail(f"unknown command {given!r}; did you mean {' or '.join(close)}?")
    return _fail(f"unknown command {words[0]!r}; choose one of: {', '.join(COMMANDS)}")


def usage() -> str:
    """The help of the whole program."""
    rows = "\n".join(f"  {name:<18} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: cascade-clip COMMAND [arguments]\n\nZero-shot semantic segmentation with a cascade"
        f" of CLIP's stages.\n\ncommands:\n{rows}\n\n  cascade-clip COMMAND --help says what a"
        " command takes; --debug shows tracebacks; --version."
    )


def run(name: str, words: list[str], *, debug: bool) -> int:
    """Run a command with its arguments and return its exit code; errors become one line."""
    # threads that spin while they wait make everything ten times slower where cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    thresholds = gc.get_threshold()
    # imports make many objects to keep: a tenth of them was looking for cycles
    gc.set_threshold(max(thresholds[0], 50_000), *thresholds[1:])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cascade_clip").setLevel(logging.INFO)
    # it reports every try to reach the hub; what came of it is our error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with _ending_at_sigterm():
            module, _, function = COMMANDS[name].target.partition(":")
            handler: Callable[..., Any] = getattr(importlib.import_module(module), function)
            from cascade_clip.cli.arguments import call_with_arguments

            return int(call_with_arguments(handler, f"cascade-clip {name}", words) or ExitCode.DONE)
    except BrokenPipeError:
        os._exit(ExitCode.DONE)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            import traceback

            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            return _fail("interrupted", ExitCode.INTERRUPTED)
        if text := explain_error(error):
            return _fail(text)
        from cascade_clip.files import report_defect  # what no user can mend goes to a file

        return _fail(report_defect(error), ExitCode.DEFECT)
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that temporary files are removed.

    Commands with an end of their own (`train`, `serve`, `web`) take the signal themselves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker has nothing to remove
            os._exit(ExitCode.TERMINATED)
        raise SystemExit(ExitCode.TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _answer(text: str) -> int:
    sys.stdout.write(text + "\n")
    return ExitCode.DONE


def _fail(message: str, code: int = ExitCode.BAD_INPUT) -> int:
    sys.stderr.write(f"cascade-clip: error: {message}\n")
    return code
