"""What an output checkpoint takes over from an observed one: the division into files, and the sidecar files."""

from collections.abc import Mapping
from dataclasses import dataclass

from ckptlin.checkpoints import RunTrajectories, parse_header
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import TensorSpec

__all__ = ["Template", "template_of"]


@dataclass(frozen=True)
class Template:
    """The form of a checkpoint.

    Attributes
    ----------
    source : str
        Where the checkpoint lies, or lay when it was ingested.
    headers : dict of str to bytes
        Header of each file of weights, by file name.
    sidecars : dict of str to bytes
        Configuration, tokenizer, index and the like, by file name.
    """

    source: str
    headers: Mapping[str, bytes]
    sidecars: Mapping[str, bytes]

    def files(self) -> dict[str, dict[str, TensorSpec]]:
        """Return the tensors of each file, in the order of their offsets."""
        return {
            name: dict(parse_header(raw, source=f"{self.source}/{name}").tensors)
            for name, raw in self.headers.items()
        }


def template_of(source: TrajectoryStore | RunTrajectories, row: int) -> Template:
    """Return the form of one of the source's checkpoints, by its row."""
    if isinstance(source, TrajectoryStore):
        committed = source.checkpoints[row]
        headers = {file.name: source.read_blob(file.header) for file in committed.files}
        return Template(committed.source, headers, source.sidecars(committed.step))
    found = source.checkpoints[row]
    return Template(
        str(found.path),
        {file.name: file.header for file in found.checkpoint.files},
        {name: path.read_bytes() for name, path in found.checkpoint.sidecars.items()},
    )
