"""Latents and features of clips on disk: encoded once by all processes, then memory-mapped.

A store is a folder of shards. Each shard holds some clips in one file of plain arrays, with an
index beside it; it appears under its name when it is complete. Which clip is in which shard is
fixed once, in `manifest.json`, so that any number of processes may encode shards, stop, and go on.
Later clips go into further shards.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.training.data.damaged import ClipError, report_damaged
from letstalk_rt.training.data.prefetch import read_ahead
from letstalk_rt.training.distributed import barrier, is_main_process, rank, world_size

CLIPS_PER_SHARD = 64
Item = TypeVar("Item")

_FORMAT = "letstalk_rt latents 1"
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "bool": torch.bool,
    "float64": torch.float64,
}
_STORED_AS = {torch.bfloat16: torch.int16}  # numpy has no bfloat16: its bits are stored
_ALIGNMENT = 64


@dataclass(frozen=True)
class Store:
    """A folder of shards.

    Attributes:
        folder: The folder.
        identity: What the arrays depend on besides the clips, such as the autoencoder; arrays made
            by something else are refused.
        clips_per_shard: Clips in one shard.
    """

    folder: Path
    identity: dict[str, Any]
    clips_per_shard: int = CLIPS_PER_SHARD

    def encode(
        self,
        names: Iterable[str],
        read: Callable[[str], Item],
        encode: Callable[[Item], dict[str, Tensor]],
    ) -> None:
        """Encode the clips that are not in the store, shared among all processes.

        Every process must call this with the same names. It returns in each of them when all
        shards are complete. Clips that cannot be read are left out and listed on stderr; the next
        run tries them again.

        Args:
            names: Names of the clips.
            read: Reads a clip by name, in a thread, while another is encoded.
            encode: Returns the arrays of a clip.

        Raises:
            InputError: The store's arrays were made by something else.
        """
        if is_main_process():
            self._plan(list(names))
        barrier()
        shards = self._manifest()["shards"]
        waiting = [i for i in range(len(shards)) if not self._index_file(i).exists()]
        own = [i for i in waiting if i % world_size() == rank()]
        total = sum(len(shards[i]) for i in own)
        with tqdm(total=total, desc="latents", unit="clip", disable=not is_main_process()) as bar:
            for shard in own:
                self._write_shard(shard, read_ahead(shards[shard], read), encode, bar)
        while any(not self._index_file(i).exists() for i in waiting):
            time.sleep(0.2)  # no barrier: it would time out while another process encodes
        if is_main_process():
            report_damaged(list(self._damaged(waiting).values()))
        barrier()

    def arrays(self) -> dict[str, dict[str, Tensor]]:
        """Return the arrays of all clips by clip and name, memory-mapped and read-only."""
        found: dict[str, dict[str, Tensor]] = {}
        for shard in range(len(self._manifest()["shards"])):
            index = self._index(shard)
            if not index:  # an empty file cannot be mapped
                continue
            raw = np.memmap(self._data_file(shard), np.uint8, "c")
            for clip, arrays in index.items():
                found[clip] = {name: _view(raw, **place) for name, place in arrays.items()}
        return found

    def _plan(self, names: list[str]) -> None:
        """Assign clips that are in no shard to new shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "manifest.json"
        if not path.exists():
            _replace(path, json.dumps({"format": _FORMAT, "identity": self.identity, "shards": []}))
        manifest = self._manifest()
        if (made_by := manifest["identity"]) != self.identity:
            changed = sorted(k for k in self.identity if made_by.get(k) != self.identity[k])
            raise InputError(
                f"the latents in {self.folder} were made with another {', '.join(changed)}; delete "
                "that folder, or choose another --runs"
            )
        known = {name for shard in manifest["shards"] for name in shard}
        complete = [i for i in range(len(manifest["shards"])) if self._index_file(i).exists()]
        known -= self._damaged(complete).keys() - self._stored(complete)
        new = [name for name in names if name not in known]
        size = self.clips_per_shard
        manifest["shards"] += [new[i : i + size] for i in range(0, len(new), size)]
        _replace(path, json.dumps(manifest))

    def _manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        if manifest.get("format") != _FORMAT:
            raise InputError(f"{self.folder} is no store of latents of this version; delete it")
        return manifest

    def _index(self, shard: int) -> dict[str, dict[str, Any]]:
        """Return where the arrays of a shard's clips lie."""
        index: dict[str, dict[str, Any]] = json.loads(self._index_file(shard).read_text())
        return index

    def _damaged(self, shards: Iterable[int]) -> dict[str, str]:
        """Return the clips that these shards leave out, and why."""
        files = [self._damaged_file(i) for i in shards]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        return {name: why for damaged in found for name, why in damaged.items()}

    def _stored(self, shards: Iterable[int]) -> set[str]:
        return {name for i in shards for name in self._index(i)}

    def _write_shard(
        self,
        shard: int,
        clips: Iterable[tuple[str, Callable[[], Item]]],
        encode: Callable[[Item], dict[str, Tensor]],
        bar: "tqdm[Any]",
    ) -> None:
        index: dict[str, dict[str, Any]] = {}
        damaged: dict[str, str] = {}
        partial = self._data_file(shard).with_suffix(".part")
        with partial.open("wb") as file:
            for clip, read in clips:
                try:
                    arrays = encode(read())
                except ClipError as error:
                    damaged[clip] = str(error)
                else:
                    index[clip] = {name: _append(file, value) for name, value in arrays.items()}
                bar.update()
        partial.replace(self._data_file(shard))
        if damaged:
            _replace(self._damaged_file(shard), json.dumps(damaged))
        _replace(self._index_file(shard), json.dumps(index))

    def _data_file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _damaged_file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}-damaged.json"

    def _index_file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"


def _append(file: BinaryIO, value: Tensor) -> dict[str, Any]:
    """Write an array at the end of a file, and return where and what it is."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    kind = str(value.dtype).removeprefix("torch.")
    place = {"dtype": kind, "shape": list(value.shape), "offset": file.tell()}
    bits = value.detach().cpu().contiguous()
    file.write(bits.view(_STORED_AS.get(bits.dtype, bits.dtype)).numpy().tobytes())
    return place


def _view(raw: np.ndarray, dtype: str, shape: list[int], offset: int) -> Tensor:
    kind = _DTYPES[dtype]
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    part = torch.from_numpy(raw[offset : offset + size])
    return part.view(kind).view(shape)


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".json.part")
    partial.write_text(text)
    partial.replace(path)
