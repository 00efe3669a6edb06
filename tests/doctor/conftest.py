"""The healthy run that the doctor's tests share; its training takes half a minute."""

from __future__ import annotations

import pytest

from tests.doctor.cases import Case, make_healthy


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return fifty demonstrations of reach-v3, a policy that always succeeds, and its evaluation."""
    return make_healthy(tmp_path_factory.mktemp("doctor") / "healthy")
