"""An upper objective from a user's own file: what it is asked and given, and what is said of a wrong one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Model
from bilevel.data import Row
from bilevel.errors import InputError
from bilevel.objectives import find_objective, upper_objective
from tests.objectives import samples

OBJECTIVES = (
    samples.OBJECTIVES
    + """

def logits(params, batch, model):
    assert model.config is None
    return jnp.mean(model.logits(params, batch) ** 2)


constant = 3
def takes_x(params, x): return x
def takes_no_params(batch): return 1
def by_position(params, /): return 1
def text(params): return "no"
def of_rows(params, batch, model): return model.row_losses(params, batch).means
def counts(params, batch, model): return jnp.sum(model.token_scores(params, batch).correct)
def asks(params, batch, model):
    if model.row_losses(params, batch).means[0] > 0: return 1
def unknown(params, batch, model): return model.losses(params, batch)
"""
)
ROWS = [
    Row(f"valid.jsonl:{n}", f"Is {n} it?", "", answer)
    for n, answer in enumerate(("yes", "no", "yes", "no"), 1)
]
BATCH = {
    "tokens": jax.random.randint(jax.random.key(0), (4, 5), 0, 7),
    "segments": jnp.ones((4, 5), jnp.int32),
    "loss_mask": jnp.arange(5) > jnp.asarray([[1], [2], [3], [9]]),
    "row_id": jnp.asarray([0, 1, 2, -1]),
}
PARAMS = {"table": jax.random.normal(jax.random.key(1), (7, 7))}
MODEL = Model.from_logits(lambda params, tokens: params["table"][tokens], PARAMS)


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(OBJECTIVES.splitlines(), start=1) if text in line)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objectives.py").write_text(OBJECTIVES)
    return tmp_path


def upper_of(where: str):
    function = find_objective(where, "--upper")
    model = MODEL.for_objective(ROWS)
    return upper_objective(f"--upper {where}", function, model, jnp.zeros(3), PARAMS, BATCH)


def test_objectives_are_asked_of_the_trusted_rows(folder):
    losses = MODEL.row_losses(PARAMS, BATCH)
    for name, rows in (("yes", [0, 2]), ("no", [1])):
        mean = upper_of(f"objectives.py:{name}")(jnp.zeros(3), PARAMS, BATCH)
        np.testing.assert_allclose(mean.value, np.mean(losses.means[np.array(rows)]), rtol=1e-6)


def test_objectives_may_return_a_number_and_look_at_tokens_and_logits(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    losses = MODEL.row_losses(PARAMS, BATCH)
    mean = upper_of("objectives:number")(jnp.zeros(3), PARAMS, BATCH)
    np.testing.assert_allclose(mean.value, jnp.sum(losses.total) / 20, rtol=1e-6)
    logits = upper_of("objectives:logits")(jnp.zeros(3), PARAMS, BATCH)
    np.testing.assert_allclose(logits.value, jnp.mean(MODEL.logits(PARAMS, BATCH) ** 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("objectives.py", "write MODULE:FUNCTION or path/to/file.py:FUNCTION"),
        ("no_such_module:f", "no module no_such_module: run from the folder"),
        ("elsewhere/objectives.py:f", "no such file"),
        ("objectives.py:maybe", "objectives.py has no 'maybe'; its functions: answered, yes, no"),
        ("objectives.py:constant", "constant is no function but int"),
        ("objectives.py:takes_x", "takes 'x', but is given params, batch, model, outer alone"),
        ("objectives.py:takes_no_params", "takes no 'params'"),
        ("objectives.py:by_position", "takes 'params' by position alone"),
        ("objectives.py:text", "returned str, made by no function of JAX; return a bilevel.core.Mean"),
        ("objectives.py:of_rows", "returned an array of shape (4,)"),
        ("objectives.py:counts", "returned int32, which has no gradient"),
        (
            "objectives.py:asks",
            f"line {line_of('means[0] > 0')}: TracerBoolConversionError: Attempted boolean conversion",
        ),
        (
            "objectives.py:unknown",
            f"line {line_of('model.losses(')}: AttributeError: 'ObjectiveModel' object has no attribute 'losses'",
        ),
        ("broken.py:f", "broken.py:2: expected ':'"),
        ("failing.py:f", "line 1: ZeroDivisionError"),
    ],
)
def test_wrong_objectives_are_refused_in_one_line(function, said, folder):
    (folder / "broken.py").write_text("\ndef f(params)\n    pass\n")
    (folder / "failing.py").write_text("1 / 0\n")
    with pytest.raises(InputError) as error:
        upper_of(function)
    text = str(error.value)
    assert text.startswith(f"--upper {function.partition(':')[0]}")
    assert "\n" not in text
    assert said in text
