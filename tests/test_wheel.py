"""What is installed: the wheel's packages and data."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="building a wheel without a network needs hatchling, which `dev` has")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The files of the wheel."""
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_the_demos_base_model_is_in_it(names):
    base = ROOT / "ckptlin/demo/base"
    files = {f"ckptlin/demo/base/{path.name}" for path in base.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "base.json"} <= {
        path.name for path in base.iterdir()
    }
    assert files <= names


def test_it_has_two_packages_and_nothing_of_the_tests(names):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ckptlin", "ckptlin_cli"}
    assert "ckptlin_cli/demo.py" in names
