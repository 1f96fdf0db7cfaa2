"""Checkpoint format 1 in Arrow IPC files: `sums.arrow` (Cov, H) and `facts.arrow`. Pure; imported on first use.

Arrow has no checksum: give `read` only bytes that were authenticated. It is strict all the same, so that a mistake of
the writer is an error here and not a wrong memory. Dimension legend: N facts, R rows, D, K, C as in `types.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from memory_actor.checkpoint import FORMAT, Snapshot
from memory_actor.checkpoint_schema import (
    COMMON_TEXT,
    IDENTITY,
    PLAIN_COLUMNS,
    TENANT_TEXT,
    facts_schema,
    identity,
    sums_schema,
)
from memory_actor.effects import StoredFact
from memory_actor.episodic_memory import EXACT_INTEGER_MAX, SufficientStatistics
from memory_actor.errors import CheckpointDamaged, CheckpointMismatch
from memory_actor.state_hash import state_hash
from memory_actor.types import MemoryConfig, Retention

SUMS, FACTS = "sums.arrow", "facts.arrow"
BATCH_FACTS = 2048  # facts of one record batch: 4 MB at one row each
_Files = Mapping[str, bytes | bytearray | memoryview]
_Text = dict[str, str]


class _Damage(Exception):
    """What is wrong with the files, in words that hold none of their content."""


# -- writing ----------------------------------------------------------------------------------------------------


def chunks(snapshot: Snapshot, config: MemoryConfig) -> dict[str, Iterator[bytes]]:
    """The bytes of each file, in pieces. Raises ValueError when sums or facts do not have the shapes of `config`."""
    common = {
        "format": str(FORMAT),
        **identity(config),
        "facts": str(len(snapshot.facts)),
        "rows": str(snapshot.sums.rows),
        "state_hash": snapshot.state_hash,
    }
    tenant = {
        "tenant": snapshot.tenant,
        "uid": snapshot.uid,
        "retention": str(snapshot.retention),
        "salt": snapshot.salt.hex(),
        "created_at": repr(float(snapshot.created_at)),
        "version": str(snapshot.version),
    }
    shapes = (tuple(snapshot.sums.cov.shape), tuple(snapshot.sums.cross.shape))
    if shapes != ((config.address_size,) * 2, (config.address_size, config.latent_size)):
        raise ValueError(f"sums are {shapes}, not (K, K) and (K, C)")
    cov, cross = _integers(_upper(snapshot.sums.cov.numpy())), _integers(snapshot.sums.cross.numpy().ravel())
    of_sums = sums_schema(config, cov.dtype, cross.dtype, common)
    of_facts = facts_schema(config, common | tenant)
    return {
        SUMS: _file(of_sums, iter([_sums_batch(cov, cross, of_sums)])),
        FACTS: _file(of_facts, _fact_batches(snapshot.facts, config, of_facts)),
    }


class _Spool:
    """A sink for Arrow that gives back what it was given, so that a file can be passed on while it is written."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._size += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def drain(self) -> Iterator[bytes]:
        pieces, self._pieces = self._pieces, []
        yield from pieces


def _file(schema: Any, batches: Iterator[Any]) -> Iterator[bytes]:
    spool = _Spool()
    with pa.ipc.new_file(spool, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield from spool.drain()
    yield from spool.drain()


def _sums_batch(cov: np.ndarray[Any, Any], cross: np.ndarray[Any, Any], schema: Any) -> Any:
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.field(name).type)
        for name, values in (("cov", cov), ("cross", cross))
    ]
    return pa.record_batch(columns, schema=schema)


def _fact_batches(facts: Sequence[StoredFact], config: MemoryConfig, schema: Any) -> Iterator[Any]:
    ids = [fact.fact_id for fact in facts]
    if any(first >= second for first, second in pairwise(ids)):
        raise ValueError("facts of a snapshot must be sorted by fact id, each once")
    ranks = np.empty(len(facts), np.int64)
    ranks[np.argsort([fact.seq for fact in facts], kind="stable")] = np.arange(1, len(facts) + 1)
    for start in range(0, len(facts), BATCH_FACTS):
        part = facts[start : start + BATCH_FACTS]
        yield pa.record_batch(_fact_columns(part, ranks[start : start + len(part)], config, schema), schema=schema)


