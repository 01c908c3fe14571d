"""The JSON documents of a store: zarr v3 group and array metadata, and ckptlin's record at the root.

Written by hand rather than through zarr-python, because the root document holds everything at once: its one
atomic write is the commit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptlin.dtypes import TensorDType, from_numpy, from_zarr
from ckptlin.errors import NotAStoreError, StoreVersionError
from ckptlin.naming import encode_name
from ckptlin.segments import Jump
from ckptlin.store.chunk_codec import BloscCompressor, Compressor, compressor_from_dict
from ckptlin.trajectory import TensorSpec

__all__ = [
    "FORMAT_VERSION",
    "ROOT_KEY",
    "STEP_CHUNK",
    "CommittedCheckpoint",
    "CommittedFile",
    "FitRecord",
    "GramRecord",
    "StoreRecord",
    "array_metadata",
    "dimension_names",
    "dump",
    "group_metadata",
    "root_document",
    "step_coordinate",
    "table_chunk",
    "weights_metadata",
]

FORMAT_VERSION = 1
ROOT_KEY = "zarr.json"
# One chunk holds the coordinate of every run in sight; zeros pad it, and compress to nothing.
STEP_CHUNK = 4096
BLOB_COMPRESSOR = BloscCompressor("zstd", 5, "noshuffle")
STEP_COMPRESSOR = BloscCompressor("zstd", 1, "noshuffle")
MAP_COMPRESSOR = BloscCompressor("lz4", 5)
# Dimensions of a Gram matrix, and their coordinates: xarray takes equal names for the same dimension.
GRAM_STEPS = ("step", "step_other")
# Sampled trajectories in one chunk.
SAMPLE_CHUNK = 1 << 14
# The tables of a fit's summary, one row a tensor: name to its other dimensions.
SUMMARY_TABLES: dict[str, tuple[tuple[str, int], ...]] = {
    "counts": (("count", 8),),
    "sums": (("sum", 7),),
    "histogram": (("population", 2), ("bin", 1000)),
    "null_histogram": (("population", 2), ("bin", 1000)),
    "null_counts": (("count", 8),),
}


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file of weights of an ingested checkpoint: its name, size, time and the hash of its header."""

    name: str
    num_bytes: int
    mtime_ns: int
    header: str


@dataclass(frozen=True, slots=True)
class CommittedCheckpoint:
    """An ingested checkpoint.

    Attributes
    ----------
    step : int
    source : str
        Where it lay when it was ingested.
    fingerprint : str
        Hash of every tensor's name, dtype, shape and content.
    files : tuple of CommittedFile
    sidecars : dict of str to str
        File name to content hash; the content lies in the array ``files/<hash>``.
    """

    step: int
    source: str
    fingerprint: str
    files: tuple[CommittedFile, ...]
    sidecars: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FitRecord:
    """What the root's attributes say of one fit.

    Attributes
    ----------
    id : str
        Also in the fit's own group; tells a fit that was being replaced when its writer died.
    steps : tuple of int
    fingerprints : tuple of str
        Of the checkpoints at those steps.
    commit : int
        The store's commit number that it was computed from.
    created_by : str
    tensors : tuple of str
        Those that were fitted.
    maps : dict of str to str
        Which maps are kept, and as which zarr data type.
    """

    id: str
    steps: tuple[int, ...]
    fingerprints: tuple[str, ...]
    commit: int
    created_by: str
    tensors: tuple[str, ...]
    maps: Mapping[str, str]

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "FitRecord":
        """Undo ``dataclasses.asdict`` and JSON."""
        lists = {name: tuple(attributes[name]) for name in ("steps", "fingerprints", "tensors")}
        return cls(**{**attributes, **lists})


