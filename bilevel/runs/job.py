"""Everything that a run is told: what runs on what, and what its folder says of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bilevel.data import Rejected
from bilevel.errors import InputError
from bilevel.evaluation.task import PreparedTask
from bilevel.layout import Layout, data_layout
from bilevel.methods.method import Data, Method
from bilevel.model import Model, as_model
from bilevel.storage.checkpoints import CheckpointOptions

Methods = Mapping[str, Method | Callable[[np.ndarray], Method]]
"""Methods by name: what they are, or how they are made from the weights that the main method found."""

NOTEBOOK = "run"
"""What a run is called whose maker gave it no name."""


@dataclass(frozen=True)
class Record:
    """What a run's folder says of the run, beside what was measured; nothing in here changes what comes out.

    Attributes:
        experiment: what was run, for folder names and titles.
        preset: which set of defaults.
        config: settings as nested dataclasses, for `config.yaml`; None for a run whose settings are its code.
        sources: where each data set comes from.
        model: folder or hub name that the model was read from, "" for others.
        prompt: how a prompt is worded, with `{instruction}` and `{input}`; "" where nothing can be said.
        notices: lines for the user about what was left out, cut, shared or recognised.
        rejected: rows that were left out.
        also: fingerprints of what else the run depends on, by what a reader knows it as; it is only ever continued
            with the same.
        known_as: what a reader knows each data set and the model as, for messages.
        proceed: how the run is continued, with `{folder}` for its folder.
        wandb: a project of Weights & Biases that hears what is measured.
    """

    experiment: str = NOTEBOOK
    preset: str = ""
    config: Any = None
    sources: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    prompt: str = ""
    notices: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    also: Mapping[str, str] = field(default_factory=dict)
    known_as: Mapping[str, str] = field(default_factory=dict)
    proceed: str = "run(..., folder={folder}, resume=True)"
    wandb: str | None = None


@dataclass(frozen=True)
class Job:
    """What runs: the arguments of `bilevel.run`, checked.

    Attributes:
        methods: in the order in which they run; those that are made from the main method's weights come after it.
        data: data sets by name.
        model: the model's functions and the parameters that every method starts from.
        main: the method whose weights, selection and model the folder keeps.
        seed: of draws and keys.
        learned: further methods that choose weights, whose separation of faulty rows is worth showing.
        tasks: what each method's model is asked at its end.
        layout: devices and processes.
        checkpoints: when the run is saved.
        record: what its folder says of it.
    """

    methods: Methods
    data: Data
    model: Model
    main: str
    seed: int = 0
    learned: Collection[str] = ()
    tasks: Sequence[PreparedTask] = ()
    layout: Layout = field(default_factory=data_layout)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; give 0 or more")
        if not isinstance(self.methods.get(self.main), Method):
            raise InputError(
                f"the main method {self.main!r} must be one of those that run and stand alone: "
                f"{', '.join(name for name, method in self.methods.items() if isinstance(method, Method))}"
            )
        if self.model.params is None:
            raise InputError("the model has no parameters to start from: give Model(..., params=)")

    @property
    def main_method(self) -> Method:
        """The method whose weights, selection and model the folder keeps."""
        found = self.methods[self.main]
        assert isinstance(found, Method)  # checked above
        return found


def job_of(
    methods: Method | Methods,
    data: Data,
    model: Any,
    *,
    main: str | None = None,
    record: Record | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> Job:
    """A job from what a notebook has at hand; arguments as those of `bilevel.run`."""
    options = {name: value for name, value in options.items() if value is not None}
    named = {methods.name: methods} if isinstance(methods, Method) else methods
    if not named:
        raise InputError("there is no method to run; give at least one")
    first = next((name for name, method in named.items() if isinstance(method, Method)), "")
    found = Record() if record is None else record
    if not found.notices and not found.rejected:
        told = {name: getattr(data, name, ()) for name in ("notices", "rejected")}
        found = Record(**{**vars(found), **told})
    layout = data_layout() if layout is None else layout
    return Job(named, data, as_model(model), main or first, record=found, layout=layout, **options)