def _fact_columns(facts: Sequence[StoredFact], ranks: Any, config: MemoryConfig, schema: Any) -> list[Any]:
    keys = np.stack([fact.key for fact in facts]).astype("<f2", copy=False)
    if keys.shape != (len(facts), config.key_size):
        raise ValueError(f"keys are {keys.shape}, not (N, {config.key_size})")
    columns = {
        "fact_id": [fact.fact_id for fact in facts],
        "rank": ranks,
        "created_at": [float(fact.created_at) for fact in facts],
        "version": [fact.version for fact in facts],
        "prompt_tokens": [fact.prompt_tokens for fact in facts],
        "target_tokens": [fact.target_tokens for fact in facts],
        "prompt_digest": [fact.prompt_digest for fact in facts],
        "tags": [list(fact.tags) for fact in facts],
        "prompt": [fact.prompt for fact in facts],
        "target": [fact.target for fact in facts],
    }
    arrays = [pa.array(values, type=schema.field(name).type) for name, values in columns.items()]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(keys.ravel()), type=schema.field("key").type))
    offsets = np.concatenate(([0], np.cumsum([fact.latents.shape[0] for fact in facts]))).astype(np.int32)
    for name, size in (("addresses", config.address_size), ("latents", config.latent_size)):
        rows = np.concatenate([getattr(fact, name) for fact in facts])
        if rows.shape != (offsets[-1], size) or rows.dtype != np.int8:
            raise ValueError(f"{name} are {rows.dtype} {rows.shape}, not int8 ({offsets[-1]}, {size})")
        kind = schema.field(name).type
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=kind.value_type)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), values, type=kind))
    return arrays


# -- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    """One Arrow file, its text metadata apart from its columns."""

    schema: Any
    text: _Text
    batches: tuple[Any, ...]


def read(files: _Files, config: MemoryConfig, *, verify: bool, checkpoint: str) -> Snapshot:
    """See `checkpoint.from_arrow`."""
    try:
        opened = {name: _open(content) for name, content in files.items()}
        formats = {one.text.get("format", "") for one in opened.values()}
        if len(formats) != 1:
            raise _Damage("its files are not of one format")  # noqa: TRY301 - told below with the others
        number = _integer("format", formats.pop())
        if number not in READERS:
            raise CheckpointMismatch(checkpoint, "its format", number, " or ".join(map(str, sorted(READERS))))
        snapshot = READERS[number](opened, config, checkpoint)
    except (_Damage, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, _Damage) else f"not a readable Arrow file ({type(error).__name__})"
        raise CheckpointDamaged(checkpoint, reason) from None
    if verify and state_hash(config, snapshot.sums, (fact.fact_id for fact in snapshot.facts)) != snapshot.state_hash:
        raise CheckpointDamaged(checkpoint, "its sums and facts do not give its state hash")
    return snapshot


def _open(content: bytes | bytearray | memoryview) -> _Opened:
    reader = pa.ipc.open_file(pa.py_buffer(content))
    text = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
    batches = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
    for batch in batches:
        batch.validate(full=True)
    return _Opened(reader.schema.remove_metadata(), text, batches)


def _read_1(files: Mapping[str, _Opened], config: MemoryConfig, checkpoint: str) -> Snapshot:
    if files.keys() != {SUMS, FACTS}:
        raise _Damage(f"it has the files {sorted(files)}")
    for name, more in ((SUMS, frozenset()), (FACTS, TENANT_TEXT)):
        text = files[name].text
        if text.keys() != {"format", *IDENTITY, *COMMON_TEXT, *more}:
            raise _Damage(f"the metadata of {name} has other entries than it should")
        for what, expected in identity(config).items():
            if text[what] != expected:
                raise CheckpointMismatch(checkpoint, f"{what} of its bundle", text[what], expected)
    text = files[FACTS].text
    if any(files[SUMS].text[name] != text[name] for name in COMMON_TEXT):
        raise _Damage("its two files are not of the same moment")
    rows, version = _integer("rows", text["rows"]), _integer("version", text["version"])
    facts = _read_facts(files[FACTS], config, version)
    if len(facts) != _integer("facts", text["facts"]) or sum(f.latents.shape[0] for f in facts) != rows:
        raise _Damage("it does not hold as many facts and rows as it says")
    retention = _retention(text["retention"])
    if retention is Retention.LATENT and any(f.prompt is not None or f.target is not None for f in facts):
        raise _Damage("it holds texts of a tenant that keeps none")
    return Snapshot(
        tenant=text["tenant"],
        uid=text["uid"],
        retention=retention,
        salt=_salt(text["salt"]),
        created_at=_time("created_at", text["created_at"]),
        version=version,
        state_hash=text["state_hash"],
        sums=_read_sums(files[SUMS], config, rows),
        facts=facts,
    )


READERS: Final[Mapping[int, Callable[[Mapping[str, _Opened], MemoryConfig, str], Snapshot]]] = {1: _read_1}
"""One for each of `checkpoint.FORMATS`; `tests/golden` holds a checkpoint of each."""


