import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.metadata.v3 import ArrayV3Metadata

from ckptlin.dtypes import DTYPES
from ckptlin.errors import NotAStoreError
from ckptlin.ingest import ingest
from ckptlin.store import zarr_plugin  # noqa: F401 (metadata are parsed without a group)
from ckptlin.store.chunk_codec import COMPRESSORS, BloscCompressor
from ckptlin.store.layout import param_chunk_shape
from ckptlin.store.metadata import (
    CommittedCheckpoint,
    CommittedFile,
    FitRecord,
    StoreRecord,
    dimension_names,
    dump,
    nodes_of,
    root_document,
    weights_metadata,
)
from ckptlin.trajectory import TensorSpec
from tests.strategies import element_types, shapes, tensor_names

HASHES = st.text("0123456789abcdef", min_size=32, max_size=32)


@st.composite
def records(draw):
    names = draw(st.lists(tensor_names(), min_size=1, max_size=4, unique=True))
    tensors = tuple(TensorSpec(n, draw(element_types()), draw(shapes())) for n in names)
    steps = sorted(draw(st.sets(st.integers(0, 1 << 40), max_size=5)))
    checkpoints = tuple(
        CommittedCheckpoint(
            step=step,
            source=draw(st.text(max_size=9)),
            fingerprint=draw(HASHES),
            files=(CommittedFile("model.safetensors", draw(st.integers(8, 1 << 50)), 1, draw(HASHES)),),
            sidecars={"config.json": draw(HASHES)},
        )
        for step in steps
    )
    fit = FitRecord("id", tuple(steps), tuple(c.fingerprint for c in checkpoints), 3, "x", tuple(names[:1]), {})
    return StoreRecord(
        tensors=tensors,
        param_chunks={t.name: param_chunk_shape(t.shape, 16) for t in tensors},
        chunk_steps=draw(st.integers(12, 16)),
        compressor=draw(st.sampled_from(list(COMPRESSORS.values()))),
        checkpoints=checkpoints,
        commit=draw(st.integers(1, 99)),
        created_by="ckptlin 9",
        config=draw(st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5))),
        tied=draw(st.dictionaries(tensor_names(), tensor_names(), max_size=2)),
        blobs=draw(st.dictionaries(HASHES, st.integers(0, 1 << 31), max_size=3)),
        fits=draw(st.sampled_from([{}, {"default": fit}])),
    )


@given(records())
def test_a_record_survives_json(record):
    document = json.loads(dump(root_document(record)))
    assert StoreRecord.from_document(document, "store") == record


@given(records())
def test_the_same_record_gives_the_same_bytes(record):
    assert dump(root_document(record)) == dump(root_document(replace(record)))


# zarr says so of every codec of numcodecs'.
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@given(records())
def test_the_root_holds_every_node_s_metadata_as_it_lies_beside_the_chunks(record):
    root = root_document(record)
    assert root["consolidated_metadata"]["metadata"] == nodes_of(record)
    assert all(path == path.strip("/") and "//" not in path for path in nodes_of(record))
    arrays = [node for node in nodes_of(record).values() if node["node_type"] == "array"]
    for node in arrays:
        ArrayV3Metadata.from_dict(json.loads(dump(node)))


@given(records())
def test_every_tensor_has_a_trajectory_with_dimensions_of_its_own(record):
    nodes = nodes_of(record)
    named = [name for t in record.tensors for name in dimension_names(t)]
    assert len(named) == len(set(named))
    arrays = {p: n for p, n in nodes.items() if p.startswith("weights/") and p != "weights/step"}
    assert len(arrays) == len(record.tensors)
    for spec in record.tensors:
        node = weights_metadata(record, spec)
        assert node in arrays.values()
        assert node["shape"] == [len(record.steps), *spec.shape]
        assert node["chunk_grid"]["configuration"]["chunk_shape"][0] == record.chunk_steps
        assert node["dimension_names"][0] == "step"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)
def test_an_array_s_codecs_are_the_delta_bytes_blosc_and_a_checksum(dtype):
    codecs = COMPRESSORS["lz4"].codecs(dtype, delta=True)
    assert [c["name"] for c in codecs] == ["ckptlin.step_delta", "bytes", "blosc", "crc32c"]
    assert codecs[2]["configuration"]["typesize"] == np.dtype(dtype.numpy).itemsize
    assert BloscCompressor("zstd", 1).codecs(dtype, delta=False) == [
        codecs[1],
        {"name": "blosc", "configuration": {**codecs[2]["configuration"], "cname": "zstd", "clevel": 1}},
        codecs[3],
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.zarr)
def test_an_array_of_an_archive_says_all_of_its_codec_and_has_blosc_if_its_type_is_of_one_byte(dtype):
    codecs = COMPRESSORS["archive"].codecs(dtype, delta=True)
    if dtype.itemsize == 1:
        assert codecs == COMPRESSORS["zstd"].codecs(dtype, delta=True)
        return
    assert [c["name"] for c in codecs] == ["ckptlin.step_delta", "numcodecs.pcodec", "crc32c"]
    assert codecs[1]["configuration"] == {
        "level": 8,
        "mode_spec": "classic",
        "delta_spec": "none",
        "paging_spec": "equal_pages_up_to",
        "equal_pages_up_to": 262144,
    }


@pytest.mark.parametrize("change", [{"one_byte": None}, {"one_byte": {}}, {"more": 1}, {"cname": None}])
def test_a_record_with_a_garbled_compressor_is_no_store(make_run, tmp_path, change):
    store = ingest(make_run((0, 10)), tmp_path / "store", compressor="archive").store
    document = root_document(store.record)
    document["attributes"]["ckptlin"]["compressor"] |= change
    with pytest.raises(NotAStoreError, match="lacks or garbles"):
        StoreRecord.from_document(document, "store")
