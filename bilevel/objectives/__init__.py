"""Losses of the lower and the upper level."""

from bilevel.objectives.sft import exact_matches as exact_matches
from bilevel.objectives.sft import mean_loss as mean_loss
from bilevel.objectives.sft import response_losses as response_losses
from bilevel.objectives.sft import response_losses_of_logits as response_losses_of_logits
from bilevel.objectives.token_scores import TokenScores as TokenScores
from bilevel.objectives.token_scores import scores_of_logits as scores_of_logits
from bilevel.objectives.user import ObjectiveModel as ObjectiveModel
from bilevel.objectives.user import find_objective as find_objective
from bilevel.objectives.user import upper_objective as upper_objective
