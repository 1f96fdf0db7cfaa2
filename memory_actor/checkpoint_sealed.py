"""A checkpoint file as it is stored: sealed in frames under the file key, so that it streams in bounded memory.

Each frame is sealed with its place as context: tenant incarnation, checkpoint, file, number of the frame, and whether
it is the last. Frames that are changed, missing, repeated, swapped or cut off do not open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgpack

from memory_actor.sealing import OVERHEAD_BYTES, Cipher, SealBroken

FRAME_BYTES: Final = 4 << 20  # plain bytes of every frame but the last
_PURPOSE: Final = "larimar-checkpoint-file-1"


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Where a sealed file belongs."""

    uid: str
    checkpoint_id: str
    name: str

    def context(self, frame: int, *, last: bool) -> bytes:
        packed: bytes = msgpack.packb([_PURPOSE, self.uid, self.checkpoint_id, self.name, frame, last])
        return packed


def seal_file(chunks: Iterable[bytes], key: bytes, place: FilePlace) -> Iterator[bytes]:
    """The sealed frames of a file that comes in pieces of any size."""
    cipher = Cipher(key)
    waiting = bytearray()
    frame = 0
    for chunk in chunks:
        waiting += chunk
        while len(waiting) > FRAME_BYTES:  # exactly one frame may be the last one: it stays until more comes
            yield cipher.seal(bytes(waiting[:FRAME_BYTES]), place.context(frame, last=False))
            del waiting[:FRAME_BYTES]
            frame += 1
    yield cipher.seal(bytes(waiting), place.context(frame, last=True))


def unseal_file(sealed: bytes, key: bytes, place: FilePlace) -> bytes | bytearray:
    """The plain file. Raises SealBroken when anything of the three is not as it was sealed."""
    cipher = Cipher(key)
    step = FRAME_BYTES + OVERHEAD_BYTES
    frames = max(1, -(-len(sealed) // step))
    if frames == 1:
        return cipher.unseal(sealed, place.context(0, last=True))
    plain = bytearray(max(0, len(sealed) - frames * OVERHEAD_BYTES))
    for frame in range(frames):
        part = cipher.unseal(sealed[frame * step : (frame + 1) * step], place.context(frame, last=frame == frames - 1))
        plain[frame * FRAME_BYTES : frame * FRAME_BYTES + len(part)] = part
    return plain


__all__ = ["FRAME_BYTES", "FilePlace", "SealBroken", "seal_file", "unseal_file"]
