"""The package: installs beside Hugging Face's `datasets`, carries its configuration, exports what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import act_kit

ROOT = Path(act_kit.__file__).parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheel unpacked beside a stand-in for Hugging Face's package, which has the same name."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"  # a build writes into its sources, and several tests may build at the same time
    shutil.copytree(ROOT / "act_kit", sources / "act_kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    built = subprocess.run([*command, folder, sources], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    site = tmp_path_factory.mktemp("site")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("whose = 'hugging face'\n")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"act_kit"}
        wheel.extractall(site)
    return site


def python(code: str, site: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(1, {str(site)!r})\n{code}"],
        capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hugging_faces_datasets_stays_importable_even_in_our_root(site: Path, tmp_path: Path) -> None:
    for cwd in (tmp_path, ROOT):
        assert python("import datasets, act_kit.datasets.store; print(datasets.whose)", site, cwd) == "hugging face"


def test_the_wheel_composes_configurations_and_renders_pages(site: Path, tmp_path: Path) -> None:
    code = (
        "import act_kit; from act_kit import TrainConfig, compose\n"
        "config = compose(TrainConfig, ['policy=act'])\n"
        "from jinja2 import Environment, PackageLoader\n"
        "names = Environment(loader=PackageLoader('act_kit')).list_templates()\n"
        "print(act_kit.__file__, config.policy.dim_model, len(names))"
    )
    file, width, templates = python(code, site, tmp_path).split()
    assert Path(file).is_relative_to(site)
    assert (width, int(templates)) == ("512", len(list((ROOT / "act_kit" / "templates").iterdir())))


def test_the_stages_stand_at_the_top_as_links() -> None:
    for stage in ("collection", "datasets", "eval", "configs"):
        assert (ROOT / stage).resolve() == ROOT / "act_kit" / stage
        assert not (ROOT / stage / "__init__.py").exists()


def test_the_public_interface_is_exact() -> None:
    assert set(act_kit.__all__) == set(act_kit._HOMES)
    for name in act_kit.__all__:
        assert getattr(act_kit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        _ = act_kit.Polcy
