"""Datasets as `datasets` reads them, from a folder or by their name on the hub; no code of theirs is run."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bilevel.errors import InputError

Records = list[dict[str, Any]]

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes."""


def folder_records(
    folder: Path, subset: str | None, split: str | None, splits: Sequence[str]
) -> tuple[str, Records]:
    """Records of a dataset folder; nothing is left behind in any cache.

    Args:
        folder: README.md and data files, as the hub has them, or what `save_to_disk` wrote.
        subset: name of a configuration in README.md.
        split: which split.
        splits: which one to take without `split` where there are several, best first.

    Returns:
        The split's name and its records.

    Raises:
        InputError: no data in the folder, no such split, or data that cannot be read.
    """
    remedy = "put .parquet, .json, .jsonl or .csv files into it"
    with _quiet():
        if any((folder / name).is_file() for name in _SAVED):
            return _saved(folder, split, splits, remedy)
        with tempfile.TemporaryDirectory() as cache:
            return _loaded(str(folder), subset, split, splits, cache, remedy)


def hub_records(
    name: str, subset: str | None, split: str | None, splits: Sequence[str]
) -> tuple[str, Records]:
    """Records of a dataset on the hub, downloaded into the Hugging Face cache; arguments as for folders.

    Raises:
        InputError: no such dataset or split, or no way to the hub; HF_HUB_OFFLINE and HF_DATASETS_OFFLINE keep
            to what the cache holds.
    """
    import datasets
    import huggingface_hub

    remedy = (
        "check the name, or fetch it where there is a network "
        f"(hf download --repo-type dataset {name}) and name the folder"
    )
    if not datasets.config.HF_HUB_OFFLINE:
        # Asked once with a short limit: `datasets` would try for half a minute before it gives up.
        with _told(name, remedy):
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
    return _loaded(name, subset, split, splits, None, remedy)


def _loaded(
    path: str, subset: str | None, split: str | None, splits: Sequence[str], cache: str | None, remedy: str
) -> tuple[str, Records]:
    import datasets

    with _told(path, remedy):
        builder = datasets.load_dataset_builder(path, subset, cache_dir=cache)
    present = builder.config.data_files or builder.info.splits or ()
    chosen = _chosen(path, [str(name) for name in present], split, splits)
    with _told(path, remedy):
        found = datasets.load_dataset(
            path, builder.config.name, split=chosen, cache_dir=cache, keep_in_memory=cache is not None
        )
        return chosen, found.to_list()


def _saved(folder: Path, split: str | None, splits: Sequence[str], remedy: str) -> tuple[str, Records]:
    import datasets

    with _told(str(folder), remedy):
        found = datasets.load_from_disk(str(folder), keep_in_memory=True)
    if not isinstance(found, Mapping):
        found = {str(found.split or "train"): found}
    chosen = _chosen(str(folder), [str(name) for name in found], split, splits)
    return chosen, found[chosen].to_list()


def _chosen(place: str, present: Sequence[str], split: str | None, splits: Sequence[str]) -> str:
    there = ", ".join(present)
    if split is not None:
        if split.partition("[")[0] not in present:
            raise InputError(f"{place}: no split {split!r} (there: {there}); name one of these after a colon")
        return split
    if len(present) == 1:
        return present[0]
    for name in splits:
        if name in present:
            return name
    raise InputError(
        f"{place}: which split? (there: {there}); name one of these after a colon: {place}:{present[0]}"
    )


@contextlib.contextmanager
def _told(place: str, remedy: str) -> Iterator[None]:
    """Turns what `datasets` and the hub raise, which has no common class, into one line with a remedy."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        detail = " ".join(str(cause).split())[:200]
        raise InputError(
            f"{place}: no dataset could be read ({type(cause).__name__}: {detail}); {remedy}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars of `datasets` away from data that are read in a moment."""
    from datasets import utils

    bars = not utils.are_progress_bars_disabled()
    verbosity = utils.logging.get_verbosity()
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if bars:
            utils.enable_progress_bars()
