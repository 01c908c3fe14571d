import subprocess
import sys

import ckptlin.checkpoints


def test_importing_the_readers_loads_no_heavy_package():
    heavy = ("torch", "transformers", "safetensors", "zarr", "dask", "numba", "matplotlib")
    code = f"import sys, ckptlin.checkpoints; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists_and_the_list_is_sorted():
    names = ckptlin.checkpoints.__all__
    assert names == sorted(set(names))
    assert all(hasattr(ckptlin.checkpoints, name) for name in names)
