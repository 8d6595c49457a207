"""From outer variables to row weights, and how row weights are moved and measured."""

from bilevel.weighting.by_part import by_part as by_part
from bilevel.weighting.fixed import given as given
from bilevel.weighting.fixed import row_weights as row_weights
from bilevel.weighting.fixed import uniform as uniform
from bilevel.weighting.network import Scope as Scope
from bilevel.weighting.network import Scorer as Scorer
from bilevel.weighting.network import added as added
from bilevel.weighting.network import network as network
from bilevel.weighting.network_encoder import EncoderSettings as EncoderSettings
from bilevel.weighting.network_encoder import encoder as encoder
from bilevel.weighting.network_features import loss_scorer as loss_scorer
from bilevel.weighting.network_features import signal_scorer as signal_scorer
from bilevel.weighting.penalties import entropy_penalty as entropy_penalty
from bilevel.weighting.product import product as product
from bilevel.weighting.row_logits import pool_weights as pool_weights
from bilevel.weighting.row_logits import row_logits as row_logits
from bilevel.weighting.row_updates import exponentiated_gradient as exponentiated_gradient
from bilevel.weighting.row_updates import visited_sgd as visited_sgd
from bilevel.weighting.statistics import effective_sample_size as effective_sample_size
from bilevel.weighting.statistics import heaviest_share as heaviest_share
from bilevel.weighting.statistics import separation_auc as separation_auc
