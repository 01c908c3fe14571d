import json
import os
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.checkpoints import build_header, parse_header, read_header
from ckptlin.checkpoints.safetensors_header import library_order
from ckptlin.dtypes import DTYPES, from_safetensors
from ckptlin.errors import IncompleteCheckpointError, InputError, MalformedCheckpointError
from ckptlin.trajectory import TensorSpec

TORCH_TYPES = {d.safetensors: getattr(torch, d.zarr) for d in DTYPES}
F32 = from_safetensors("F32")

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
models = st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=8)


def write_file(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(
    model=models,
    metadata=st.none() | st.dictionaries(st.text('ab"\\\n\x01é\u2028', max_size=5), names, max_size=1),
)
def test_the_header_of_the_safetensors_library_is_understood_and_built_again_byte_for_byte(model, metadata):
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in model.items()]
    data = safetensors.torch.save(
        {spec.name: torch.zeros(spec.shape, dtype=TORCH_TYPES[spec.dtype.safetensors]) for spec in specs},
        metadata,
    )
    raw = data[8 : 8 + int.from_bytes(data[:8], "little")]
    header = parse_header(raw, source="file")
    assert header.raw == raw
    assert header.file_bytes == len(data)
    assert {spec.name: spec for spec in specs} == header.tensors
    assert header.metadata == metadata
    assert header.prefix == data[: header.data_start]
    assert build_header(library_order(specs), metadata) == raw


@given(model=models)
def test_a_built_header_is_read_by_the_safetensors_library(model):
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in model.items()]
    raw = build_header(specs)
    header = parse_header(raw, source="file")
    assert list(header.tensors.values()) == specs or any(spec.num_bytes == 0 for spec in specs)
    assert header.data_start % 8 == 0
    loaded = dict(safetensors.deserialize(header.prefix + bytes(header.file_bytes - header.data_start)))
    assert {name: tuple(entry["shape"]) for name, entry in loaded.items()} == {s.name: s.shape for s in specs}


def test_reading_a_header_reads_no_weights(save_tensors, monkeypatch):
    path = save_tensors("model.safetensors", {"w": np.zeros(1000, np.float32)})
    read = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: read.append((at, preadv(fd, buffers, at))) or read[-1][1]
    )
    file, header = read_header(path)
    assert max(at + count for at, count in read) == header.data_start
    assert file.num_bytes == path.stat().st_size == header.file_bytes
    assert file.mtime_ns == path.stat().st_mtime_ns
    assert (file.name, file.header) == ("model.safetensors", header.raw)


def test_a_file_without_tensors_is_read(save_tensors):
    _, header = read_header(save_tensors("empty.safetensors", {}))
    assert not header.tensors


def test_padding_is_kept(tmp_path):
    path = write_file(tmp_path / "m.safetensors", json.dumps({"w": tensor()}).encode() + b" " * 13, bytes(8))
    assert read_header(path)[0].header.endswith(b"}" + b" " * 13)


@pytest.mark.parametrize("num_bytes", [0, 7])
def test_a_file_shorter_than_its_length_field_is_incomplete(tmp_path, num_bytes):
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(num_bytes))
    with pytest.raises(IncompleteCheckpointError, match=rf"m.safetensors has {num_bytes} bytes"):
        read_header(path)


def test_a_header_longer_than_the_file_is_incomplete(save_tensors):
    path = save_tensors("m.safetensors")
    os.truncate(path, 20)
    with pytest.raises(IncompleteCheckpointError, match=r"cut short inside its header: it has 20 bytes"):
        read_header(path)


