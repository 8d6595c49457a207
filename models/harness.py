"""Our models in lm-evaluation-harness (the extra `eval`): its tasks, put to a `LanguageModel`.

import lm_eval, models
from models.harness import HarnessModel

model = HarnessModel(models.load("path/to/llama"))
lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from models.errors import ModelError
from models.language_model import LanguageModel
from models.parameters import Params
from models.sampling import Answer, Sampling, row_keys

Tokens = list[int]


class HarnessModel(LM):
    """A language model as lm-evaluation-harness asks it.

    Texts are tokenised as its own Hugging Face models do: a context's trailing blanks belong to the continuation, whose
    tokens are those that it adds to the context's. A context that is too long loses its beginning.

    Args:
        language: the model, with a tokenizer.
        params: what was trained, by default what the model was read with.
        start_token: whether every context begins with the tokenizer's start token, where it has one (its
            `add_bos_token`).
        batch_rows: contexts that are read side by side.
        max_new_tokens: the most tokens of an answer where a task does not say how many.
        seed: of answers that are drawn.

    Raises:
        ModelError: the model has no tokenizer.
    """

    def __init__(
        self,
        language: LanguageModel,
        params: Params | None = None,
        *,
        start_token: bool = True,
        batch_rows: int = 32,
        max_new_tokens: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        if language.tokenizer is None:
            raise ModelError("the model has no tokenizer: give one to models.load")
        self.language, self.tokenizer = language, language.tokenizer
        self.params = language.params if params is None else params
        self.batch_rows, self.max_new_tokens = batch_rows, max_new_tokens
        self.max_length = language.config.max_positions
        start = self.tokenizer.bos_token_id
        self._head = [start] if start_token and start is not None else []
        self._prefix = start if start is not None else self.tokenizer.eos_token_id
        self._key = jax.random.key(seed)

    @property
    def tokenizer_name(self) -> str:
        """The model's name, by which the harness tells its caches of requests apart."""
        return str(self.language.name).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the wording of the tokenizer's chat template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's chat template, for the record of an evaluation; "" where none is asked for."""
        if not chat_template:
            return ""
        return self.tokenizer.chat_template if chat_template is True else chat_template

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, in nats, and whether it is the greedy one."""
        pairs = [self._pair(*request.args) for request in requests]
        found = self._scores(pairs)
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows in which every token is predicted once, from as many as fit."""
        windows = [self._windows(*request.args) for request in requests]
        scores = iter(self._scores([pair for some in windows for pair in some]))
        found = [sum(next(scores)[0] for _ in some) for some in windows]
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, one)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first of its task's stop texts."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(number)
        found = [""] * len(requests)
        for numbers in alike.values():
            settings = dict(requests[numbers[0]].args[1])
            stops = _stops(settings)
            for number, answer in self._answers([requests[n].args[0] for n in numbers], settings, numbers):
                text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
                found[number] = text[
                    : min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
                ]
                self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
        return found

    def _scores(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        """Each continuation's log-likelihood, and whether it is greedy; a context is read once for all of its own."""
        together: dict[tuple[int, ...], list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            together.setdefault(tuple(context), []).append(number)
        continuations = [[pairs[number][1] for number in numbers] for numbers in together.values()]
        scores = self.language.choices(
            self.params, [list(context) for context in together], continuations, batch_prompts=self.batch_rows
        )
        found: dict[int, tuple[float, bool]] = {}
        for numbers, of_context in zip(together.values(), scores, strict=True):
            likelihoods, greedy = of_context.log_likelihoods.tolist(), of_context.greedy.tolist()
            found |= zip(numbers, zip(likelihoods, greedy, strict=True), strict=True)
        return [found[number] for number in range(len(pairs))]

    def _pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        """Tokens of a context and of what its continuation adds to them, cut on the left to what the model reads."""
        if not context:
            before, after = [self._prefix], self._tokens(continuation)
        else:
            text = context.rstrip()
            before = self._tokens(text)
            after = self._tokens(context + continuation)[len(before) :]
            before = self._head + before
        if not before:  # a context of blanks alone, and no start token
            before = [self._prefix]
        return before[-(self.max_length - len(after)) :], after

    def _windows(self, text: str) -> list[tuple[Tokens, Tokens]]:
        # The model has a position for every token, the last one included, which the harness does not count.
        windows = get_rolling_token_windows(self._tokens(text), self._prefix, self.max_length - 1, 1)
        return [make_disjoint_window(window) for window in windows]

    def _answers(
        self, contexts: Sequence[str], settings: dict[str, Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Answer]]:
        sampling = self._sampling(settings)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise ModelError(
                f"answers of {sampling.max_new_tokens} tokens leave no room for a context: the model is made for "
                f"{self.max_length} positions; lower max_gen_toks"
            )
        prompts = [(self._head + self._tokens(context) or [self._prefix])[-room:] for context in contexts]
        keys = row_keys(self._key, numbers) if sampling.temperature > 0 else None
        answers = self.language.generate(self.params, prompts, keys, sampling, batch_rows=self.batch_rows)
        return zip(numbers, answers, strict=True)

    def _sampling(self, settings: dict[str, Any]) -> Sampling:
        most = settings.get("max_gen_toks", settings.get("max_new_tokens", self.max_new_tokens))
        draws = settings.get("do_sample", settings.get("temperature", 0) > 0)
        end = self.tokenizer.eos_token_id
        return Sampling(
            max_new_tokens=most,
            temperature=settings.get("temperature", 1.0) if draws else 0.0,
            top_k=settings.get("top_k") or None,
            top_p=settings.get("top_p", 1.0),
            stop_tokens=() if end is None else (end,),
        )

    def _tokens(self, text: str) -> Tokens:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _stops(settings: dict[str, Any]) -> list[str]:
    stops = settings.get("until") or []
    return [stops] if isinstance(stops, str) else list(stops)
