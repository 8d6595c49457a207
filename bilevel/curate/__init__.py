"""What rows are worth by themselves: neighbours, diverse selection, thresholds; signals that a model gives."""

from bilevel.curate.greedy import Picks as Picks
from bilevel.curate.greedy import pick_diverse as pick_diverse
from bilevel.curate.nearest import Neighbours as Neighbours
from bilevel.curate.nearest import neighbours as neighbours
from bilevel.curate.ngrams import NgramDiversity as NgramDiversity
from bilevel.curate.ngrams import ngram_diversity as ngram_diversity
from bilevel.curate.order import reordered as reordered
from bilevel.curate.selection import Selection as Selection
from bilevel.curate.selection import response_texts as response_texts
from bilevel.curate.selection import select_hard_and_diverse as select_hard_and_diverse
from bilevel.curate.signals import RESPONSE_LOSS as RESPONSE_LOSS
from bilevel.curate.signals import complexity as complexity
from bilevel.curate.signals import measure_rows as measure_rows
from bilevel.curate.signals import neighbour_similarity as neighbour_similarity
from bilevel.curate.signals import ngrams as ngrams
from bilevel.curate.signals import prompt_embeddings as prompt_embeddings
from bilevel.curate.terms import Terms as Terms
from bilevel.curate.terms import token_terms as token_terms
from bilevel.curate.terms import word_terms as word_terms
from bilevel.curate.thresholds import Threshold as Threshold