def test_a_file_of_zeros_is_incomplete(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(100))
    with pytest.raises(IncompleteCheckpointError, match="begins with zeros"):
        read_header(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(IncompleteCheckpointError, match="git lfs pull"):
        read_header(path)


@pytest.mark.parametrize(("change", "what"), [(-1, "is cut short"), (1, "has bytes after its last tensor")])
def test_a_file_of_another_size_than_its_header_describes_is_incomplete(save_tensors, change, what):
    path = save_tensors("m.safetensors")
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(
        IncompleteCheckpointError, match=rf"m.safetensors {what}.* {size} bytes.* {size + change};"
    ):
        read_header(path)


def test_a_file_that_shrinks_while_its_header_is_read_is_incomplete(save_tensors, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: 0 if at else preadv(fd, buffers, at))
    with pytest.raises(IncompleteCheckpointError, match="was cut short while its header was read"):
        read_header(save_tensors("m.safetensors"))


def test_a_vanished_file_is_incomplete(tmp_path):
    with pytest.raises(IncompleteCheckpointError, match=r"m.safetensors is missing"):
        read_header(tmp_path / "m.safetensors")


def test_a_header_beyond_the_limit_is_malformed(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001) + b"{}")
    with pytest.raises(MalformedCheckpointError, match="claims a header of 100000001 bytes"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"PK\x03\x04 not a header", "begins with b'PK"),
        (b" {}", "begins with"),
        (b"{", "not valid JSON"),
        (b'{"w": \xff}', "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"w\\ud800": 1}', "not valid JSON"),
        (b'{"w": {"dtype":"F32","dtype":"F32"}}', "the key `dtype` occurs twice"),
        (b'{"w": 1, "w": 1}', "the key `w` occurs twice"),
        ({"__metadata__": {"format": 1}}, "`__metadata__` is not a mapping of strings"),
        ({"w": []}, "tensor `w` lacks"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "tensor `w` lacks"),
        ({"w": tensor(shape=(-2,))}, r"shape \[-2\]"),
        ({"w": tensor(shape=(2.0,))}, r"shape \[2.0\]"),
        ({"w": tensor(shape=(True,))}, r"shape \[True\]"),
        ({"w": tensor(shape=(2**70,))}, "not a list of sizes"),
        ({"w": tensor(shape=(2**62,) * 1000)}, "larger than any file"),
        ({"w": tensor(offsets=(0, 8, 9))}, "not two positions"),
        ({"w": tensor(offsets=(-8, 0))}, "not two positions"),
        ({"w": tensor(offsets=(8, 0))}, "span -8"),
        ({"w": tensor(offsets=(0, 9))}, "takes 8 bytes, but its offsets span 9"),
        ({"w": tensor(offsets=(1, 9))}, "begins at byte 1 instead of 0 and leaves a gap"),
        (
            {"v": tensor(), "w": tensor(offsets=(9, 17))},
            "tensor `w` begins at byte 9 instead of 8 and leaves a gap",
        ),
        (
            {"v": tensor(), "w": tensor(offsets=(4, 12))},
            "tensor `w` begins at byte 4 instead of 8 and overlaps",
        ),
        ({"v": tensor(), "w": tensor()}, "tensor `w` begins at byte 0 instead of 8 and overlaps"),
    ],
)
def test_a_header_that_breaks_the_format_is_malformed(tmp_path, header, what):
    path = write_file(tmp_path / "m.safetensors", header, bytes(17))
    with pytest.raises(MalformedCheckpointError, match=what) as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("dtype", ["C64", "F4", "bfloat16", 7, ["F32"]])
def test_a_dtype_without_support_is_named_with_its_tensor(tmp_path, dtype):
    path = write_file(tmp_path / "m.safetensors", {"w": tensor(dtype)}, bytes(8))
    with pytest.raises(MalformedCheckpointError, match=r"tensor `w` in .*m.safetensors has dtype"):
        read_header(path)


def test_tensors_come_in_the_order_of_offsets(tmp_path):
    header = {
        "a": tensor(offsets=(8, 16)),
        "b": tensor(offsets=(0, 8)),
        "c": tensor(shape=(0, 3), offsets=(8, 8)),
    }
    _, parsed = read_header(write_file(tmp_path / "m.safetensors", header, bytes(16)))
    assert list(parsed.tensors) == ["b", "c", "a"]
    assert parsed.offsets["a"] == parsed.data_start + 8


@pytest.mark.parametrize("names", [("w", "w"), ("__metadata__",)])
def test_a_header_is_not_built_with_a_name_that_is_taken(names):
    with pytest.raises(InputError, match="it is taken"):
        build_header([TensorSpec(name, F32, (1,)) for name in names], {"format": "pt"})


def test_a_header_beyond_the_limit_is_not_built():
    with pytest.raises(InputError, match="limit of 100000000"):
        build_header([TensorSpec("w" * 50_000_001, F32, (1,)), TensorSpec("v" * 50_000_001, F32, (1,))])
