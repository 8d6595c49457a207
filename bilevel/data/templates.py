"""Templates: how a row becomes a prompt and a response."""

from dataclasses import dataclass

from bilevel.data.rows import Row
from bilevel.errors import InputError


@dataclass(frozen=True)
class Template:
    """Wording around a row's texts.

    Args:
        name: how users ask for it.
        with_input: prompt of a row that has an input; `{instruction}` and `{input}` stand for its texts.
        without_input: prompt of a row that has none; `{instruction}` stands for its text.
    """

    name: str
    with_input: str
    without_input: str

    def prompt(self, row: Row) -> str:
        """Prompt text of a row, up to where its response starts."""
        if row.input.strip():
            return self.with_input.format(instruction=row.instruction, input=row.input)
        return self.without_input.format(instruction=row.instruction)

    def __call__(self, row: Row) -> tuple[str, str]:
        """Prompt text and response text of a row."""
        return self.prompt(row), row.output


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

PLAIN = Template("plain", "{instruction}\n{input}\n", "{instruction}\n")

TEMPLATES = {template.name: template for template in (ALPACA, PLAIN)}


def get_template(name: str) -> Template:
    """Template of this name.

    Raises:
        InputError: there is none.
    """
    if name not in TEMPLATES:
        raise InputError(f"unknown template {name!r}; choose one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
