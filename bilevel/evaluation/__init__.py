"""Evaluation: tasks that are put to models, metrics with intervals, and models beside one another on the same rows."""

from bilevel.evaluation.answers import Answering as Answering
from bilevel.evaluation.bootstrap import Difference as Difference
from bilevel.evaluation.bootstrap import Estimate as Estimate
from bilevel.evaluation.bootstrap import estimate as estimate
from bilevel.evaluation.bootstrap import paired_difference as paired_difference
from bilevel.evaluation.generate import Generate as Generate
from bilevel.evaluation.kind import Asked as Asked
from bilevel.evaluation.kind import Encoded as Encoded
from bilevel.evaluation.kind import Kind as Kind
from bilevel.evaluation.kind import Reading as Reading
from bilevel.evaluation.last_word import LastWord as LastWord
from bilevel.evaluation.loss import Loss as Loss
from bilevel.evaluation.measured import Measured as Measured
from bilevel.evaluation.measured import read_measured as read_measured
from bilevel.evaluation.measured import write_measured as write_measured
from bilevel.evaluation.metrics import Metric as Metric
from bilevel.evaluation.multiple_choice import MultipleChoice as MultipleChoice
from bilevel.evaluation.read import KINDS as KINDS
from bilevel.evaluation.read import TaskOptions as TaskOptions
from bilevel.evaluation.read import read_tasks as read_tasks
from bilevel.evaluation.refusal import Refusal as Refusal
from bilevel.evaluation.refusal import is_refusal as is_refusal
from bilevel.evaluation.section import evaluation_section as evaluation_section
from bilevel.evaluation.section import evaluation_text as evaluation_text
from bilevel.evaluation.task import PreparedTask as PreparedTask
from bilevel.evaluation.task import Task as Task
