"""Tokenizers: from a folder, or trained on the rows at hand."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bilevel.errors import InputError

START, END, PADDING = "<s>", "</s>", "<pad>"
_SMALLEST_VOCABULARY = 256 + 3


if TYPE_CHECKING:

    class Tokenizer(Protocol):
        """What is used of a transformers `PreTrainedTokenizerFast`."""

        bos_token_id: Any
        eos_token_id: Any

        def __call__(self, text: Any, **options: Any) -> Any:
            """Token ids of texts, under "input_ids"."""
            ...

        def decode(self, token_ids: Any, **options: Any) -> Any:
            """Text of token ids."""
            ...

        def get_vocab(self) -> dict[str, int]:
            """Id of each token."""
            ...

        def get_chat_template(self, **options: Any) -> str:
            """The chat template that a conversation is worded by."""
            ...

        def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
            """Text of a conversation."""
            ...

        @property
        def added_tokens_decoder(self) -> dict[int, Any]:
            """Added tokens by id; `special` says which are control tokens."""
            ...

        def save_pretrained(self, save_directory: Any) -> Any:
            """Writes a folder that `load_tokenizer` reads."""
            ...

else:
    # transformers makes the ids of special tokens on demand, and from Python 3.12 on isinstance checks of
    # protocols do not see such attributes: at run time any object will do.
    Tokenizer = Any


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Fast tokenizer of a Hugging Face folder; nothing is downloaded and no code of the folder is run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = train_tokenizer(["a"], 259).save_pretrained(folder)
    ...     tokenizer = load_tokenizer(folder)
    >>> tokenizer.eos_token
    '</s>'

    Args:
        folder: holds `tokenizer.json`, and `tokenizer_config.json` with the names of the special tokens.

    Raises:
        InputError: no such folder, no `tokenizer.json` in it, a broken one, or no end token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "this is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; name the folder that holds tokenizer.json")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder}: there is no tokenizer.json; save a fast tokenizer there with save_pretrained, "
            "or name another folder"
        )
    try:
        tokenizer = _fast_tokenizer().from_pretrained(str(folder), local_files_only=True)
    except (
        Exception
    ) as error:  # The tokenizers library raises bare Exception for a file that it cannot parse.
        detail = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: the tokenizer cannot be read ({detail}); copy its files again"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has no end token; name a token of its vocabulary as "
            '"eos_token" in tokenizer_config.json'
        )
    return tokenizer


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text, without start and end.

    Args:
        tokenizer: a fast tokenizer.
        texts: what to tokenise.
        special: whether names of special tokens mean these tokens; else they are plain text.
    """
    if not texts:
        return []
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=not special,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """Token ids that the tokenizer's own call puts before a text: what a prompt begins with wherever it is used.

    >>> start_tokens(train_tokenizer(["a"], 259))
    [0]

    Many name a start token and never put it there (GPT-2, SmolLM2, OLMo).
    """
    before, _ = _around(tokenizer)
    return before


def end_tokens(tokenizer: Tokenizer) -> list[int]:
    """Token ids that the tokenizer's own call puts behind a text.

    >>> end_tokens(train_tokenizer(["a"], 259))
    []
    """
    _, behind = _around(tokenizer)
    return behind


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    text = "a"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    for begin in range(len(whole) - len(plain) + 1):
        end = begin + len(plain)
        if whole[begin:end] == plain:
            return whole[:begin], whole[end:]
    return [], []


def check_vocabulary(tokenizer: Tokenizer, embedding_rows: int) -> None:
    """Refuses a tokenizer that has tokens without a row in the model's embedding.

    >>> check_vocabulary(train_tokenizer(["a"], 259), embedding_rows=259)

    Raises:
        InputError: the tokenizer's largest id is at least `embedding_rows`.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > embedding_rows:
        raise InputError(
            f"the tokenizer has {needed} tokens, but the model's embedding only {embedding_rows} rows; "
            "use the tokenizer that belongs to the model"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE learnt from texts: any text can be encoded and comes back unchanged.

    >>> tokenizer = train_tokenizer(["low lower lowest"] * 5, vocab_size=262)
    >>> tokenizer.decode(tokenizer("lowest of all", add_special_tokens=False)["input_ids"])
    'lowest of all'

    The same texts in the same order give the same tokenizer. Ids 0, 1 and 2 are `<s>`, `</s>` and `<pad>`,
    then come the 256 bytes, then the merges. Its call puts `<s>` before a text.

    Args:
        texts: what to learn merges from.
        vocab_size: the most tokens to have; a small corpus may yield fewer.

    Returns:
        A `PreTrainedTokenizerFast`, which `save_pretrained` writes as a folder.

    Raises:
        InputError: `vocab_size` does not even hold the bytes.

    References:
        Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016. Radford et al.,
        Language Models are Unsupervised Multitask Learners, 2019 (bytes).
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise InputError(
            f"a vocabulary of {vocab_size} is too small for byte-level BPE; "
            f"give {_SMALLEST_VOCABULARY} or more"
        )
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, backend.token_to_id(START))]
    )
    return _fast_tokenizer()(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def _fast_tokenizer() -> Any:
    # Imported late because it takes a second; it would also tell every user that torch is not there.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast
