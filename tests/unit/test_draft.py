"""Drafts: what a request would change, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from memory_actor.draft import Draft, check_encoding, prompt_digest
from memory_actor.effects import Erasure
from memory_actor.errors import EncodingMismatch, LedgerCorrupt, MemoryCapacityExceeded, NonFiniteEncoding
from memory_actor.types import EncodedFacts, FactText, Retention
from tests.memory_fixtures import SALT, SMALL, Bench, encoded_facts, ids_of, sign_latents, texts_of, unit_keys


def bench_with(count: int) -> Bench:
    bench = Bench.new()
    bench.write(texts_of(count), encoded_facts(unit_keys(1, count)), ids_of(count))
    return bench


# -- writing ----------------------------------------------------------------------------------------------------


def test_a_write_is_stored_as_given():
    """Ids, positions, keys, latents by part, token counts, tags and words arrive in the effect unchanged."""
    bench = Bench.new()
    given = encoded_facts(unit_keys(2, 2), sign_latents(3, 3), [1, 2])
    texts = [FactText("a", "b", ("t", "u")), FactText("a sentence")]
    effect = Draft(bench.tenant).write(texts, given, ["f_1", "f_2"], now=12.5).effect
    assert (effect.version, effect.forgotten) == (1, ())
    first, second = effect.facts
    assert (first.fact_id, first.seq, first.tags, first.prompt, first.target) == ("f_1", 1, ("t", "u"), "a", "b")
    assert (second.fact_id, second.seq, second.prompt, second.target) == ("f_2", 2, "a sentence", None)
    assert (first.created_at, second.created_at) == (12.5, 12.5)
    assert np.array_equal(first.key, given.keys[0])
    assert np.array_equal(second.latents, given.latents[1:])
    assert second.addresses.shape == (2, 32)
    assert (second.prompt_tokens, second.target_tokens) == (2, 3)
    assert bench.tenant.version == 0  # nothing is changed by drafting


def test_latent_retention_keeps_no_words():
    bench = Bench.new(retention=Retention.LATENT)
    effect = Draft(bench.tenant).write(texts_of(1), encoded_facts(unit_keys(2, 1)), ["f_1"], 0.0).effect
    assert (effect.facts[0].prompt, effect.facts[0].target) == (None, None)


def test_drafting_changes_nothing():
    """Drafted and dropped, writes and forgets leave hash, version and positions as they were."""
    bench = bench_with(10)
    before = (bench.hash, bench.tenant.version, bench.tenant.next_seq, len(bench.tenant.facts))
    draft = Draft(bench.tenant)
    draft.write(texts_of(3), encoded_facts(unit_keys(3, 3)), ["x", "y", "z"], 0.0)
    draft.forget(["f_00004", "x"])
    assert draft.state_hash() != before[0]
    assert (bench.hash, bench.tenant.version, bench.tenant.next_seq, len(bench.tenant.facts)) == before


def test_a_draft_foresees_hash_version_and_count():
    """After each of several drafted requests, what the draft says is what the memory becomes when they are applied."""
    bench, draft_of = bench_with(10), bench_with(10)
    draft = Draft(draft_of.tenant)
    steps = [
        draft.write(texts_of(4, 8), encoded_facts(unit_keys(4, 4)), ["a", "b", "c", "d"], 0.0),
        draft.forget(["b", "f_00002", "unknown"]),
        draft.write(texts_of(2, 9), encoded_facts(unit_keys(5, 2)), ["e", "f"], 0.0),
    ]
    foreseen = (draft.state_hash(), draft.summary().version, draft.facts)
    draft_of.commit(*steps)
    assert (draft_of.hash, draft_of.tenant.version, len(draft_of.tenant.facts)) == foreseen
    bench.write(texts_of(4, 8), encoded_facts(unit_keys(4, 4)), ["a", "b", "c", "d"])
    bench.forget(["b", "f_00002", "unknown"])
    bench.write(texts_of(2, 9), encoded_facts(unit_keys(5, 2)), ["e", "f"])
    assert bench.hash == draft_of.hash  # one commit = three commits


def test_a_batch_is_its_facts_one_by_one():
    """20 facts in one request, in 20 requests and in reverse order have one hash."""
    keys, latents = unit_keys(6, 20), sign_latents(7, 20)
    together = Bench.new()
    together.write(texts_of(20), encoded_facts(keys, latents), ids_of(20))
    for order in (range(20), reversed(range(20))):
        singly = Bench.new()
        for i in order:
            singly.write(texts_of(1, i), encoded_facts(keys[i : i + 1], latents[i : i + 1]), ids_of(1, i))
        assert singly.hash == together.hash


def test_facts_know_the_version_that_wrote_them():
    """In several requests of one draft, and whatever is forgotten in between."""
    bench = bench_with(2)
    draft = Draft(bench.tenant)
    first = draft.write(texts_of(2, 5), encoded_facts(unit_keys(3, 2)), ["a", "b"], 0.0)
    draft.forget(["a"])
    second = draft.write(texts_of(1, 8), encoded_facts(unit_keys(4, 1)), ["c"], 0.0)
    assert [fact.version for fact in bench.stored.values()] == [1, 1]
    assert [fact.version for fact in (*first.effect.facts, *second.effect.facts)] == [2, 2, 4]
    assert (draft.version, draft.next_seq) == (4, 6)
    assert draft.live_ids() == {"f_00000", "f_00001", "b", "c"}


def test_only_what_ends_facts_leaves_an_erasure():
    """A write that supersedes takes the erasure it was offered, another does not; `ended` names all that ended."""
    bench = bench_with(2)
    draft, erasure = Draft(bench.tenant), Erasure("r_1", 60.0)
    plain = draft.write(texts_of(1, 5), encoded_facts(unit_keys(3, 1)), ["a"], 0.0, erasure)
    superseding = draft.write(texts_of(1), encoded_facts(unit_keys(4, 1)), ["b"], 0.0, erasure)
    draft.forget(["f_00001", "unknown"])
    assert (plain.effect.erasure, superseding.effect.erasure) == (None, erasure)
    assert draft.ended == {"f_00000", "f_00001"}
    assert draft.tenant is bench.tenant


# -- superseding ------------------------------------------------------------------------------------------------


def test_the_same_prompt_supersedes():
    """The old fact is as if never written; white space around the prompt does not matter, case does."""
    bench, never = Bench.new(), Bench.new()
    keys = unit_keys(8, 3)
    bench.write([FactText("who?", "a"), FactText("Who?", "b")], encoded_facts(keys[:2]), ["f_1", "f_2"])
    prepared = bench.write([FactText(" who?\n", "c")], encoded_facts(keys[2:], sign_latents(9, 1)), ["f_3"])
    assert prepared.superseded == prepared.effect.forgotten == ("f_1",)
    assert prepared.effect.facts[0].supersedes == "f_1"
    given = EncodedFacts(
        keys[1:], np.concatenate([sign_latents(2, 2)[1:], sign_latents(9, 1)]), *[np.ones(2, "i4")] * 3
    )
    never.write([FactText("Who?"), FactText("other")], given, ["f_2", "f_3"])
    assert bench.hash == never.hash


def test_keep_both_keeps_both_and_the_next_supersedes_all():
    bench = Bench.new()
    for i, keep in enumerate([False, True, True]):
        bench.write([FactText("p", keep_both=keep)], encoded_facts(unit_keys(i, 1)), ids_of(1, i))
    assert len(bench.tenant.facts) == 3
    prepared = bench.write([FactText("p")], encoded_facts(unit_keys(9, 1)), ["f_last"])
    assert prepared.superseded == tuple(ids_of(3))
    assert prepared.effect.facts[0].supersedes == "f_00002"
    assert list(bench.tenant.facts) == ["f_last"]


def test_within_one_request_the_last_of_a_prompt_wins():
    """Earlier ones are reported as superseded but never stored; keep_both ones stay beside each other."""
    bench = Bench.new()
    texts = [FactText("p"), FactText("q"), FactText("p"), FactText("p", keep_both=True), FactText("q")]
    prepared = bench.write(texts, encoded_facts(unit_keys(3, 5)), ["a", "b", "c", "d", "e"])
    assert [fact.fact_id for fact in prepared.effect.facts] == ["c", "d", "e"]
    assert prepared.superseded == ("a", "b")
    assert prepared.effect.forgotten == ()
    assert prepared.removed == ()
    assert sorted(bench.tenant.facts) == ["c", "d", "e"]


def test_a_later_request_of_the_same_draft_supersedes_an_earlier():
    """The effect names the drafted fact as ended, and its rows are at hand although no ledger has them yet."""
    bench = bench_with(1)
    draft = Draft(bench.tenant)
    first = draft.write([FactText("prompt 0")], encoded_facts(unit_keys(3, 1)), ["a"], 0.0)
    second = draft.write([FactText("prompt 0")], encoded_facts(unit_keys(4, 1)), ["b"], 0.0)
    third = draft.forget(["f_00000", "a", "b"])
    assert first.effect.forgotten == ("f_00000",)
    assert (second.effect.forgotten, second.removed) == (("a",), first.effect.facts)
    assert third.effect.fact_ids == ("b",)
    assert draft.facts == 0
    bench.commit(first, second, third)
    assert bench.hash == Bench.new().hash


def test_a_forgotten_prompt_is_free_again():
    """After forgetting in the same draft, a write of the prompt supersedes nothing."""
    bench = bench_with(2)
    draft = Draft(bench.tenant)
    draft.forget(["f_00000"])
    prepared = draft.write([FactText("prompt 0")], encoded_facts(unit_keys(3, 1)), ["a"], 0.0)
    assert (prepared.superseded, prepared.effect.facts[0].supersedes) == ((), None)


# -- forgetting -------------------------------------------------------------------------------------------------


def test_forgetting_is_idempotent():
    """Unknown and repeated ids do nothing; a forget of nothing moves neither version nor hash."""
    bench = bench_with(3)
    before = bench.hash
    prepared = bench.forget(["nope", "nope"])
    assert (prepared.effect.fact_ids, prepared.effect.version, bench.hash) == ((), 1, before)
    prepared = bench.forget(["f_00001", "nope", "f_00001"])
    assert (prepared.effect.fact_ids, bench.tenant.version) == (("f_00001",), 2)
    assert bench.forget(["f_00001"]).effect.fact_ids == ()


# -- refusals ---------------------------------------------------------------------------------------------------


def refused(bench: Bench, given: EncodedFacts, count: int, kind: type[Exception], **limits: int) -> Exception:
    """The error for this write; and nothing moved, nor would the next write on the same draft notice."""
    before = (bench.hash, bench.tenant.version, bench.tenant.next_seq)
    draft = Draft(bench.tenant, **limits)
    with pytest.raises(kind) as caught:
        draft.write(texts_of(count), given, ids_of(count, 500), 0.0)
    assert (bench.hash, bench.tenant.version, bench.tenant.next_seq) == before
    assert (draft.state_hash(), draft.summary().version) == before[:2]
    return caught.value


def test_numbers_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf, -np.inf):
        keys = unit_keys(1, 3)
        keys[1, 2] = value
        refused(bench_with(2), encoded_facts(keys), 3, NonFiniteEncoding)


def test_encodings_of_another_bundle_are_refused():
    """Wrong dtype, wrong width, wrong count, wrong length of a key, wrong number of parts: each names both values."""
    bench, good = bench_with(2), encoded_facts(unit_keys(1, 2))
    for bad, named in (
        (replace(good, keys=good.keys.astype(np.float32)), "float32"),
        (replace(good, latents=good.latents.astype(np.int16)), "int16"),
        (replace(good, keys=good.keys[:, :7]), "7 columns"),
        (replace(good, latents=good.latents[:, :23]), "23 columns"),
        (replace(good, keys=good.keys * np.float16(1.02)), "length of a key"),
        (replace(good, keys=good.keys * np.float16(0)), "length of a key"),
        (encoded_facts(unit_keys(1, 2), sign_latents(1, 5), [1, 4]), "got 4"),
        (encoded_facts(unit_keys(1, 2), sign_latents(1, 2), [0, 2]), "got 0"),
        (encoded_facts(unit_keys(1, 2), sign_latents(1, 2), [3, -1]), "got -1"),
    ):
        assert named in str(refused(bench, bad, 2, EncodingMismatch))
    assert refused(bench, good, 3, EncodingMismatch).args == ("number of encoded facts", 3, 2)
    check_encoding(SMALL, good, 2)


def test_the_exact_range_is_checked_before_it_is_left():
    """At the largest number of rows the sums stay below the limit even in the worst case; one more is refused.

    The worst case is -128 in every latent, whose product with 127 is larger than 127 * 127.
    """
    limit = 10 * 127 * 128
    bench = Bench.new()
    worst = encoded_facts(unit_keys(1, 10), np.full((10, 24), -128, np.int8))
    bench.commit(Draft(bench.tenant, limit).write(texts_of(10), worst, ids_of(10), 0.0))
    one = encoded_facts(unit_keys(2, 1))
    error = refused(bench, one, 1, MemoryCapacityExceeded, exact_integer_max=limit)
    assert error.args == ("acme", "rows in exact sums", 11, 10)
    refused(Bench.new(), encoded_facts(unit_keys(3, 11)), 11, MemoryCapacityExceeded, exact_integer_max=limit)
    ones = torch.full((10, 32), 127, dtype=torch.int8)  # the largest possible addresses
    assert float((ones.double().T @ torch.from_numpy(worst.latents).double()).abs().max()) <= limit


def test_the_exact_range_counts_what_is_drafted():
    """Requests of one commit share the range, and drafted removals do not make room in it."""
    bench = bench_with(3)
    draft = Draft(bench.tenant, exact_integer_max=5 * 127 * 128)
    draft.write(texts_of(2, 50), encoded_facts(unit_keys(2, 2)), ["a", "b"], 0.0)
    draft.forget(["f_00000"])
    with pytest.raises(MemoryCapacityExceeded):
        draft.write(texts_of(1, 60), encoded_facts(unit_keys(3, 1)), ["c"], 0.0)


def test_a_write_that_cannot_read_what_it_supersedes_leaves_the_draft_whole():
    """The ledger fails under one request: the next one on the same draft supersedes the stored fact as it should."""
    bench = bench_with(2)
    rows_of, failing = bench.tenant.rows_of, [True]

    def sometimes(fact_ids):
        if fact_ids and failing:
            raise LedgerCorrupt("path", failing.pop())
        return rows_of(fact_ids)

    bench.tenant.rows_of = sometimes
    draft = Draft(bench.tenant)
    with pytest.raises(LedgerCorrupt):
        draft.write([FactText("prompt 0"), FactText("new")], encoded_facts(unit_keys(3, 2)), ["a", "b"], 0.0)
    prepared = draft.write([FactText("prompt 0"), FactText("new")], encoded_facts(unit_keys(3, 2)), ["c", "d"], 0.0)
    assert prepared.superseded == ("f_00000",)
    assert [fact.supersedes for fact in prepared.effect.facts] == ["f_00000", None]
    assert (prepared.effect.version, draft.facts) == (2, 3)
    bench.commit(prepared)
    assert sorted(bench.tenant.facts) == ["c", "d", "f_00001"]


def test_digests_are_keyed_by_the_tenants_salt():
    assert len(prompt_digest("p", SALT)) == 16
    assert prompt_digest("p", SALT) == prompt_digest("  p\t", SALT) != prompt_digest("P", SALT)
    assert prompt_digest("p", SALT) != prompt_digest("p", bytes([1]) * 32)
