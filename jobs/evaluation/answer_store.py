"""Answers on disk, so that an interrupted evaluation goes on where it was, and no question is asked twice.

A JSON lines file that only grows: {"ask": digest, "decoder": fingerprint, "nll": [...], "text": ..., "tokens": [...]}.
A line that cannot be read, as a killed process leaves one, is an answer that was not given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from jobs.evaluation.asks import Answer
from workers.bundle import Bundle, LatentCodecPart


class AnswerStore:
    """The answers of one decoder, by the digest of the ask. The file may hold other decoders' answers as well."""

    def __init__(self, path: Path, decoder: str) -> None:
        """Open or create `path`; `decoder` is what `decoder_fingerprint` says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._decoder = decoder
        self._answers: dict[str, Answer] = {}
        self._file = path.open("ab")
        content = path.read_bytes()
        for line in content.splitlines():
            self._read(line)
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")  # or the next answer would be part of the torn line

    def __contains__(self, digest: str) -> bool:
        return digest in self._answers

    def __getitem__(self, digest: str) -> Answer:
        return self._answers[digest]

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Keep answers with the digests of their asks. What was added survives the end of this process."""
        for digest, answer in answers:
            self._answers[digest] = answer
            line = {"ask": digest, "decoder": self._decoder, "nll": answer.nll, "text": answer.text}
            self._file.write(json.dumps(line | {"tokens": answer.tokens}).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _read(self, line: bytes) -> None:
        try:
            kept = json.loads(line)
            if kept["decoder"] == self._decoder:
                answer = Answer(tuple(kept["nll"]), kept["text"], tuple(kept["tokens"]))
                self._answers[kept["ask"]] = answer
        except (ValueError, KeyError, TypeError):
            return


def decoder_fingerprint(bundle: Bundle) -> str:
    """SHA-256 (hex) of what turns an ask into an answer: weights, tokenizer, wording, strengths of the bias, slots."""
    manifest = bundle.manifest
    content = {
        "decoder": manifest.decoder.model_dump(include={"weights_sha256", "tokenizer_sha256"}),
        "prompt": manifest.prompt.model_dump(),
    }
    if isinstance(manifest.codec, LatentCodecPart):  # it stands in front of the decoder itself
        content["codec"] = manifest.codec.identity()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
