"""docs/store-format.md is enough to read a store by: its reader and its worked example are run."""

import hashlib
import json
import re
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from ckptlin.dtypes import from_zarr
from ckptlin.gram import gram
from ckptlin.ingest import ingest
from ckptlin.kernels.step_delta import FLOAT, delta_encode
from ckptlin.naming import encode_name
from ckptlin.store.chunk_codec import COMPRESSORS, encode_chunk
from ckptlin.store.layout import blocks_of
from ckptlin.store.metadata import FORMAT_VERSION
from tests.runs import MODEL, weights_at
from tests.store.test_golden import GOLDEN, expected_bits
from tests.strategies import tensor_names

PAGE = (Path(__file__).parents[2] / "docs/store-format.md").read_text()
EXAMPLE = np.array([[0.02, 0.0, -0.5], [0.02, -0.0, -0.5], [0.0201, 0.001, -0.498]], ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def reader():
    """Return the names that the page's reader defines."""
    source = PAGE[PAGE.index("## A whole reader") :]
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", source, re.DOTALL)[1], namespace)
    assert "ckptlin" not in re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)
    return namespace


def test_the_reader_of_the_documentation_reads_the_golden_store(reader):
    steps, tensors = reader["read_store"](GOLDEN / "store-v1")
    expected = json.loads((GOLDEN / "store-v1.json").read_text())
    assert steps == expected["steps"]
    assert sorted(tensors) == sorted(expected["tensors"])
    for name, entry in expected["tensors"].items():
        np.testing.assert_array_equal(tensors[name].view(from_zarr(entry["dtype"]).bits), expected_bits(entry))


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_reader_of_the_documentation_reads_what_is_written_today(reader, make_run, tmp_path, compressor):
    model = {**MODEL, "one.byte": ((3, 5), ml_dtypes.float8_e5m2)}
    ingest(make_run(range(18), model=model), tmp_path / "store", compressor=compressor)
    steps, tensors = reader["read_store"](tmp_path / "store")
    assert steps == list(range(18))
    for name in model:
        expected = np.stack([weights_at(step, model)[name] for step in steps])
        assert tensors[name].dtype == expected.dtype
        assert tensors[name].tobytes() == expected.tobytes()


@given(name=tensor_names())
def test_names_are_encoded_as_documented(reader, name):
    assert reader["encode"](name) == encode_name(name)


def test_the_worked_example_is_right():
    bits = EXAMPLE.view(np.uint16)
    encoded = bits.copy()
    delta_encode(encoded, FLOAT)
    ordered = np.where(bits >> 15, ~bits, bits | 0x8000).astype(np.uint16)
    for row in range(3):
        cells = [" ".join(f"{x:04x}" for x in rows[row]) for rows in (bits, ordered, encoded)]
        assert " | ".join(f"`{cell}`" for cell in cells) in PAGE
    for name, heading in [("pack", "of the next section:"), ("lz4", "And with lz4:")]:
        listing = re.search(heading + r"\n\n(.*?)\n\n", PAGE, re.DOTALL)[1]
        found = [re.match(r" +((?:[0-9a-f]{2} {1,2})+)", line)[1] for line in listing.splitlines()]
        data = encode_chunk(bits.copy(), from_zarr("bfloat16"), COMPRESSORS[name])
        assert bytes.fromhex(" ".join(found)) == data


def test_the_fingerprint_is_as_documented(make_run, tmp_path):
    store = ingest(make_run((0, 10)), tmp_path / "store").store
    weights = weights_at(10)
    items = []
    for name, spec in store.tensors.items():
        flat = weights[name].reshape(-1)
        blocks = blocks_of(spec, store.record.param_chunks[name])
        crcs = [google_crc32c.value(flat[b.start : b.stop].tobytes()) for b in blocks]
        items.append([name, spec.dtype.zarr, list(spec.shape), crcs])
    text = json.dumps(sorted(items))
    assert store.checkpoints[1].fingerprint == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_the_arrays_of_gram_matrices_are_as_documented(make_run, tmp_path):
    store = ingest(make_run((0, 10)), tmp_path / "store").store
    grams = gram(store)
    nodes = {path for path in (store.path / "gram").rglob("zarr.json") if "samples" not in path.parts[-3:]}
    table = PAGE[PAGE.index("## Gram matrices") : PAGE.index("## Why these codecs")]
    arrays = {path.parent.relative_to(store.path).as_posix() for path in nodes} - {"gram", "gram/matrices"}
    tensors = {f"gram/matrices/{encode_name(name)}" for name in grams.matrices}
    assert arrays - tensors - {"gram/samples"} == {"gram/step", "gram/step_other", "gram/rounding"}
    for name in (
        "`step`",
        "`step_other`",
        "`rounding`",
        "`gram/matrices/<tensor>`",
        "`gram/samples/<data type>`",
    ):
        assert name in table
    record = json.loads((store.path / "zarr.json").read_text())["attributes"]["ckptlin"]["gram"]
    name = "model.layers.0.mlp.experts.up_proj"
    flat = weights_at(10)[name].reshape(-1)
    size = min(record["sample_size"], flat.size)
    chosen = [i * (flat.size - 1) // (size - 1) for i in range(size)]
    np.testing.assert_array_equal(grams.samples[name][1], flat[chosen])


def test_the_fields_of_the_record_are_documented(make_run, tmp_path):
    run = make_run((0, 10))
    # The field for jumps is there where one is: as the page writes it, between the two steps.
    jumps = re.search(r"such as `(\[.*?\])`", PAGE)[1].replace("20", "0").replace("40", "10")
    (run / "ckptlin-train.json").write_text(f'{{"jumps": {jumps}}}')
    gram(ingest(run, tmp_path / "store").store)
    record = json.loads((tmp_path / "store/zarr.json").read_text())["attributes"]["ckptlin"]
    assert record["format_version"] == FORMAT_VERSION == 1
    table = PAGE[PAGE.index("## The record") : PAGE.index("**Hashes**")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(record)
    first = record["checkpoints"][0]
    for field in (*first, *first["files"][0], *record["tensors"][0], *record["gram"], *record["jumps"][0]):
        assert f"`{field}`" in table
