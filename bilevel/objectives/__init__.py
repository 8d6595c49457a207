"""Losses of the lower and the upper level."""

from bilevel.objectives.sft import exact_matches as exact_matches
from bilevel.objectives.sft import mean_loss as mean_loss
from bilevel.objectives.sft import response_losses as response_losses
from bilevel.objectives.sft import response_losses_of_logits as response_losses_of_logits
