"""Wheel and sdist: built from the tree, installed elsewhere, used in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from the sdist, not from the tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def run(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_wheel_holds_one_package_with_its_configs_agents_and_kernels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"a2d_lightning"}
    for name in ("callbacks/run_checkpoint.py", "configs/search.yaml", "configs/scale/laptop.yaml", "py.typed"):
        assert f"a2d_lightning/{name}" in names
    assert "a2d_lightning/bundled_teachers/pong_four_conv_42.safetensors" in names
    assert any(name.startswith("a2d_lightning/cpu/_kernels") for name in names)
    assert not [name for name in names if name.endswith(".c") or "tests" in name]


@pytest.mark.slow
def test_an_installed_wheel_searches_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    where = run(site, empty, sys.executable, "-c", "import a2d_lightning.callbacks as c; print(c.__file__)")
    assert where.stdout.strip() == str(site / "a2d_lightning" / "callbacks" / "__init__.py")
    steps = ["--data.total_env_steps", "20", "--data.env_steps_per_epoch", "20", "--data.evaluation_games", "1"]
    command = [str(site / "bin" / "a2d"), "fit", "--config", "search", "--config", "smoke", *steps]
    done = run(site, empty, sys.executable, *command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (empty / "runs" / "search" / "architectures" / "last.json").is_file()
    help_ = run(site, empty, sys.executable, "-m", "a2d_lightning", "--help")
    assert "random_architecture" in help_.stdout
