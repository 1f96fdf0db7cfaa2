"""Sentences as encoder and decoder read them: rows of ids. Without torch, since Ray Data's processes need none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from workers.bundle import Bundle

_TEXT_END = "<|endoftext|>"  # what tells texts apart where it is in the vocabulary; a chat model's own end ends a turn


@dataclass(frozen=True, slots=True)
class Row:
    """One sentence: its ids for the encoder, special tokens included, and for the decoder, from a start to an end."""

    encoder_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowReader:
    """Texts to rows, as the codec in service reads facts: special tokens are plain characters, nothing is cut."""

    bundle: str  # its folder
    slots: int
    start: int  # the decoder's tokens around a text
    end: int

    @classmethod
    def of(cls, folder: str, slots: int) -> RowReader:
        """Raises: ModelMissing; ValueError for a tokenizer without an end."""
        bundle = Bundle.open(folder)
        return cls(folder, slots, start_token(bundle), end_token(bundle))

    def __call__(self, texts: Sequence[str]) -> list[Row | None]:
        """None for a text of more tokens than slots, or than the encoder reads."""
        bundle = Bundle.open(self.bundle)
        encoder, decoder = _tokenizer(bundle.encoder_folder), _tokenizer(bundle.decoder_folder)
        decoder.encode_special_tokens = True
        read = encoder.encode_batch_fast(list(texts))
        spelled = decoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            Row(tuple(ours.ids), (self.start, *theirs.ids, self.end))
            if 0 < len(theirs.ids) <= self.slots and len(ours.ids) <= bundle.manifest.encoder.tokens_max
            else None
            for ours, theirs in zip(read, spelled, strict=True)
        ]


def start_token(bundle: Bundle) -> int:
    """The decoder's token before a text: its line break, or the last of the tokens that make one."""
    return int(_tokenizer(bundle.decoder_folder).encode("\n", add_special_tokens=False).ids[-1])


def end_token(bundle: Bundle) -> int:
    """The decoder's token after a text. Raises: ValueError for a tokenizer without an end."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds of import, for one number

    tokenizer: Any = AutoTokenizer.from_pretrained(bundle.decoder_folder)
    found = tokenizer.get_vocab().get(_TEXT_END, tokenizer.eos_token_id)
    if found is None:
        raise ValueError(f"the tokenizer in {bundle.decoder_folder} has no token that ends a text")
    return int(found)


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
