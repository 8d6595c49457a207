"""The embedded corpus: natural-language tasks with short answers, and faults that are known."""

from bilevel.data.corpus.build import KINDS, Corpus, make_corpus
from bilevel.data.corpus.kind import Kind
from bilevel.data.corpus.shares import Shares

__all__ = ["KINDS", "Corpus", "Kind", "Shares", "make_corpus"]
