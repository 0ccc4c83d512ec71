"""The lines of a task's files, read into labelled texts and blanks with candidates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from glm_jax.data.finetune.forms import Entry, parse_object, text_field
from glm_jax.data.finetune.lines import Lines
from glm_jax.data.finetune.options import FinetuneData
from glm_jax.data.sources import files, readers
from glm_jax.data.tasks.cloze import Cloze
from glm_jax.data.tasks.options import TaskOptions
from glm_jax.data.tasks.superglue import PATTERNS
from glm_jax.errors import UserError


class LabelledText(tuple[str, str]):
    """A text and the name of its class."""


Item = LabelledText | Cloze
TaskRecords = list[tuple[str, Item]]
"""Each with its place, such as ``train.jsonl, line 3``."""


def open_task_records(task: TaskOptions, data: FinetuneData, split: str) -> TaskRecords:
    """All examples of the split "train" or "heldout".

    Without a file of its own every n-th line is held out, as many as ``heldout_percent`` says.

    Raises:
      UserError: a file or a line is bad, and is named.
    """
    learn = split == "train"
    if data.heldout:
        return list(_read(task, data.files if learn else (data.heldout,), learn))
    if not data.heldout_percent:
        return list(_read(task, data.files, learn)) if learn else []
    every = max(2, round(100 / data.heldout_percent))
    return list(_read(task, data.files, learn, lambda i: (i % every == every - 1) != learn))


def class_names(task: TaskOptions, records: TaskRecords) -> tuple[str, ...]:
    """The names of the classes in their order.

    Raises:
      UserError: an example has a class that is none of those named.
    """
    found = sorted({item[1] for _, item in records if isinstance(item, LabelledText)})
    if not task.labels:
        return tuple(found)
    for place, item in records:
        if isinstance(item, LabelledText) and item[1] not in task.labels:
            known = ", ".join(task.labels)
            raise UserError(f"{place}: label {item[1]!r} is none of --task.labels {known}")
    return task.labels


def question_numbers(records: TaskRecords) -> list[int]:
    """Of each example its question's, from 0 on; blanks of one question share it."""
    named = [(place, getattr(item, "question", "")) for place, item in records]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(named))}
    return [numbers[name] for name in named]


def _read(
    task: TaskOptions,
    patterns: Sequence[str],
    learn: bool,
    wanted: Callable[[int], bool] = lambda line: True,
) -> Iterator[tuple[str, Item]]:
    """Of the lines that are wanted, counted over all files."""
    if not patterns:
        raise UserError("--data is empty; it names the files to fine-tune on")
    number = itertools.count()
    for path in itertools.chain.from_iterable(map(files.find, patterns)):
        if readers.kind(path) != ".jsonl":
            raise UserError(f"{path}: a task's data is .jsonl (also .gz or .zst)")
        lines = Lines(path)
        for i in range(len(lines)):
            if wanted(next(number)):
                place = lines.place(i)
                try:
                    for item in _items(task, parse_object(lines[i]), learn):
                        yield place, item
                except UserError as error:
                    raise UserError(f"{place}: {error}") from None


def _items(task: TaskOptions, entry: Entry, learn: bool) -> Iterator[Item]:
    if task.name == "classify":
        text = "\n".join(text_field(entry, name) for name in task.text_fields)
        label = entry.get(task.label_field)
        if not isinstance(label, str | int):
            raise UserError(f"field {task.label_field!r} is {label!r}, not the name of a class")
        yield LabelledText((text, str(label)))
    elif task.name == "choice":
        yield _choice(task, entry)
    else:
        known = PATTERNS[task.name]
        if task.pattern not in known.patterns:
            shown = ", ".join(map(str, known.patterns))
            raise UserError(f"{task.name} has no pattern {task.pattern}; there are {shown}")
        for cloze in known.read(entry, task.pattern):
            yield from known.learn(cloze) if learn else (cloze,)


def _choice(task: TaskOptions, entry: Entry) -> Cloze:
    choices, label = entry.get("choices_pretokenized"), entry.get(task.label_field)
    if (
        not isinstance(choices, list)
        or not choices
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise UserError(f"field 'choices_pretokenized' is {choices!r}, not a list of texts")
    if not isinstance(label, int) or not 0 <= label < len(choices):
        raise UserError(f"{task.label_field} {label!r} is no index of the {len(choices)} choices")
    return Cloze(text_field(entry, "inputs_pretokenized"), tuple(choices), label)
