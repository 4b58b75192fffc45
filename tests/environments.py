"""Virtual environments of other Pythons and of the oldest supported dependencies, and the list of
these oldest versions.

    python tests/environments.py versions         write tests/oldest.txt again, from the lower
    bounds in pyproject.toml python tests/environments.py oldest           .venv-oldest: this
    Python, dependencies and extras at their lower bounds python tests/environments.py 3.12
    .venv-3.12: that Python, every dependency as new as it goes python tests/environments.py pythons
    one for each supported Python that is found here

An environment takes 6 GB. What is there already is kept; delete the folder to have it made again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OLDEST = ROOT / "tests" / "oldest.txt"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""Supported versions."""
EXTRAS = ("video", "wandb", "ray", "export", "serve")
"""Extras in the environment of the oldest versions. Gradio, of `web`, needs newer versions of what
the rest has in common with it."""
TOOLS = ("setuptools>=78.1.1", "pytest", "pytest-xdist", "hypothesis", "httpx", "pycocotools")
"""What tests need besides, as new as it goes."""
DONE = "installed"
"""File in an environment that is complete."""


def lowest_versions(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """`name==version` of the lower bound of every requirement of the project and of EXTRAS,
    sorted."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    rows = [
        *project["dependencies"],
        *(row for extra in EXTRAS for row in project["optional-dependencies"][extra]),
    ]
    bounds = [
        (row.name, bound.version)
        for row in map(Requirement, rows)
        for bound in row.specifier
        if bound.operator == ">="
    ]
    return sorted({f"{name}=={version}" for name, version in bounds}, key=str.lower)


def find_python(version: str) -> str | None:
    """The interpreter of this version: on the search path, or installed by pyenv."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates = [
        *sorted(pyenv.glob(f"{version}.*/bin/python")),
        *filter(None, [shutil.which(f"python{version}")]),
    ]
    for candidate in candidates:
        command = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.stdout.strip() == version:
            return str(candidate)
    return None


def environment_python(name: str) -> Path | None:
    """The interpreter of a complete environment, `oldest` or a version of Python."""
    folder = ROOT / f".venv-{name}"
    return folder / "bin" / "python" if (folder / DONE).exists() else None


def build(name: str) -> None:
    """Make an environment unless it is complete."""
    if environment_python(name) is not None:
        print(f".venv-{name} is there")
        return
    oldest = name == "oldest"
    interpreter = sys.executable if oldest else find_python(name)
    if interpreter is None:
        print(f"no Python {name} here; .venv-{name} is left out")
        return
    folder = ROOT / f".venv-{name}"
    subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    packages = (
        ["--constraint", str(OLDEST), "--editable", f".[{','.join(EXTRAS)}]", *TOOLS]
        if oldest
        else ["--editable", ".[dev]"]
    )
    subprocess.run([*install, *packages], cwd=ROOT, check=True)
    (folder / DONE).touch()
    print(f".venv-{name} is made")


def main(words: list[str]) -> None:
    """Do what the words say."""
    for word in words or ["pythons"]:
        if word == "versions":
            OLDEST.write_text("\n".join(lowest_versions()) + "\n", encoding="utf-8")
            continue
        for name in PYTHONS if word == "pythons" else [word]:
            if name != f"{sys.version_info.major}.{sys.version_info.minor}":
                build(name)


if __name__ == "__main__":
    main(sys.argv[1:])
