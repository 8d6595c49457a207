"""What a run sets out to do, gathered from what it was told."""

from __future__ import annotations

import jax

from bilevel.runs.job import Job
from bilevel.runs.run_facts import RunFacts, SetFacts


def run_facts(job: Job) -> RunFacts:
    """What `run.json` holds."""
    record = job.record
    trained = sum(leaf.size for leaf in jax.tree.leaves(job.model.params))
    return RunFacts(
        experiment=record.experiment,
        methods=tuple(job.methods),
        main=job.main,
        sets={
            name: SetFacts(record.sources.get(name, "given to the run"), len(rows))
            for name, rows in job.data.items()
        },
        model=record.model,
        parameters=trained + sum(leaf.size for leaf in jax.tree.leaves(job.model.base)),
        trained=trained,
        prompt=record.prompt,
        notices=record.notices,
    )
