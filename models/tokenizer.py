"""The tokenizer that lies in a model folder."""

import os
from pathlib import Path
from typing import Any

from models.errors import ModelError


def read_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """A folder's fast tokenizer, of transformers; None where the folder has none. No code of the folder is run.

    Args:
        folder: holds `tokenizer.json`, and `tokenizer_config.json` with the names of the special tokens.

    Raises:
        ModelError: a tokenizer that cannot be read.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        return None
    # Imported here: it takes a second; it would also tell every user that torch is not there.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except (
        Exception
    ) as error:  # The tokenizers library raises bare Exception for a file that it cannot parse.
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: the tokenizer cannot be read ({said}); copy its files again") from error
