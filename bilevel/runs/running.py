"""`bilevel.run`: methods on rows and a model, from a notebook or a script, with all that a command would leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.findings import HypergradientCheck
from bilevel.core.tree import PyTree
from bilevel.evaluation.task import PreparedTask
from bilevel.layout import Layout
from bilevel.methods.method import Data, Method
from bilevel.report.model_card import MODEL
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.job import Job, Methods, Record, job_of
from bilevel.runs.leaving import OUTER, PARAMETERS, read_tree
from bilevel.runs.run_folder import read_summary
from bilevel.runs.session import run_job
from bilevel.runs.standing import check_job
from bilevel.runs.timing import Timings
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import RANK, read_weights
from bilevel.storage.checkpoints import CheckpointOptions


@dataclass(frozen=True)
class Finished:
    """A run that reached its end, as its folder tells it.

    Attributes:
        folder: the run folder.
        job: what ran.
        results: each method's line of the results.
    """

    folder: Path
    job: Job
    results: Mapping[str, Mapping[str, float | None]]

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.folder / "report.html"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.folder / MODEL

    @cached_property
    def columns(self) -> Mapping[str, np.ndarray]:
        """What was found out about each row of the pool: weight, losses, labels; {} where nothing was."""
        path = self.folder / WEIGHTS
        return read_weights(path) if path.exists() else {}

    @property
    def weights(self) -> Float[np.ndarray, " pool"] | None:
        """The weight of each row of the pool; None of a method that weighs none."""
        return self.columns.get("weight")

    @property
    def selected(self) -> Int[np.ndarray, " selected"] | None:
        """Row ids of the selected rows, best first; None of a method that selects none."""
        ranks = self.columns.get(RANK)
        if ranks is None:
            return None
        order = np.argsort(ranks, kind="stable")
        return order[ranks[order] > 0]

    @cached_property
    def params(self) -> PyTree:
        """The trained parameters, of a model that leaves its own files none: see `model`."""
        return read_tree(self.model / PARAMETERS, self.job.model.params)

    @cached_property
    def outer(self) -> PyTree:
        """The outer variables of a method that is not about rows."""
        import jax

        method, sizes = self.job.main_method, self.job.data["pool"].sizes
        state = jax.eval_shape(
            lambda key, params: method.solver.init(key, params, sizes),
            jax.random.key(0),
            self.job.model.params,
        )
        return read_tree(self.folder / OUTER, state.outer.inner)

    def check(self, **options: Any) -> HypergradientCheck:
        """Checks the main method's hypergradient at the newest checkpoint; see `bilevel.core.check_hypergradient`."""
        return check_job(self.folder, self.job, **options)


def run(
    methods: Method | Methods,
    data: Data,
    model: Any,
    *,
    main: str | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    layout: Layout | None = None,
    learned: Collection[str] = (),
    tasks: Sequence[PreparedTask] = (),
    checkpoints: CheckpointOptions | None = None,
    record: Record | None = None,
) -> Finished:
    """Runs methods on rows and a model, and leaves a folder with results, weights, model and report.

        found = bilevel.run(bilevel.methods.bds(model, data, training=training), data, model, folder="runs/mine")
        found.weights, found.selected, found.report

    Killed at any moment and called again with `resume=True`, it ends as if nothing had happened, bit for bit.

    Args:
        methods: a method, or several by name, which run one after another from the same start.
        data: data sets by name, as `bilevel.data.load` gives them: `pool`, `validation`, and perhaps `test`.
        model: a `bilevel.Model`, or a language model of `models.load`.
        main: the method whose weights, selection and model the folder keeps; by default the first.
        folder: where; None for a fresh folder in `runs`.
        resume: whether to go on with the run that stands there. Where none has begun, it begins; where it is finished,
            it is read back.
        seed: of draws and keys.
        layout: devices and processes; by default all devices share each batch.
        learned: further methods that choose weights, whose separation of faulty rows is shown.
        tasks: what each method's model is asked at its end, `bilevel.evaluation.Task.prepared`.
        checkpoints: when the run is saved; by default once a minute.
        record: what the folder says of the run.

    Raises:
        InputError: before time is spent: rows, model, methods or folder do not fit.
        RunEnded: the run was asked to stop (Ctrl-C, SIGTERM), or the disk is full; it can be continued.
    """
    job = job_of(
        methods,
        data,
        model,
        main=main,
        seed=seed,
        layout=layout,
        learned=learned,
        tasks=tasks,
        checkpoints=checkpoints,
        record=record,
    )
    path = None if folder is None else Path(folder)
    if not (resume and path is not None and is_finished(path)):
        enable_compilation_cache()
        with Timings():
            path = run_job(job, path, resume)
    assert path is not None  # named, or made
    return _finished(path, job)


def run_configured(job_of: Callable[[Any], Job], config: Any) -> Finished:
    """Runs what a configuration stands for, where its field `run` says.

    Args:
        job_of: from a configuration to what runs.
        config: with `run`, `RunOptions`.

    Raises:
        InputError, RunEnded: as `run`.
    """
    began = time.monotonic()
    enable_compilation_cache()
    job = job_of(config)
    resume = config.run.resume
    folder = run_job(job, resume or config.run.run_dir, resume is not None, began)
    return _finished(folder, job)


def _finished(folder: Path, job: Job) -> Finished:
    return Finished(folder, job, read_summary(folder)["methods"])


def is_finished(folder: Path) -> bool:
    """Whether a run reached its end."""
    return (folder / "summary.json").exists() and (folder / "report.html").exists()
