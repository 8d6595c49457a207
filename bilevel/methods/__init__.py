"""Published methods and the baselines they answer to: each returns a `Method`."""

from bilevel.methods.baselines import clean_only as clean_only
from bilevel.methods.baselines import direct_mixing as direct_mixing
from bilevel.methods.baselines import fixed_weights as fixed_weights
from bilevel.methods.baselines import shuffled_weights as shuffled_weights
from bilevel.methods.baselines import uniform_tuning as uniform_tuning
from bilevel.methods.baselines import validation_only as validation_only
from bilevel.methods.bds import BDSSettings as BDSSettings
from bilevel.methods.bds import bds as bds
from bilevel.methods.dwm import DWMSettings as DWMSettings
from bilevel.methods.dwm import dwm as dwm
from bilevel.methods.dwm import extra_steps as extra_steps
from bilevel.methods.iterit import IterITSettings as IterITSettings
from bilevel.methods.iterit import iterit as iterit
from bilevel.methods.method import Checkable as Checkable
from bilevel.methods.method import Data as Data
from bilevel.methods.method import Leaves as Leaves
from bilevel.methods.method import Method as Method
from bilevel.methods.subsets import SubsetSettings as SubsetSettings
from bilevel.methods.subsets import fixed_share as fixed_share
from bilevel.methods.subsets import longest_rows as longest_rows
from bilevel.methods.subsets import random_rows as random_rows
from bilevel.methods.training import TrainingSettings as TrainingSettings
from bilevel.methods.transfer import transferred as transferred
