"""Fixtures with the real default models. They are built once into a cache folder and opened from there afterwards."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workers.bundle import Bundle
    from workers.decoder import CausalDecoder
    from workers.sentence_encoder import SentenceEncoder
    from workers.token_codec import TokenCodec


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The default bundle, in LARIMAR_TEST_CACHE or ~/.cache/larimar-serve-tests (about 30 s when it is not there)."""
    from workers.bundle import materialise_bundle

    cache = Path(os.environ.get("LARIMAR_TEST_CACHE", Path.home() / ".cache" / "larimar-serve-tests"))
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may share the cache
        return materialise_bundle(cache / "bundle")


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> SentenceEncoder:
    from workers.sentence_encoder import SentenceEncoder

    return SentenceEncoder.from_bundle(bundle)


@pytest.fixture(scope="session")
def codec(bundle: Bundle) -> TokenCodec:
    from workers.token_codec import TokenCodec

    return TokenCodec.from_bundle(bundle)


@pytest.fixture(scope="session")
def decoder(bundle: Bundle) -> Iterator[CausalDecoder]:
    from workers.decoder import CausalDecoder

    decoder = CausalDecoder.from_bundle(bundle)
    yield decoder
    decoder.close()
