"""Provenance of a file: the software versions that determine its content, and the commit of the code."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """Return the versions of act_kit and of the packages, architecture and libm that determine a simulation."""
    libc = " ".join(filter(None, platform.libc_ver())) or platform.system()
    packages = {name: version(name) for name in ("act_kit", "metaworld", "mujoco", "numpy")}
    return packages | {"platform": f"{platform.machine()} {libc}"}


def numeric_environment() -> dict[str, str]:
    """Return :func:`versions` and a digest of norms, whose last bit depends on the processor's rounding."""
    import numpy as np

    vectors = np.random.default_rng(0).normal(size=(1000, 3))
    norms = np.array([np.linalg.norm(vector) for vector in vectors])
    return versions() | {"rounding of norms": hashlib.sha256(norms.tobytes()).hexdigest()[:8]}


@functools.cache
def git_commit() -> str | None:
    """Return the commit that this package runs from, or None if it is installed rather than checked out."""
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
