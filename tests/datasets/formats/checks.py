"""Checks of the import of damaged and malicious files: an error of one line that names the file, and no output."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from act_kit.cli.data import convert
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError


def assert_rejected(path: Path, out: Path, expected: str = "") -> None:
    """Require an error of one line that contains ``expected``, and no output."""
    with pytest.raises(ActKitError) as caught:
        convert(path, out)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert expected in message, message
    assert not out.exists()
    assert not [entry for entry in out.parent.iterdir() if entry.name.startswith(f".{out.name}")]


def require_one_line_or_valid_dataset(path: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    message = ""
    try:
        convert(path, out)
    except ActKitError as error:
        message = str(error)
    assert "\n" not in message
    assert out.exists() == (not message)
    if not message:
        assert np.isfinite(EpisodeStore.open(out).steps("state")).all()
