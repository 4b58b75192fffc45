"""Dependencies: no version with a known hole is installed or allowed, and the source calls nothing
that runs what it reads.

`pip-audit` is asked where it is installed and reaches its database. The list below stands in for
it, and says why each bound in pyproject.toml is as high as it is.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from figures import Figure, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Rule:
    """What is known of a package."""

    minimum: str
    """First version without the holes."""
    reason: str
    refused: tuple[str, ...] = ()
    """Later versions that must not be used either."""


RULES = {
    "torch": Rule(
        "2.10.0",
        "code runs in torch.load in spite of weights_only: CVE-2025-32434 (before 2.6.0),"
        " CVE-2026-24747 (before 2.10.0)",
    ),
    "lightning": Rule(
        "2.4", "2.6.2 and 2.6.3 carry malicious code: CVE-2026-44484", ("2.6.2", "2.6.3")
    ),
    "pillow": Rule(
        "12.3.0",
        "memory errors and decompression bombs: CVE-2026-59197 to CVE-2026-59200, CVE-2026-55798,"
        " CVE-2026-40192",
    ),
    "pyyaml": Rule("5.4", "code runs in full_load: CVE-2020-14343"),
    "gradio": Rule(
        "6.20.0",
        "foreign addresses fetched and followed: CVE-2026-59806; paths outside the root:"
        " CVE-2026-49119",
    ),
    "starlette": Rule(
        "1.3.1",
        "form limits ignored: CVE-2026-54283; host header trusted: CVE-2026-48710 (before 1.0.1)",
    ),
    "python-multipart": Rule(
        "0.0.31",
        "denial of service: CVE-2026-53540, CVE-2026-42561, CVE-2026-40347; parser differential:"
        " CVE-2026-53538",
    ),
    "h11": Rule("0.16.0", "malformed chunked bodies accepted (request smuggling): CVE-2025-43859"),
    "ray": Rule(
        "2.56.0",
        "pickles run in Parquet and WebDataset readers: CVE-2026-41486, CVE-2026-57516; dashboard:"
        " CVE-2025-62593",
    ),
    "onnx": Rule(
        "1.21.0",
        "external data read outside the model's folder: CVE-2026-34446, CVE-2026-34447,"
        " CVE-2026-27489",
    ),
    "urllib3": Rule("2.7.0", "decompression bombs: CVE-2026-44432, CVE-2026-21441, CVE-2025-66418"),
    "requests": Rule("2.32.4", "credentials sent to another host: CVE-2024-47081"),
    "aiohttp": Rule("3.13.3", "decompression bombs: CVE-2025-69223"),
    "jinja2": Rule("3.1.6", "escape from the sandbox: CVE-2025-27516"),
    "werkzeug": Rule("3.0.6", "unlimited memory for forms: CVE-2024-49767"),
    "setuptools": Rule("78.1.1", "writes outside the target folder: CVE-2025-47273"),
    "idna": Rule("3.7", "quadratic time: CVE-2024-3651"),
}

FORBIDDEN = {
    "pickle.load": "runs what it reads",
    "pickle.loads": "runs what it reads",
    "yaml.load": "safe_load is the safe one",
    "yaml.unsafe_load": "runs what it reads",
    "yaml.full_load": "safe_load is the safe one",
    "eval": "runs what it reads",
    "exec": "runs what it reads",
    "os.system": "a shell",
    "os.popen": "a shell",
    "marshal.loads": "runs what it reads",
    "joblib.load": "runs what it reads",
}
"""Calls that the source must not make."""
NEEDED = {"torch.load": ("weights_only", True), "open_clip.load_checkpoint": ("weights_only", True)}
"""Calls that the source may make only with this keyword."""
REFUSED = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
"""Keywords with these values are refused in any call."""


def measure(quick: bool) -> Iterator[Figure]:
    """Figures of the database where it can be asked, the installed versions, the bounds and the
    calls."""
    if not quick:
        yield ask_database()
    yield check_installed()
    yield check_bounds(read_requirements(ROOT / "pyproject.toml"))
    yield check_calls(sorted((ROOT / "src").rglob("*.py")))


def ask_database() -> Figure:
    """Ask pip-audit for one package first, then for all that are installed."""
    tried = "installed packages in pip-audit's database"
    if util.find_spec("pip_audit") is None:
        return Figure(
            tried,
            f"not asked, pip-audit is not installed; the list of {len(RULES)} packages stands in",
            True,
        )
    probe = _pip_audit(
        ["--requirement", "/dev/stdin", "--no-deps", "--disable-pip"],
        f"pillow=={metadata.version('pillow')}\n",
    )
    if not probe or any("skip_reason" in row for row in probe):
        return Figure(
            tried,
            f"not asked, its database is not reachable; the list of {len(RULES)} packages"
            " stands in",
            True,
        )
    rows = _pip_audit(["--local"])
    asked = [row for row in rows if "skip_reason" not in row]
    holes = [
        f"{row['name']} {row['version']} {hole['id']}" for row in asked for hole in row["vulns"]
    ]
    return Figure(
        tried,
        f"{len(asked)} of {len(rows)} packages known, {len(holes)} holes"
        f" {', '.join(holes)}".rstrip(),
        not holes,
    )


def _pip_audit(options: list[str], text: str = "") -> list[dict]:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        *options,
    ]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
        return json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []


def check_installed() -> Figure:
    """Compare what is installed with the list."""
    versions = {
        canonicalize_name(found.metadata["Name"]): found.version
        for found in metadata.distributions()
    }
    present = {name: versions[name] for name in RULES if name in versions}
    wrong = [
        f"{name} {version} (needs {RULES[name].minimum})"
        for name, version in present.items()
        if Version(version) < Version(RULES[name].minimum) or version in RULES[name].refused
    ]
    found = (
        f"{len(present)} of {len(RULES)} listed packages are installed, {len(wrong)} with a known"
        f" hole {', '.join(wrong)}".rstrip()
    )
    return Figure("installed versions against the list", found, not wrong)


def read_requirements(path: Path) -> list[Requirement]:
    """Every requirement of a pyproject.toml, those of extras too."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    rows = [
        *project["dependencies"],
        *(row for extra in project.get("optional-dependencies", {}).values() for row in extra),
    ]
    return [Requirement(row) for row in rows]


