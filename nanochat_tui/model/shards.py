"""A model that was published in several files (`name-00001-of-00003.gguf`), read as one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import FormatError, GGUFFile, TensorInfo, metadata_int, read_gguf
from nanochat_tui.text import display_safe

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MAX_SHARDS = 1000


class JoinedFile(GGUFFile):
    """Several GGUF files behind the interface of one: the first one's metadata, everyone's tensors."""

    def __init__(self, shards: list[GGUFFile], path: Path) -> None:
        """Join open files, which this one then closes. Raises UserError if they do not belong together."""
        self.path = path
        self.size = sum(shard.size for shard in shards)
        first = shards[0]
        self.version, self.alignment, self.data_start = first.version, first.alignment, first.data_start
        self.metadata = {key: value for key, value in first.metadata.items() if not key.startswith("split.")}
        self.tensors: dict[str, TensorInfo] = {}
        self._shards = shards
        self._owner: dict[str, GGUFFile] = {}
        for number, shard in enumerate(shards):
            self._adopt(shard, number, len(shards))
        total = metadata_int(first.metadata, "split.tensors.count", len(self.tensors))
        if total != len(self.tensors):
            raise UserError(
                f"the {len(shards)} files of {display_safe(path.name)} hold {len(self.tensors)} tensors and should "
                f"hold {total}; fetch them again"
            )

    def _adopt(self, shard: GGUFFile, number: int, count: int) -> None:
        label = display_safe(shard.path.name if shard.path else "a shard")
        if metadata_int(shard.metadata, "split.count", 1) != count:
            raise UserError(f"{label} does not say that it is one of {count} files; fetch it again")
        if metadata_int(shard.metadata, "split.no", -1) != number:
            raise UserError(f"{label} is named as number {number + 1} and says it is another; fetch it again")
        for name, info in shard.tensors.items():
            if name in self._owner:
                raise UserError(f"{label} repeats the tensor {display_safe(name)}; the files do not belong together")
            self._owner[name] = shard
            self.tensors[name] = info

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes from the file that has it."""
        self.tensor(name)
        return self._owner[name].raw(name)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's bytes, see `GGUFFile.release`."""
        self.tensor(name)
        self._owner[name].release(name)

    def close(self) -> None:
        """Let go of all files."""
        for shard in self._shards:
            shard.close()


def shard_paths(path: Path) -> list[Path]:
    """Return the files that a model lies in, given any of them; one that is not split is its only file.

    Raises UserError if one of them is missing.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count = match.groups()
    if not 1 <= int(count) <= MAX_SHARDS:
        return [path]
    found = [path.with_name(f"{stem}-{number:05d}-of-{count}.gguf") for number in range(1, int(count) + 1)]
    missing = [each for each in found if not each.is_file()]
    if missing and path.is_file():
        raise UserError(
            f"the model is split over {int(count)} files, and {display_safe(missing[0].name)} is missing; "
            "put it next to the others"
        )
    return found if not missing else [path]


def open_model(path: str | os.PathLike[str]) -> GGUFFile:
    """Map and parse a model, all its files if it is split. Raises FormatError or UserError."""
    paths = shard_paths(Path(path))
    if len(paths) == 1:
        return read_gguf(paths[0])
    opened: list[GGUFFile] = []
    try:
        for each in paths:
            opened.append(read_gguf(each))
        return JoinedFile(opened, paths[0])
    except (FormatError, UserError):
        for file in opened:
            file.close()
        raise