@dataclass(frozen=True, slots=True)
class GramRecord:
    """What the root's attributes say of the Gram matrices.

    Attributes
    ----------
    id : str
        Also in their group; tells them from those that take their place.
    steps : tuple of int
    fingerprints : tuple of str
        Of the checkpoints at those steps.
    commit : int
        The store's commit number that they were computed from.
    created_by : str
    tensors : tuple of str
    sample_size : int
        Trajectories that are kept of each tensor, all of a tensor that has no more.
    """

    id: str
    steps: tuple[int, ...]
    fingerprints: tuple[str, ...]
    commit: int
    created_by: str
    tensors: tuple[str, ...]
    sample_size: int

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "GramRecord":
        """Undo ``dataclasses.asdict`` and JSON."""
        lists = {name: tuple(attributes[name]) for name in ("steps", "fingerprints", "tensors")}
        return cls(**{**attributes, **lists})

    def num_sampled(self, spec: TensorSpec) -> int:
        """Number of trajectories that are kept of a tensor."""
        return min(self.sample_size, spec.num_params)


@dataclass(frozen=True)
class StoreRecord:
    """What the root's attributes say of a store; the arrays' metadata follow from it.

    Attributes
    ----------
    tensors : tuple of TensorSpec
        In file order.
    param_chunks : dict of str to tuple of int
        Chunk shape of each tensor without the step axis.
    chunk_steps : int
        Steps that a chunk spans.
    commit : int
        Number of commits so far.
    blobs : dict of str to int
        Hash and size in bytes of every sidecar file and header that is kept under ``files/``.
    fits : dict of str to FitRecord
        By name.
    gram : GramRecord or None
    jumps : tuple of Jump
        Those that divide the committed steps, ascending.
    """

    tensors: tuple[TensorSpec, ...]
    param_chunks: Mapping[str, tuple[int, ...]]
    chunk_steps: int
    compressor: Compressor
    checkpoints: tuple[CommittedCheckpoint, ...]
    commit: int
    created_by: str
    config: Mapping[str, Any] | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, int] = field(default_factory=dict)
    fits: Mapping[str, FitRecord] = field(default_factory=dict)
    gram: GramRecord | None = None
    jumps: tuple[Jump, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """Committed steps, ascending."""
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    def to_attributes(self) -> dict[str, Any]:
        """Return the JSON form, under the attribute ``ckptlin`` of the root group."""
        return {
            "format_version": FORMAT_VERSION,
            "created_by": self.created_by,
            "source_layout": "huggingface",
            "commit": self.commit,
            "steps": list(self.steps),
            "chunk_steps": self.chunk_steps,
            "compressor": self.compressor.to_dict(),
            "tensors": [
                {
                    "name": t.name,
                    "dtype": t.dtype.zarr,
                    "shape": list(t.shape),
                    "chunk": list(self.param_chunks[t.name]),
                }
                for t in self.tensors
            ],
            "tied": dict(self.tied),
            "config": self.config,
            "checkpoints": [asdict(c) for c in self.checkpoints],
            "blobs": dict(self.blobs),
            "fits": {name: asdict(fit) for name, fit in self.fits.items()},
            "gram": asdict(self.gram) if self.gram else None,
            # Not there in a store of an ordinary run, nor in one that was made before there were any.
            **({"jumps": [jump.to_dict() for jump in self.jumps]} if self.jumps else {}),
        }

    @classmethod
    def from_document(cls, document: Any, location: str) -> "StoreRecord":
        """Read the record from the root ``zarr.json``.

        Raises
        ------
        NotAStoreError
            If the document is not that of a trajectory store, or is damaged.
        StoreVersionError
            If it was written in a newer format.
        """
        found = document.get("attributes") if isinstance(document, dict) else None
        attributes = found.get("ckptlin") if isinstance(found, dict) else None
        if not isinstance(attributes, dict) or "format_version" not in attributes:
            raise NotAStoreError(
                f"{location} has a zarr.json, but is not a trajectory store made by `ckptlin ingest`"
            )
        version = attributes["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreVersionError(
                f"{location} has store format {version}, and this ckptlin reads up to {FORMAT_VERSION}; "
                "upgrade ckptlin"
            )
        try:
            return cls._from_attributes(attributes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NotAStoreError(
                f"{location} has a zarr.json that lacks or garbles what a trajectory store says of itself "
                f"({type(error).__name__}: {error}); restore the file, or ingest the run into a new store"
            ) from error

    @classmethod
    def _from_attributes(cls, attributes: Mapping[str, Any]) -> "StoreRecord":
        tensors = tuple(
            TensorSpec(t["name"], from_zarr(t["dtype"]), tuple(t["shape"])) for t in attributes["tensors"]
        )
        checkpoints = tuple(
            CommittedCheckpoint(
                step=c["step"],
                source=c["source"],
                fingerprint=c["fingerprint"],
                files=tuple(CommittedFile(**f) for f in c["files"]),
                sidecars=c["sidecars"],
            )
            for c in attributes["checkpoints"]
        )
        return cls(
            tensors=tensors,
            param_chunks={t["name"]: tuple(t["chunk"]) for t in attributes["tensors"]},
            chunk_steps=attributes["chunk_steps"],
            compressor=compressor_from_dict(attributes["compressor"]),
            checkpoints=checkpoints,
            commit=attributes["commit"],
            created_by=attributes["created_by"],
            config=attributes["config"],
            tied=attributes["tied"],
            blobs=attributes["blobs"],
            fits={name: FitRecord.from_attributes(fit) for name, fit in attributes["fits"].items()},
            # Stores that were made before there were any lack the key.
            gram=GramRecord.from_attributes(attributes["gram"]) if attributes.get("gram") else None,
            jumps=tuple(Jump.from_dict(jump) for jump in attributes.get("jumps", ())),
        )


def dump(document: Mapping[str, Any]) -> bytes:
    """Serialise a document: readable, and the same bytes for the same content."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def group_metadata(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


def array_metadata(
    shape: Sequence[int],
    chunk_shape: Sequence[int],
    dtype: TensorDType,
    codecs: Sequence[Mapping[str, Any]],
    dimension_names: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array."""
    fill_value: Any = False if dtype.numpy.kind == "b" else 0.0 if dtype.is_float else 0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.zarr,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": list(codecs),
        "attributes": dict(attributes or {}),
        "dimension_names": list(dimension_names),
        "storage_transformers": [],
    }


def weights_metadata(record: StoreRecord, spec: TensorSpec) -> dict[str, Any]:
    """Return the metadata of one tensor's trajectory."""
    return array_metadata(
        (len(record.checkpoints), *spec.shape),
        (record.chunk_steps, *record.param_chunks[spec.name]),
        spec.dtype,
        record.compressor.codecs(spec.dtype, delta=True),
        ["step", *dimension_names(spec)],
    )


def dimension_names(spec: TensorSpec) -> list[str]:
    """Name a tensor's dimensions, uniquely in a store: xarray takes equal names for the same dimension."""
    return [f"{encode_name(spec.name)}.{axis}" for axis in range(len(spec.shape))]


def step_coordinate(num_steps: int, name: str = "step") -> dict[str, Any]:
    """Return the metadata of a ``step`` coordinate, or of one that goes along another dimension of steps."""
    dtype = from_numpy("<i8")
    codecs = STEP_COMPRESSOR.codecs(dtype, delta=False)
    return array_metadata((num_steps,), (STEP_CHUNK,), dtype, codecs, [name], {"long_name": "training step"})


def blob_metadata(digest: str, num_bytes: int) -> dict[str, Any]:
    """Return the metadata of a file kept as an array of bytes, one chunk."""
    dtype = from_numpy("u1")
    codecs = BLOB_COMPRESSOR.codecs(dtype, delta=False)
    return array_metadata((num_bytes,), (max(num_bytes, 1),), dtype, codecs, [f"{digest}.byte"])


def table_chunk(num_tensors: int) -> int:
    """Return how many tensors a chunk of a summary table spans."""
    return max(1, min(num_tensors, 512))


def fit_nodes(record: StoreRecord, name: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of every node of a fit, by its path below the fit's group ('' is the group)."""
    fit = record.fits[name]
    specs = {t.name: t for t in record.tensors}
    nodes: dict[str, dict[str, Any]] = {
        "": group_metadata({"ckptlin": {"id": fit.id, "tensors": list(fit.tensors)}}),
        "step": step_coordinate(len(fit.steps)),
    }
    for table, dims in SUMMARY_TABLES.items():
        shape = (len(fit.tensors), *(size for _, size in dims))
        dtype = from_numpy("<f8")
        chunk = (table_chunk(shape[0]), *shape[1:])
        codecs = BLOB_COMPRESSOR.codecs(dtype, delta=False)
        nodes[table] = array_metadata(shape, chunk, dtype, codecs, ["tensor", *(dim for dim, _ in dims)])
    for map_name, dtype_name in fit.maps.items():
        nodes[map_name] = group_metadata()
        for tensor in fit.tensors:
            spec, dtype = specs[tensor], from_zarr(dtype_name)
            nodes[f"{map_name}/{encode_name(tensor)}"] = array_metadata(
                spec.shape,
                record.param_chunks[tensor],
                dtype,
                MAP_COMPRESSOR.codecs(dtype, delta=False),
                dimension_names(spec),
            )
    return nodes


def gram_nodes(record: StoreRecord) -> dict[str, dict[str, Any]]:
    """Return the metadata of every node below the group of the Gram matrices ('' is the group)."""
    gram = record.gram
    if gram is None:
        return {}
    specs = {t.name: t for t in record.tensors}
    num_steps, real = len(gram.steps), from_numpy("<f8")
    codecs = BLOB_COMPRESSOR.codecs(real, delta=False)
    nodes: dict[str, dict[str, Any]] = {
        "": group_metadata({"ckptlin": {"id": gram.id, "tensors": list(gram.tensors)}}),
        **{name: step_coordinate(num_steps, name) for name in GRAM_STEPS},
        "rounding": array_metadata(
            (len(gram.tensors),), (table_chunk(len(gram.tensors)),), real, codecs, ["tensor"]
        ),
        "matrices": group_metadata(),
        "samples": group_metadata(),
    }
    for tensor in gram.tensors:
        shape = (num_steps, num_steps)
        nodes[f"matrices/{encode_name(tensor)}"] = array_metadata(shape, shape, real, codecs, GRAM_STEPS)
    for dtype, names in sampled_together(record).items():
        shape = (num_steps, sum(gram.num_sampled(specs[name]) for name in names))
        nodes[f"samples/{dtype.zarr}"] = array_metadata(
            shape,
            (num_steps, min(shape[1], SAMPLE_CHUNK)),
            dtype,
            MAP_COMPRESSOR.codecs(dtype, delta=False),
            ["step", f"{dtype.zarr}.sample"],
        )
    return nodes


def sampled_together(record: StoreRecord) -> dict[TensorDType, list[str]]:
    """Return the tensors whose sampled trajectories lie side by side in one array, by its data type."""
    together: dict[TensorDType, list[str]] = {}
    specs = {t.name: t for t in record.tensors}
    for tensor in record.gram.tensors if record.gram else ():
        together.setdefault(specs[tensor].dtype, []).append(tensor)
    return together


def nodes_of(record: StoreRecord) -> dict[str, dict[str, Any]]:
    """Return the metadata of every node of a store, by its path."""
    nodes = {
        "weights": group_metadata(),
        "weights/step": step_coordinate(len(record.checkpoints)),
        "files": group_metadata(),
    }
    nodes |= {f"weights/{encode_name(t.name)}": weights_metadata(record, t) for t in record.tensors}
    nodes |= {f"files/{digest}": blob_metadata(digest, size) for digest, size in record.blobs.items()}
    if record.fits:
        nodes["fits"] = group_metadata()
    for name in record.fits:
        prefix = f"fits/{encode_name(name)}"
        nodes |= {f"{prefix}/{path}".rstrip("/"): node for path, node in fit_nodes(record, name).items()}
    nodes |= {f"gram/{path}".rstrip("/"): node for path, node in gram_nodes(record).items()}
    return nodes


def root_document(record: StoreRecord) -> dict[str, Any]:
    """Return the root ``zarr.json``: the record, and every node's metadata consolidated."""
    nodes = nodes_of(record)
    return {
        **group_metadata({"ckptlin": record.to_attributes()}),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": {path: nodes[path] for path in sorted(nodes)},
        },
    }