def _read_sums(file: _Opened, config: MemoryConfig, rows: int) -> SufficientStatistics:
    if len(file.batches) != 1 or file.batches[0].num_rows != 1:
        raise _Damage("its sums are not one row")
    kinds = [
        np.dtype(field.type.value_type.to_pandas_dtype())
        for field in file.schema
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type in {pa.int32(), pa.int64()}
    ]
    if len(kinds) != 2 or not file.schema.equals(sums_schema(config, *kinds), check_metadata=True):
        raise _Damage("the columns of its sums are not those of format 1")
    values = {}
    for name in ("cov", "cross"):
        column = file.batches[0].column(name)
        if column.null_count or column.values.null_count:
            raise _Damage(f"{name} has holes")
        integers = column.flatten().to_numpy(zero_copy_only=True)
        if max(-int(integers.min()), int(integers.max())) > EXACT_INTEGER_MAX:
            raise _Damage(f"{name} is beyond what can be summed exactly")
        values[name] = integers
    cross = values["cross"].astype(np.float64).reshape(config.address_size, config.latent_size)
    cov = _symmetric(values["cov"], config.address_size)
    return SufficientStatistics(torch.from_numpy(cov), torch.from_numpy(cross), rows)


def _read_facts(file: _Opened, config: MemoryConfig, version: int) -> tuple[StoredFact, ...]:
    if not file.schema.equals(facts_schema(config), check_metadata=True):
        raise _Damage("the columns of its facts are not those of format 1")
    facts = [fact for batch in file.batches for fact in _batch_facts(batch, config)]
    if any(first.fact_id >= second.fact_id for first, second in pairwise(facts)):
        raise _Damage("its facts are not in order of their ids")
    if sorted(fact.seq for fact in facts) != list(range(1, len(facts) + 1)):
        raise _Damage("the ranks of its facts have gaps")
    for fact in facts:
        if not 0 <= fact.version <= version or min(fact.prompt_tokens, fact.target_tokens) < 0:
            raise _Damage("a fact has a version or a length that cannot be")
        if not np.isfinite(fact.created_at):
            raise _Damage("a time is not finite")
    return tuple(facts)


def _batch_facts(batch: Any, config: MemoryConfig) -> Iterator[StoredFact]:
    for column, field in zip(batch.columns, batch.schema, strict=True):
        if column.null_count and not field.nullable:
            raise _Damage(f"column {field.name} has holes")
    keys = batch.column("key").flatten().to_numpy(zero_copy_only=True).reshape(len(batch), config.key_size)
    if not np.isfinite(keys).all():
        raise _Damage("a key is not finite")
    rows = {}
    offsets = batch.column("latents").offsets.to_numpy()
    for name, size in (("addresses", config.address_size), ("latents", config.latent_size)):
        column = batch.column(name)
        parts = column.flatten()
        rows[name] = parts.flatten().to_numpy(zero_copy_only=True).reshape(len(parts), size)
        if offsets[0] != 0 or offsets[-1] != len(parts) or not np.array_equal(column.offsets.to_numpy(), offsets):
            raise _Damage("addresses and latents have different rows")
    counts = np.diff(offsets)
    if len(counts) and (counts.min() < 1 or counts.max() > config.shard_rows_max):
        raise _Damage("a fact has a number of parts that cannot be")
    plain = {name: batch.column(name).to_pylist() for name in PLAIN_COLUMNS}
    bounds = offsets.tolist()
    for i in range(len(batch)):
        own = slice(bounds[i], bounds[i + 1])
        yield StoredFact(
            fact_id=plain["fact_id"][i],
            seq=plain["rank"][i],
            key=keys[i],
            addresses=rows["addresses"][own],
            latents=rows["latents"][own],
            prompt_tokens=plain["prompt_tokens"][i],
            target_tokens=plain["target_tokens"][i],
            prompt_digest=plain["prompt_digest"][i],
            created_at=plain["created_at"][i],
            tags=tuple(plain["tags"][i]),
            prompt=plain["prompt"][i],
            target=plain["target"][i],
            version=plain["version"][i],
        )


# -- numbers and texts ------------------------------------------------------------------------------------------


def _upper(cov: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    upper: np.ndarray[Any, Any] = cov[np.tri(cov.shape[0], dtype=bool).T]
    return upper


def _symmetric(upper: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """(K, K) float64 from its upper triangle by rows."""
    matrix = np.zeros((size, size))
    start = 0
    for row in range(size):
        matrix[row, row:] = upper[start : start + size - row]
        start += size - row
    return matrix + np.triu(matrix, 1).T


def _integers(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Exact float64 sums as the smallest of int32 and int64 that holds all of them."""
    integers = sums.astype(np.int64)
    if not np.array_equal(integers, sums):
        raise ValueError("sums are not integers")
    narrow = np.iinfo(np.int32)
    fits = narrow.min <= integers.min(initial=0) and integers.max(initial=0) <= narrow.max
    return integers.astype(np.int32) if fits else integers


def _integer(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise _Damage(f"{name} is not a number")
    return int(text)


def _time(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise _Damage(f"{name} is not a number") from None
    if not np.isfinite(seconds):
        raise _Damage(f"{name} is not finite")
    return seconds


def _salt(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _Damage("salt is not hexadecimal") from None


def _retention(text: str) -> Retention:
    if text not in {str(one) for one in Retention}:
        raise _Damage("its retention is unknown")
    return Retention(text)
