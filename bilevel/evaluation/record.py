"""What several models made of tasks, as plain values for a JSON file."""

from __future__ import annotations

from typing import Any

from bilevel.evaluation.section import Found, compared


def evaluation_record(found: Found) -> dict[str, Any]:
    """Metrics with intervals by model and task, and the differences of models from the first.

    Args:
        found: by model and task.
    """
    return {
        "models": {
            model: {
                task: {name: one._asdict() for name, one in measured.estimates().items()}
                for task, measured in tasks.items()
            }
            for model, tasks in found.items()
        },
        "differences": [
            {
                "task": one.task,
                "metric": one.metric.name,
                "model": one.model,
                "from": one.first,
                **one.difference._asdict(),
            }
            for one in compared(found)
        ],
    }
