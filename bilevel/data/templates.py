"""Templates: how a row becomes prompts and responses."""

from collections.abc import Sequence
from dataclasses import dataclass

from bilevel.data.chat import CHAT, ChatTemplate, check_chat_template, has_chat_template
from bilevel.data.exchange import Exchange, Targets, last_alone, without_unlearned
from bilevel.data.forms import CONVERSATIONS
from bilevel.data.rows import Row
from bilevel.data.texts import Unusable
from bilevel.data.tokenizer import Tokenizer, start_tokens, tokenise
from bilevel.errors import InputError


@dataclass(frozen=True)
class Template:
    r"""Wording around a row's texts.

    >>> template = Template("mine", "Q: {instruction} ({input})\nA: ", "Q: {instruction}\nA: ")
    >>> template.prompt(Row("a:1", "Add.", "2 3", "5"))
    'Q: Add. (2 3)\nA: '

    Attributes:
        name: how users ask for it.
        with_input: prompt of a row that has an input; `{instruction}` and `{input}` stand for its texts.
        without_input: prompt of a row that has none; `{instruction}` stands for its text.
        system: what stands before the first prompt of a row with a system message; `{system}` stands for it.
    """

    name: str
    with_input: str
    without_input: str
    system: str = "{system}\n\n"

    def prompt(self, row: Row) -> str:
        """Text of a row's last question, up to where its response starts."""
        if row.input.strip():
            return self.with_input.format(instruction=row.instruction, input=row.input)
        return self.without_input.format(instruction=row.instruction)

    def texts(self, row: Row) -> list[tuple[str, str]]:
        """Prompt and response text of each turn, the row's own last; the system message stands in the first."""
        turns = [
            (self.without_input.format(instruction=question), answer) for question, answer in row.history
        ]
        turns.append((self.prompt(row), row.output))
        if row.system.strip():
            turns[0] = (self.system.format(system=row.system) + turns[0][0], turns[0][1])
        return turns

    def exchanges(
        self, rows: Sequence[Row], tokenizer: Tokenizer, targets: Targets = "all"
    ) -> list[list[Exchange] | Unusable]:
        """Tokens of rows: [start] prompt response [end token] prompt response [end token] ...

        They start as the tokenizer's own call lets every text start: with a start token, or without.

        Prompt and response are tokenised apart, so that a prompt's tokens never depend on its response: what is
        trained is what generation sees. Names of special tokens inside a row's text are plain text.
        """
        texts = [self.texts(row) for row in rows]
        tokens = iter(tokenise(tokenizer, [text for turns in texts for turn in turns for text in turn]))
        start = start_tokens(tokenizer)
        found: list[list[Exchange] | Unusable] = []
        for row, turns in zip(rows, texts, strict=True):
            exchanges = []
            empty = ""
            for number in range(len(turns)):
                prompt, response = next(tokens), next(tokens)
                if not response:
                    empty = "no response token"
                context = prompt if number else start + prompt
                if not context:
                    empty = empty or "no prompt token"
                exchanges.append(Exchange(context, [*response, tokenizer.eos_token_id]))
            if empty:
                found.append(Unusable(empty, "write text that the tokenizer knows, or use another tokenizer"))
            else:
                learned = without_unlearned(exchanges, row.unlearned)
                found.append(learned if targets == "all" else [last_alone(learned)])
        return found


# The wording of github.com/tatsu-lab/stanford_alpaca, train.py: the response follows "### Response:"
# directly.
ALPACA = Template(
    "alpaca",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
)

PLAIN = Template("plain", "{instruction}\n{input}\n", "{instruction}\n", "{system}\n")

RAW = Template("raw", "{instruction}\n{input}", "{instruction}", "{system}\n")
"""Nothing added: the response follows the prompt directly, as completion columns often mean it."""

DIALOGUE = Template(
    "dialogue", "User: {instruction}\n{input}\nAssistant: ", "User: {instruction}\nAssistant: "
)
"""The wording of the published code of BDS (Xiao & Chen, arXiv 2511.21056) and SEAL."""

TEMPLATES: dict[str, Template | ChatTemplate] = {
    template.name: template for template in (ALPACA, PLAIN, RAW, DIALOGUE, CHAT)
}


def get_template(name: str) -> Template | ChatTemplate:
    """Template of this name.

    >>> get_template("raw").prompt(Row("a:1", "The sky is", "", " blue."))
    'The sky is'

    Raises:
        InputError: there is none.
    """
    if name not in TEMPLATES:
        raise InputError(f"unknown template {name!r}; choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def choose_template(
    name: str, rows: Sequence[Row], tokenizer: Tokenizer | None
) -> tuple[Template | ChatTemplate, str]:
    """The template of a run.

    >>> template, said = choose_template("auto", [Row("a:1", "Hi.", "", "Hello.", form="messages")], None)
    >>> template.name, said
    ('plain', 'template plain, since the tokenizer has no chat template')

    "auto" is the tokenizer's own chat template where the rows came as conversations and there is one, else `PLAIN`.

    Args:
        name: of a template, or "auto".
        rows: training rows.
        tokenizer: None where it will be trained on the rows' texts, and has no chat template.

    Returns:
        The template, and a line for the user where it was chosen for them, else "".

    Raises:
        InputError: no such template, or "chat" without a chat template.
    """
    known = tokenizer is not None and has_chat_template(tokenizer)
    if name != "auto":
        template = get_template(name)
        if isinstance(template, ChatTemplate):
            check_chat_template(tokenizer)
        return template, ""
    if any(row.form in CONVERSATIONS for row in rows):
        if known:
            return CHAT, "template chat, the tokenizer's own, since the rows are conversations"
        return PLAIN, "template plain, since the tokenizer has no chat template"
    if known:
        return PLAIN, "template plain, since the rows are no conversations; chat is the tokenizer's own"
    return PLAIN, ""
