"""The tokenizer that lies in a model folder, in and out."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.errors import ModelError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""What belongs to a tokenizer, of whichever reader."""

_CONFIG = "tokenizer_config.json"
# Classes that transformers has had since version 5 alone; this one is known to all versions and to other readers.
_NEW_CLASSES = ("TokenizersBackend", "PythonBackend")
_KNOWN_CLASS = "PreTrainedTokenizerFast"


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


def write_tokenizer(tokenizer: Any, target: Path) -> None:
    """Writes a tokenizer so that whatever read its own folder reads the new one.

    The files of the folder that it was read from are copied as they are, where it is still what they say. Else it saves
    itself, and what other readers and earlier versions of transformers would stumble over is mended: the name of a
    class that they do not know, a list of extra tokens where they expect names, settings that saving leaves out.

    Args:
        tokenizer: of transformers.
        target: where to; an existing folder.
    """
    source = folder_of(tokenizer)
    if source is not None:
        copy_files(source, target, FILES)
        return
    tokenizer.save_pretrained(target)
    origin = _read_folder_of(tokenizer)
    before = _settings(origin) if origin is not None else {}
    settings = _settings(target)
    settings = {**{key: value for key, value in before.items() if key not in settings}, **settings}
    if settings.get("tokenizer_class") in (None, *_NEW_CLASSES):
        named = before.get("tokenizer_class")
        settings["tokenizer_class"] = _KNOWN_CLASS if named in (None, *_NEW_CLASSES) else named
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (target / _CONFIG).write_text(text, encoding="utf-8")


def folder_of(tokenizer: Any) -> Path | None:
    """The folder that a tokenizer was read from; None where there is none, or the tokenizer has changed since."""
    folder = _read_folder_of(tokenizer)
    if folder is None:
        return None
    try:
        stored = read_tokenizer(folder)
    except ModelError:
        return None
    return folder if _state(stored) == _state(tokenizer) else None


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies files by their names, or patterns of names, where they are there."""
    if source.resolve() == target.resolve():
        return
    for name in names:
        for file in sorted(source.glob(name)):
            if file.is_file():
                place = target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                # Contents alone: a read-only source must not make the copy read-only.
                shutil.copyfile(file, place)


def _read_folder_of(tokenizer: Any) -> Path | None:
    name = getattr(tokenizer, "name_or_path", "")
    folder = Path(name) if name else None
    return folder if folder is not None and (folder / "tokenizer.json").is_file() else None


def _state(tokenizer: Any) -> Any:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # How the last call cut and padded is no part of it.
    parts = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    return parts, tokenizer.special_tokens_map, tokenizer.extra_special_tokens, tokenizer.chat_template


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
