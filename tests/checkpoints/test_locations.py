import os
import pickle
from pathlib import Path

import fsspec
import pytest

from ckptlin.checkpoints import locations
from ckptlin.checkpoints.locations import UrlPath, is_same_location, location_of
from ckptlin.errors import CheckpointError

FILES = {"run/a.json": b"{}", "run/checkpoint-1/model.safetensors": b"0123456789", "run/checkpoint-1/b.pt": b""}


@pytest.fixture
def root():
    """A directory in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    for path, data in FILES.items():
        memory.pipe_file(f"/{path}", data)
    yield UrlPath("memory://run/")
    memory.rm("/run", recursive=True)


def test_a_url_has_the_parts_of_a_path(root):
    file = root / "checkpoint-1/model.safetensors"
    assert str(root) == "memory://run"
    assert str(file) == "memory://run/checkpoint-1/model.safetensors"
    assert (file.name, file.suffix, file.parent.name) == ("model.safetensors", ".safetensors", "checkpoint-1")
    assert root / "." == root
    assert root / "./checkpoint-1/" == file.parent
    assert sorted([file, root]) == [root, file]


def test_kinds_are_told(root):
    kinds = {}
    for name in (".", "a.json", "checkpoint-1", "checkpoint-1/model.safetensors", "a.json/x", "none", "none/x"):
        path = root / name
        kinds[name] = (path.exists(), path.is_file(), path.is_dir())
    there_file, there_directory, absent = (True, True, False), (True, False, True), (False, False, False)
    assert kinds == {
        ".": there_directory,
        "a.json": there_file,
        "checkpoint-1": there_directory,
        "checkpoint-1/model.safetensors": there_file,
        "a.json/x": absent,
        "none": absent,
        "none/x": absent,
    }
    assert not UrlPath("memory://nowhere").exists()
    assert UrlPath("memory://run/a.json").is_file()
    assert (UrlPath("memory://run/a.json").parent / "checkpoint-1").is_dir()


def test_listings_are_sorted_and_matched(root):
    assert [path.name for path in root.iterdir()] == ["a.json", "checkpoint-1"]
    assert [path.name for path in (root / "checkpoint-1").glob("*.safetensors")] == ["model.safetensors"]
    assert [str(path) for path in root.glob("checkpoint-*/*.pt")] == ["memory://run/checkpoint-1/b.pt"]
    assert list((root / "none").iterdir()) == list((root / "a.json").glob("*")) == []


def test_each_listing_is_fetched_once(root, monkeypatch):
    listed = []
    ls = fsspec.get_filesystem_class("memory").ls
    monkeypatch.setattr(
        fsspec.get_filesystem_class("memory"),
        "ls",
        lambda self, path, **kwargs: listed.append(path) or ls(self, path, **kwargs),
    )
    root.list_together(["checkpoint-1"])
    for name in ("a.json", "checkpoint-1/model.safetensors", "checkpoint-1/none", "none/at/all"):
        (root / name).exists()
    assert sorted(listed) == ["/run", "/run/checkpoint-1"]


def test_ranges_are_read_and_end_with_the_file(root, monkeypatch):
    file = root / "checkpoint-1/model.safetensors"
    for most in (1 << 20, 3):
        monkeypatch.setattr(locations, "_MAX_RANGE_BYTES", most)
        for start, length, wanted in ((0, 10, b"0123456789"), (2, 4, b"2345"), (8, 4, b"89"), (10, 2, b"")):
            out = bytearray(b"." * length)
            assert file.read_into(start, memoryview(out)) == len(wanted)
            assert bytes(out) == wanted.ljust(length, b".")
    assert file.read_bytes() == b"0123456789"


def test_a_server_that_sends_more_than_was_asked_for_is_refused(root, monkeypatch):
    cat_file = fsspec.get_filesystem_class("memory").cat_file
    monkeypatch.setattr(
        fsspec.get_filesystem_class("memory"), "cat_file", lambda self, path, **kwargs: cat_file(self, path)
    )
    with pytest.raises(CheckpointError, match="cannot be read in parts: asked for 2 bytes, its server sent 10"):
        (root / "checkpoint-1/model.safetensors").read_into(4, memoryview(bytearray(2)))


def test_what_is_not_there_is_a_file_not_found_under_its_url(root):
    for read in (UrlPath.stat, UrlPath.read_bytes, lambda path: path.read_into(0, memoryview(bytearray(1)))):
        with pytest.raises(FileNotFoundError) as caught:
            read(root / "none")
        assert caught.value.filename == "memory://run/none"


def test_an_error_of_the_file_system_names_the_url(root, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("quota\n exceeded.")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", fail)
    with pytest.raises(CheckpointError, match=r"^memory://run/a\.json cannot be read: quota exceeded; check"):
        (root / "a.json").read_bytes()


def test_size_and_age_are_asked_for_anew(root):
    file = root / "a.json"
    before = file.stat()
    assert before.st_size == 2
    fsspec.filesystem("memory").pipe_file("/run/a.json", b"[1]")
    assert file.stat().st_size == 3
    assert file.stat().st_mtime_ns > before.st_mtime_ns


@pytest.mark.parametrize("time", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.678Z", 1767323045.5])
def test_an_etag_fills_the_digits_below_the_second(time):
    first, same, other = (
        locations._mtime_ns({"LastModified": time, "ETag": tag}) for tag in ('"a"', '"a"', '"b"')
    )
    assert first == same != other
    assert first // 10**9 == other // 10**9 == 1767323045


def test_without_a_time_that_can_be_read_the_etag_remains():
    assert locations._mtime_ns({"LastModified": "some day", "ETag": "a"}) > 0
    assert locations._mtime_ns({}) == 0


def test_local_locations_are_paths(tmp_path):
    assert location_of(tmp_path) == location_of(f"file://{tmp_path}") == tmp_path
    assert isinstance(location_of("file:///run"), Path)
    (tmp_path / "a").mkdir()
    os.symlink("a", tmp_path / "b")
    assert is_same_location(tmp_path / "a", tmp_path / "b")
    assert not is_same_location(tmp_path / "a", UrlPath("memory://a"))


def test_a_url_survives_pickling(root):
    file = root / "checkpoint-1/model.safetensors"
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    assert copy.read_bytes() == b"0123456789"
