"""The command line: a table of commands whose flags and help grow out of typed functions.

Nothing heavy is imported before a command is called.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One row of the table."""

    target: str
    """`module:function`; its signature gives the flags, its docstring the help."""
    summary: str


COMMANDS = {
    "quickstart": Command(
        "cascade_clip.cli.quickstart:quickstart",
        "five-minute tour on the built-in world, without a download",
    ),
    "segment": Command(
        "cascade_clip.cli.segment:segment",
        "label every pixel of your images with your own class names",
    ),
    "web": Command(
        "cascade_clip.cli.web:web",
        "open a local web page: upload a picture, type names, see the result",
    ),
    "serve": Command("cascade_clip.cli.serve:serve", "answer segmentation requests over HTTP"),
    "train": Command("cascade_clip.cli.train:train", "train a model from a YAML file and flags"),
    "evaluate": Command("cascade_clip.cli.evaluate:evaluate", "score a model on labelled images"),
    "compare": Command(
        "cascade_clip.cli.compare:compare", "say how sure a difference between two models is"
    ),
    "reproduce": Command(
        "cascade_clip.cli.reproduce:reproduce",
        "run the paper's tables and figures, and say whether they hold here",
    ),
    "threshold": Command(
        "cascade_clip.cli.threshold:threshold",
        "choose the score below which a pixel is none of the names",
    ),
    "calibration": Command(
        "cascade_clip.cli.calibration:calibration",
        "choose what is subtracted from the scores of seen classes",
    ),
    "verify": Command(
        "cascade_clip.cli.evaluate:verify",
        "evaluate a checkpoint again and compare with its stored figures",
    ),
    "export onnx": Command(
        "cascade_clip.cli.export:onnx",
        "write a model as ONNX, with a runner that needs no torch",
    ),
    "export torch": Command(
        "cascade_clip.cli.export:torch", "write a model as a torch.export program"
    ),
    "export text": Command(
        "cascade_clip.cli.export:text", "write other class names for an exported model"
    ),
    "export check": Command(
        "cascade_clip.cli.export:check",
        "compare exported files with their model: exactness, speed, mIoU",
    ),
    "push": Command("cascade_clip.cli.push:push", "upload a model with its model card to the hub"),
    "import": Command(
        "cascade_clip.cli.models:import_file",
        "turn a state dict of the released programs into a checkpoint folder",
    ),
    "data prepare": Command(
        "cascade_clip.cli.data_prepare:prepare",
        "bring the original downloads of a data set into its folders",
    ),
    "data check": Command(
        "cascade_clip.cli.data_check:check",
        "say whether images, masks and class list fit together",
    ),
    "sandbox pretrain": Command(
        "cascade_clip.cli.sandbox:pretrain", "make the mini CLIP of the built-in world again"
    ),
    "sandbox preview": Command(
        "cascade_clip.cli.sandbox:preview",
        "draw scenes of the built-in world with their masks",
    ),
    "sandbox export": Command(
        "cascade_clip.cli.sandbox:export", "write the built-in world as image and mask folders"
    ),
    "cost": Command(
        "cascade_clip.cli.models:cost",
        "print parameters and operations, our way and the published way",
    ),
    "analyse similarity": Command(
        "cascade_clip.cli.analyse:similarity", "draw how alike patches are, block by block"
    ),
    "analyse stages": Command(
        "cascade_clip.cli.analyse:stages",
        "draw the masks of every stage, and as they are added",
    ),
    "analyse cka": Command(
        "cascade_clip.cli.analyse:cka", "draw how alike blocks are (centred kernel alignment)"
    ),
    "benchmark": Command(
        "cascade_clip.cli.benchmark:benchmark",
        "measure this machine, against a textbook variant",
    ),
    "profile": Command(
        "cascade_clip.cli.benchmark:profile",
        "show where the time of an image or a training step goes",
    ),
    "env": Command("cascade_clip.cli.models:env", "print versions and devices, for bug reports"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a defect of this program, 2 bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        _write(sys.stdout, usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        _write(sys.stdout, f"cascade-clip {version('cascade-clip')}")
        return 0
    name = _command_name(words)
    group = {
        command: row for command, row in COMMANDS.items() if command.startswith(f"{words[0]} ")
    }
    if name is None and group and (len(words) == 1 or words[1] in ("-h", "--help")):
        _write(
            sys.stdout,
            "\n".join(f"  {command:<18} {row.summary}" for command, row in group.items()),
        )
        return 0
    if name is None:
        import difflib

        close = difflib.get_close_matches(
            " ".join(words[:2] if group else words[:1]), COMMANDS, n=3
        )
        if close:
            return _fail(
                f"unknown command {' '.join(words[: 1 + bool(group)])!r}; did you mean"
                f" {' or '.join(close)}?"
            )
        return _fail(f"unknown command {words[0]!r}; choose one of: {', '.join(COMMANDS)}")
    return run(name, words[len(name.split()) :], debug=debug)


def usage() -> str:
    """The help of the whole program."""
    rows = "\n".join(f"  {name:<18} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: cascade-clip COMMAND [arguments]\n\nZero-shot semantic segmentation with a cascade"
        f" of CLIP's stages.\n\ncommands:\n{rows}\n\n  cascade-clip COMMAND --help says what a"
        " command takes; --debug shows tracebacks; --version."
    )


def run(name: str, words: list[str], *, debug: bool) -> int:
    """Run a command with its arguments; bad input becomes one line and exit code 2."""
    # Threads that spin while they wait make everything ten times slower as soon as loading or
    # another program shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    thresholds = gc.get_threshold()
    gc.set_threshold(
        max(thresholds[0], 50_000), *thresholds[1:]
    )  # imports make many objects to keep: a tenth of them was looking for cycles
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cascade_clip").setLevel(logging.INFO)
    # it reports every try to reach the hub; what came of it is our error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        module, _, function = COMMANDS[name].target.partition(":")
        handler: Callable[..., Any] = getattr(importlib.import_module(module), function)
        from cascade_clip.cli.arguments import ArgumentError, call_with_arguments

        try:
            return int(call_with_arguments(handler, f"cascade-clip {name}", words) or 0)
        except ArgumentError as error:
            return _fail(f"{error}\n(cascade-clip {name} --help says what it takes)", debug=debug)
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__, debug=debug)
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        return _fail(
            f"defect in cascade-clip, {type(error).__name__}: {error}; run again with --debug and"
            " report it",
            code=1,
            debug=debug,
        )
    finally:
        gc.set_threshold(*thresholds)


def _command_name(words: Sequence[str]) -> str | None:
    """The command that the first one or two words name."""
    names = [" ".join(words[:2]), words[0]]
    return next((name for name in names if name in COMMANDS), None)


def _fail(message: str, code: int = 2, *, debug: bool = False) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    _write(sys.stderr, f"cascade-clip: error: {message}")
    return code


def _write(stream: Any, text: str) -> None:
    stream.write(text + "\n")