def check_bounds(requirements: list[Requirement]) -> Figure:
    """Check that no requirement admits a version with a known hole."""
    listed = [row for row in requirements if canonicalize_name(row.name) in RULES]
    loose = sorted(
        {str(row) for row in listed if not _is_tight(row, RULES[canonicalize_name(row.name)])}
    )
    found = (
        f"{len(listed)} of {len(requirements)} requirements are on the list, {len(loose)} too loose"
        f" {', '.join(loose)}".rstrip()
    )
    return Figure("bounds in pyproject.toml against the list", found, bool(listed) and not loose)


def _is_tight(row: Requirement, rule: Rule) -> bool:
    lowest = [
        Version(bound.version) for bound in row.specifier if bound.operator in (">=", "==", "~=")
    ]
    return (
        bool(lowest)
        and max(lowest) >= Version(rule.minimum)
        and not any(row.specifier.contains(version) for version in rule.refused)
    )


def check_calls(paths: list[Path]) -> Figure:
    """Look for calls that run what they read."""
    count, wrong = 0, []
    for path in paths:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            wrong.append(
                f"{path.name}:{error.lineno} is no Python"
                f" {sys.version_info.major}.{sys.version_info.minor}"
            )
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                count += 1
                wrong += [f"{path.name}:{node.lineno} {reason}" for reason in _objections(node)]
    found = (
        f"{count} calls in {len(paths)} files, {len(wrong)} that run what they read"
        f" {', '.join(wrong)}".rstrip()
    )
    return Figure("calls in the source", found, count > 0 and not wrong)


def _objections(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    keywords = {
        word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)
    }
    found = [name] if name in FORBIDDEN else []
    keyword, value = NEEDED.get(name, (None, None))
    if keyword is not None and keywords.get(keyword) is not value:
        found.append(f"{name} without {keyword}={value}")
    return found + [
        f"{name} with {word}={value}"
        for word, value in REFUSED.items()
        if keywords.get(word) is value
    ]


if __name__ == "__main__":
    raise SystemExit(main(measure))
