"""Models by their name on the Hugging Face hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from models.errors import ModelError

PATTERNS = (
    *("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)
"""What is downloaded: no pickle, and no code."""


def local_folder(name: str | os.PathLike[str], patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder of a model, downloaded into huggingface_hub's cache where it is no folder yet.

    Args:
        name: a folder, or "owner/name" on the hub.
        patterns: which files are needed.

    Raises:
        ModelError: when there is no such folder, and no such model or no way to the hub.

    Examples:
        >>> local_folder(".").is_dir()
        True
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name)):
        raise ModelError(f"{name}: no such model folder")
    # Imported here: it takes half a second, and folders do without it.
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{name}: no such folder, and the hub gave no model of that name ({type(error).__name__}: {reason}); "
            f"check the name, or fetch it where there is a network (hf download {name} --local-dir FOLDER) and name "
            "that folder instead"
        ) from None
