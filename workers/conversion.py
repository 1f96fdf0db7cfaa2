"""Model folders into a bundle: copied as they are, or converted once from GGUF (about 25 s)."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

from memory_actor.errors import ModelMissing
from workers.sources import MODEL_FILES, gguf_file


def copy_model(source: Path, target: Path, what: str) -> None:
    """Copy the files transformers needs from `source` to the new folder `target`. Raises: ModelMissing."""
    target.mkdir(parents=True)
    for pattern in MODEL_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)
    for needed, cure in (
        ("config.json", "Give the folder of a Hugging Face model"),
        ("tokenizer.json", "Save the model's fast tokenizer beside it"),
        ("*.safetensors", "Save the weights as safetensors"),
    ):
        if not any(target.glob(needed)):
            raise ModelMissing(f"{needed} of the {what}", str(source), cure)


def convert_gguf(path: Path, target: Path) -> None:
    """Dequantise the causal LM in `path` into the new folder `target`: float32 safetensors, config, tokenizer.

    The tokenizer, its chat template and its special ids come from the GGUF file too.
    Raises: ModelMissing if the written weights are not, bit for bit, the dequantised ones.
    """
    import torch  # noqa: PLC0415 - 6 s of imports that an existing bundle does not need
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    from workers.runtime import quiet_transformers  # noqa: PLC0415

    quiet_transformers()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    with contextlib.redirect_stderr(io.StringIO()):  # the converter's progress bar knows no switch
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain float32 by now, yet the model still says that it is quantised and would refuse to be saved.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    written = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    expected = model.state_dict()
    if written.keys() != expected.keys() or not all(torch.equal(written[name], expected[name]) for name in expected):
        raise ModelMissing("faithful copy of the decoder", str(target), f"Converting {path} changed its weights")


def take_model(source: Path, target: Path, what: str) -> None:
    """`convert_gguf` if `source` holds a GGUF file and no safetensors, else `copy_model`."""
    packed = gguf_file(source)
    if packed is None:
        copy_model(source, target, what)
    else:
        convert_gguf(packed, target)
