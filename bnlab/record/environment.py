"""Where a run's figures come from: versions, processor, code; no host name and no user name."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core")


def environment() -> dict[str, Any]:
    """Return what can be said without torch; the caller adds device, threads and the data's fingerprint."""
    return {
        "bnlab": _version("bnlab"),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "os": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_git_state(),
    }


@cache
def _version(package: str) -> str:
    if package == "bnlab":
        from bnlab import __version__

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


@cache
def _git_state() -> dict[str, Any]:
    """Commit of the checkout that this code runs from; None when it is an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    commit = _output("git", "-C", str(here), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit or None, "git_dirty": bool(changes) if commit else None}


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
