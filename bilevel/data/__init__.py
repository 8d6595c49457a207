"""Rows with ids, templates, tokenising, packing, order; the embedded corpus."""

from bilevel.data.chat import CHAT, ChatTemplate
from bilevel.data.checks import Overlap, check_overlap, check_rejected, find_overlap
from bilevel.data.corpus import Corpus, Shares, make_corpus
from bilevel.data.documents import read_documents, read_passages, source_of
from bilevel.data.encode import EncodedRows, Encoding, encode_rows
from bilevel.data.encode_text import encode_documents, encode_passages
from bilevel.data.files import ReadRows, read_rows, write_rejected, write_rows
from bilevel.data.order import RowOrder
from bilevel.data.packing import PackedRows, Packing, arrange_rows, first_fit_decreasing, pack_rows
from bilevel.data.rows import LABELS, Rejected, Row
from bilevel.data.templates import ALPACA, PLAIN, RAW, TEMPLATES, Template, choose_template, get_template
from bilevel.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer, train_tokenizer
from bilevel.data.truncation import Truncated

__all__ = [
    "ALPACA",
    "CHAT",
    "LABELS",
    "PLAIN",
    "RAW",
    "TEMPLATES",
    "ChatTemplate",
    "Corpus",
    "EncodedRows",
    "Encoding",
    "Overlap",
    "PackedRows",
    "Packing",
    "ReadRows",
    "Rejected",
    "Row",
    "RowOrder",
    "Shares",
    "Template",
    "Tokenizer",
    "Truncated",
    "arrange_rows",
    "check_overlap",
    "check_rejected",
    "check_vocabulary",
    "choose_template",
    "encode_documents",
    "encode_passages",
    "encode_rows",
    "find_overlap",
    "first_fit_decreasing",
    "get_template",
    "load_tokenizer",
    "make_corpus",
    "pack_rows",
    "read_documents",
    "read_passages",
    "read_rows",
    "source_of",
    "train_tokenizer",
    "write_rejected",
    "write_rows",
]
