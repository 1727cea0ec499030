"""Tags that say where a run comes from: code version, machine, libraries."""

from __future__ import annotations

import getpass
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

GIT_SECONDS = 5


def context_tags(folder: Path) -> dict[str, str]:
    """Tags for a run started in this folder: user, command, versions, platform, git commit."""
    tags = {
        "mlflow.source.name": sys.argv[0] or "python",
        "mlflow.source.type": "LOCAL",
        "python.version": platform.python_version(),
        "platform": platform.platform(),
        "mlx_ft.host": platform.node(),
    }
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (ImportError, KeyError, OSError):  # no such user in a container
        tags["mlflow.user"] = "unknown"
    for package in ("mlx-ft", "mlx", "mlx-lm"):
        try:
            tags[f"{package.replace('-', '_')}.version"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tags | git_tags(folder)


def git_tags(folder: Path) -> dict[str, str]:
    """Commit, branch and whether tracked files differ from it; empty outside a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    tags = {"mlflow.source.git.commit": commit}
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if branch is not None:
        tags["mlflow.source.git.branch"] = branch
    if changes is not None:
        tags["mlflow.source.git.dirty"] = str(bool(changes)).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
