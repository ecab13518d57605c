"""Names that come more than once, in eight bytes of memory each."""

import hashlib
from array import array

import numpy as np


class Names:
    """Names seen so far, in any number."""

    def __init__(self):
        self._hashes = array("Q")

    def add(self, name: str) -> None:
        self._hashes.append(_hash(name))

    def __len__(self) -> int:
        return len(self._hashes)

    def twice(self) -> set[int]:
        """The hashes of those that were added more than once; see `among`."""
        if not self._hashes:
            return set()
        found, counts = np.unique(np.frombuffer(self._hashes, np.uint64), return_counts=True)
        return set(found[counts > 1].tolist())


def among(name: str, hashes: set[int]) -> bool:
    """Whether the name's hash is one of them."""
    return _hash(name) in hashes


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
