"""The contents of a checkpoint and its Arrow files: canonical, complete, strict, and readable for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_actor import checkpoint_arrow
from memory_actor.checkpoint import FORMAT, FORMATS, Snapshot, arrow_chunks, from_arrow, to_arrow
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpoints import find_checkpoint, find_manifests, read_checkpoint
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.errors import CheckpointDamaged, CheckpointMismatch
from memory_actor.state_hash import state_hash
from memory_actor.types import CheckpointInfo, MemoryConfig, Retention
from tests.checkpoint_samples import UID, bench_of, made_fact, same_fact, snapshot_of
from tests.golden.make_checkpoint import described
from tests.memory_fixtures import SALT, SMALL, encoded_facts, ids_of, integer_sums, sign_latents, texts_of, unit_keys

GOLDEN = Path(__file__).parent.parent / "golden"


def snapshot_with(facts, config: MemoryConfig = SMALL, **changes) -> Snapshot:
    """A snapshot of any facts; sums by the integer oracle."""
    facts = tuple(sorted(facts, key=lambda fact: fact.fact_id))
    cov, cross = integer_sums(facts, config)
    rows = sum(fact.latents.shape[0] for fact in facts)
    total = SufficientStatistics(torch.from_numpy(cov).double(), torch.from_numpy(cross).double(), rows)
    digest = state_hash(config, total, (fact.fact_id for fact in facts))
    given = Snapshot("acme", UID, Retention.TEXT, SALT, 12.25, 99, digest, total, facts)
    return replace(given, **changes)


# -- there and back ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(numbers=st.sets(st.integers(0, 90), max_size=12), rows=st.integers(1, 3))
def test_what_is_read_is_what_was_written(numbers, rows):
    """Every field of every fact, the sums to the bit, and the order of writing as ranks 1 to N."""
    given = snapshot_with([made_fact(number, rows=rows) for number in numbers])
    back = from_arrow(to_arrow(given, SMALL), SMALL)
    for name in ("tenant", "uid", "retention", "salt", "created_at", "version", "state_hash"):
        assert getattr(back, name) == getattr(given, name)
    assert torch.equal(back.sums.cov, given.sums.cov)
    assert torch.equal(back.sums.cross, given.sums.cross)
    assert back.sums.rows == given.sums.rows
    assert all(same_fact(first, second) for first, second in zip(back.facts, given.facts, strict=True))
    order = sorted(back.facts, key=lambda fact: fact.seq)
    assert [fact.seq for fact in order] == list(range(1, len(numbers) + 1))
    assert [fact.fact_id for fact in order] == [f.fact_id for f in sorted(given.facts, key=lambda fact: fact.seq)]
    assert to_arrow(back, SMALL) == to_arrow(given, SMALL)


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**53])
def test_sums_of_any_exact_size_survive(largest):
    """int32 where all sums fit, int64 where one does not; both to the bit."""
    given = snapshot_with([])
    given.sums.cov[1, 2] = given.sums.cov[2, 1] = largest
    given.sums.cross[3, 4] = -largest
    given = replace(given, state_hash=state_hash(SMALL, given.sums, []))
    files = to_arrow(given, SMALL)
    back = from_arrow(files, SMALL)
    assert torch.equal(back.sums.cov, given.sums.cov)
    assert torch.equal(back.sums.cross, given.sums.cross)
    fits = -(2**31) <= largest < 2**31
    kind = pa.ipc.open_file(files["sums.arrow"]).schema.field("cov").type.value_type
    assert kind == (pa.int32() if fits else pa.int64())


def test_a_large_checkpoint_is_written_in_pieces(monkeypatch):
    """Facts leave batch by batch: a quarter of them have been turned into bytes when the first quarter is out."""
    monkeypatch.setattr(checkpoint_arrow, "BATCH_FACTS", 8)
    facts = [made_fact(number) for number in range(64)]
    given = snapshot_with(facts)
    pieces = arrow_chunks(given, SMALL)["facts.arrow"]
    whole = to_arrow(given, SMALL)["facts.arrow"]
    size = 0
    while size < len(whole) // 4:
        size += len(next(pieces))
    assert size < len(whole) // 2
    assert size + sum(map(len, pieces)) == len(whole)
    assert len(from_arrow(to_arrow(given, SMALL), SMALL).facts) == 64


def test_importing_the_engine_does_not_import_arrow():
    """Arrow costs a fifth of a second and much memory; only who reads or writes a checkpoint pays."""
    code = "import sys, memory_actor.checkpoints, memory_actor.tenant; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- canonical --------------------------------------------------------------------------------------------------


def test_history_does_not_show():
    """Two tenants with equal contents and different histories have the same files to the byte."""
    keys, latents = unit_keys(3, 6), sign_latents(4, 6)
    straight, crooked = bench_of(0), bench_of(17, seed=40)
    old = list(crooked.stored)
    straight.write(texts_of(6), encoded_facts(keys, latents), ids_of(6))
    for i in range(6):
        crooked.write(texts_of(1, i), encoded_facts(keys[i : i + 1], latents[i : i + 1]), ids_of(1, i + 500))
        crooked.forget([ids_of(1, i + 500)[0], *old[3 * i : 3 * i + 3]])
    crooked.write(texts_of(6), encoded_facts(keys, latents), ids_of(6))
    assert crooked.stored.keys() == straight.stored.keys()
    assert crooked.tenant.version > straight.tenant.version
    given = [snapshot_of(one) for one in (straight, crooked)]
    assert len({to_arrow(one, SMALL)["sums.arrow"] for one in given}) == 1
    # Versions are kept as they were, for restores to one; all else is equal.
    given = [replace(one, version=0, facts=tuple(replace(f, version=0) for f in one.facts)) for one in given]
    assert to_arrow(given[0], SMALL) == to_arrow(given[1], SMALL)


def test_what_a_fact_superseded_is_not_told():
    """The id of a fact that is gone is in no file."""
    bench = bench_of(0)
    keys, latents = unit_keys(3, 1), sign_latents(4, 1)
    bench.write(texts_of(1), encoded_facts(keys, latents), ids_of(1, 777))
    bench.write(texts_of(1), encoded_facts(keys, latents), ids_of(1, 1))
    assert bench.stored[ids_of(1, 1)[0]].supersedes == ids_of(1, 777)[0]
    assert not any(ids_of(1, 777)[0].encode() in content for content in to_arrow(snapshot_of(bench), SMALL).values())


# -- parts of a snapshot ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(gone=st.sets(st.integers(0, 20)))
def test_without_facts_it_is_as_if_they_had_never_been_written(gone):
    """Sums, hash and files equal those of the remaining facts alone, whichever way the sums were made."""
    facts = [made_fact(number, rows=2) for number in range(12)]
    kept = [fact for number, fact in enumerate(facts) if number not in gone]
    gone_ids = {made_fact(number).fact_id for number in gone}  # some were never there
    rest = snapshot_with(facts).without(gone_ids, SMALL)
    expected = snapshot_with(kept)
    assert rest.state_hash == expected.state_hash == rest.rebuilt_hash(SMALL)
    assert to_arrow(rest, SMALL) == to_arrow(expected, SMALL)
    assert rest.version == expected.version


def test_at_an_earlier_version_it_holds_what_was_written_by_then():
    facts = [made_fact(number) for number in range(12)]
    for version in (0, 1, 7, 99):
        part = snapshot_with(facts).up_to(version, SMALL)
        expected = snapshot_with([fact for fact in facts if fact.version <= version], version=version)
        assert (part.version, part.state_hash) == (version, expected.state_hash)
        assert to_arrow(part, SMALL) == to_arrow(expected, SMALL)


def test_a_snapshot_is_not_changed_by_taking_a_part_of_it():
    given = snapshot_with([made_fact(number) for number in range(5)])
    before = to_arrow(given, SMALL)
    given.without({given.facts[0].fact_id}, SMALL)
    given.up_to(2, SMALL)
    assert to_arrow(given, SMALL) == before
    assert given.without({"f_unknown"}, SMALL) is given


# -- strict -----------------------------------------------------------------------------------------------------


def rewritten(files, name, *, text=None, columns=None, batches=None):
    """The files with one of them changed and written again, as a wrong writer could have."""
    reader = pa.ipc.open_file(files[name])
    table = reader.read_all()
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()} | (text or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    for column, values in (columns or {}).items():
        field = table.schema.field(column)
        array = values(table.column(column).combine_chunks(), field)
        table = table.set_column(table.schema.get_field_index(column), field.with_type(array.type), array)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        for _ in range(1 if batches is None else batches):
            writer.write_table(table.replace_schema_metadata(metadata))
    return files | {name: sink.getvalue().to_pybytes()}


def changed(values):
    return lambda array, field: pa.array(values(array.to_pylist()), type=field.type)


def swapped(values):
    return [values[1], values[0], *values[2:]]


def first(value):
    return lambda values: [value, *values[1:]]


WRONG = {
    "its format is a word": {"text": {"format": "one"}},
    "an entry is missing": {"text": {"salt": None}},
    "an entry is new": {"text": {"surprise": "1"}},
    "the number of facts": {"text": {"facts": "3"}},
    "the number of rows": {"text": {"rows": "9"}},
    "a negative version": {"text": {"version": "-1"}},
    "its version is below that of a fact": {"text": {"version": "2"}},
    "its retention": {"text": {"retention": "some"}},
    "its retention keeps no words": {"text": {"retention": "latent"}},
    "its salt": {"text": {"salt": "xy"}},
    "its time is no number": {"text": {"created_at": "soon"}},
    "its time is not finite": {"text": {"created_at": "inf"}},
    "its state hash": {"text": {"state_hash": "0" * 64}},
    "facts out of order": {"columns": {"fact_id": changed(swapped)}},
    "a fact twice": {"columns": {"fact_id": changed(lambda values: [values[1], *values[1:]])}},
    "another fact": {"columns": {"fact_id": changed(first("a"))}},
    "a hole": {"columns": {"created_at": changed(first(None))}},
    "ranks with a gap": {"columns": {"rank": changed(first(99))}},
    "a time that is not finite": {"columns": {"created_at": changed(first(float("nan")))}},
    "a negative length": {"columns": {"prompt_tokens": changed(first(-1))}},
    "a key that is not finite": {"columns": {"key": changed(first([np.float16("inf")] * 8))}},
    "a fact without rows": {"columns": {n: changed(first([])) for n in ("addresses", "latents")}},
    "rows that do not match": {"columns": {"addresses": changed(lambda v: [v[0] + v[1], [], *v[2:]])}},
    "another type": {"columns": {"rank": lambda array, field: array.cast(pa.int32())}},
    "no record": {"batches": 0},
    "each record twice": {"batches": 2},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_add_up_is_refused(wrong):
    """Whatever a wrong writer could make of the facts is CheckpointDamaged by name, and nothing else."""
    files = to_arrow(snapshot_with([made_fact(number, rows=2) for number in range(4)]), SMALL)
    with pytest.raises(CheckpointDamaged, match="checkpoint c_test: "):
        from_arrow(rewritten(files, "facts.arrow", **WRONG[wrong]), SMALL, checkpoint="c_test")


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": {"cov": changed(lambda v: [[v[0][0] + 1, *v[0][1:]]])}},
        {"columns": {"cross": changed(lambda v: [[*v[0][:-1], v[0][-1] - 1]])}},
        {"columns": {"cross": lambda array, field: array.cast(pa.list_(pa.field("item", pa.float32(), False), 768))}},
        {"batches": 0},
        {"batches": 2},
        {"text": {"rows": "5"}},
        {"text": {"version": "4"}},
    ],
)
def test_sums_that_are_not_those_of_the_facts_are_refused(wrong):
    """Also where only the state hash can tell."""
    files = to_arrow(snapshot_with([made_fact(number) for number in range(4)]), SMALL)
    with pytest.raises(CheckpointDamaged):
        from_arrow(rewritten(files, "sums.arrow", **wrong), SMALL)


def test_files_that_are_cut_missing_or_foreign_are_refused():
    files = to_arrow(snapshot_with([made_fact(number) for number in range(4)]), SMALL)
    other = to_arrow(snapshot_with([made_fact(number) for number in range(5)]), SMALL)
    for name in files:
        for wrong in (files[name][: len(files[name]) // 2], files[name][:-1], b"", b"ARROW1", bytes(5000)):
            with pytest.raises(CheckpointDamaged):
                from_arrow(files | {name: wrong}, SMALL)
        with pytest.raises(CheckpointDamaged):
            from_arrow(files | {name: other[name]}, SMALL)
        with pytest.raises(CheckpointDamaged):
            from_arrow({one: content for one, content in files.items() if one != name}, SMALL)
    with pytest.raises(CheckpointDamaged):
        from_arrow(files | {"more.arrow": files["sums.arrow"]}, SMALL)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": "other"}, "fingerprint"),
        ({"latent_size": 25}, "latent_size"),
        ({"address_scale": 100}, "address_scale"),
        ({"feature_map_seed": 1}, "feature_map_seed"),
    ],
)
def test_a_checkpoint_of_another_bundle_is_named_as_such(change, what):
    """The error says which number differs, and both values."""
    files = to_arrow(snapshot_with([made_fact(1)]), SMALL)
    with pytest.raises(CheckpointMismatch, match=what) as refused:
        from_arrow(files, replace(SMALL, **change))
    assert refused.value.args[3] == str(next(iter(change.values())))


def test_a_newer_format_is_named_and_not_guessed_at():
    files = to_arrow(snapshot_with([made_fact(1)]), SMALL)
    for name in files:
        files = rewritten(files, name, text={"format": "2"})
    with pytest.raises(CheckpointMismatch, match="its format is 2, expected 1"):
        from_arrow(files, SMALL)


def test_contents_of_another_configuration_are_not_written():
    with pytest.raises(ValueError, match="not"):
        to_arrow(snapshot_with([made_fact(1)]), replace(SMALL, latent_size=25))
    with pytest.raises(ValueError, match="sorted"):
        to_arrow(replace(snapshot_with([]), facts=(made_fact(1), made_fact(1))), SMALL)


def test_no_word_of_a_fact_is_in_a_representation():
    """Logs and tracebacks show representations."""
    shown = repr(snapshot_with([made_fact(1)]))
    assert "prompt" not in shown
    assert str(SALT) not in shown


# -- readable for ever ------------------------------------------------------------------------------------------


def test_every_format_has_a_reader_and_a_golden_checkpoint():
    """A format that was ever written stays readable; the newest is the one that is written."""
    assert set(checkpoint_arrow.READERS) == set(FORMATS)
    assert max(FORMATS) == FORMAT
    assert {path.name for path in GOLDEN.glob("checkpoint-*")} == {f"checkpoint-{number}" for number in FORMATS}


@pytest.mark.parametrize("number", FORMATS)
def test_golden_checkpoints_are_read(number):
    """The plain files and the sealed ones give what was recorded when they were made, to the bit."""
    folder = GOLDEN / f"checkpoint-{number}"
    expected = json.loads((folder / "expected.json").read_text())
    config = MemoryConfig(**expected["config"])
    info = CheckpointInfo(**expected["info"])
    plain = {path.name: path.read_bytes() for path in (folder / "plain").iterdir()}
    store = CheckpointStore("golden", folder / "store")
    (manifest,) = find_manifests(store, tenant="golden")
    assert find_checkpoint(store, manifest) == info
    for snapshot in (
        from_arrow(plain, config),
        read_checkpoint(store, info, bytes.fromhex(expected["file_key"]), config),
    ):
        assert (snapshot.tenant, snapshot.uid, snapshot.version) == (info.tenant, info.uid, info.version)
        assert snapshot.state_hash == info.state_hash == snapshot.rebuilt_hash(config)
        assert (str(snapshot.retention), snapshot.salt.hex()) == (expected["retention"], expected["salt"])
        assert snapshot.created_at == expected["created_at"]
        assert snapshot.sums.cov.long().tolist() == expected["cov"]
        assert snapshot.sums.cross.long().tolist() == expected["cross"]
        facts = sorted(snapshot.facts, key=lambda fact: fact.seq)
        assert [described(fact, fact.seq) for fact in facts] == expected["facts"]
