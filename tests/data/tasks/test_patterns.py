"""SuperGLUE's lines as blanks to fill."""

import json

import pytest

from glm_jax.data import FinetuneData
from glm_jax.data.tasks import TaskOptions, class_names, open_task_records, question_numbers
from glm_jax.data.tasks.overlap import bare, word_f1
from glm_jax.errors import UserError

NLI = {"premise": "It rains.", "hypothesis": "It is wet."}
QA = {"passage": "Cats sleep.", "question": "do cats sleep", "label": True}
WIC = {"sentence1": "A bank.", "sentence2": "The bank.", "word": "bank", "label": False}
COPA = {"premise": "He fell.", "choice1": "He slipped.", "choice2": "He slept.", "label": 0}
MULTIRC = {
    "passage": {
        "text": "Ann ran",
        "questions": [
            {"question": "Who ran", "answers": [{"text": "Ann", "label": 1},
                                                {"text": "Bob", "label": 0}]}
        ],
    }
}  # fmt: skip
RECORD = {
    "passage": {
        "text": "Ann met Bob.\n@highlight\nA meeting",
        "entities": [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 0, "end": 2}],
    },
    "qas": [{"query": "It was @placeholder who met Bob.", "answers": [{"text": "Ann"}]}],
}
WSC = {
    "text": "Ann saw that \u201cshe\u201d won when Bob fell, she said.",
    "target": {"span1_text": "Ann", "span2_text": "she", "span2_index": 9},
    "candidates": [{"text": "Bob"}, {"text": "that"}, {"text": "Bob"}],
    "label": True,
}
WSC_TEXT = 'Ann saw that "she" won when Bob fell, *she* said.'
CASES = {
    ("rte", 0): (NLI | {"label": "entailment"},
                 ('"It is wet" ?[MASK], "It rains."', (" Yes", " No"), 0)),
    ("rte", 3): (NLI | {"label": "not_entailment"},
                 ("It is wet?[MASK]. It rains.", (" Yes", " No"), 1)),
    ("rte", 4): (NLI | {"label": "entailment"},
                 ("It rains. question: It is wet True or False? answer:[MASK]",
                  (" true", " false"), 0)),
    ("cb", 1): (NLI | {"label": "neutral"},
                ("It is wet?[MASK], It rains.", (" Yes", " No", " Maybe"), 2)),
    ("cb", 4): (NLI | {"label": "contradiction"},
                ("It rains. question: It is wet true, false or neither? answer:[MASK]",
                 (" true", " false", " neither"), 1)),
    ("boolq", 0): (QA, ("Cats sleep. Question: do cats sleep? Answer:[MASK].", (" No", " Yes"), 1)),
    ("boolq", 3): (QA, ("Cats sleep. Based on the previous passage, do cats sleep?[MASK].",
                        (" false", " true"), 1)),
    ("boolq", 4): (QA, ("Based on the following passage do cats sleep?[MASK]. Cats sleep.",
                        (" No", " Yes"), 1)),
    ("wic", 1): (WIC, ("A bank. The bank. Does bank have the same meaning in both sentences?[MASK]",
                       (" No", " Yes"), 0)),
    ("copa", 0): (COPA | {"question": "cause"},
                  ('"he slipped" or "he slept"? He fell because[MASK].',
                   (" he slipped", " he slept"), 0)),
    ("copa", 1): (COPA | {"question": "effect"},
                  ("he slipped or he slept? He fell, so[MASK].", (" he slipped", " he slept"), 0)),
    ("multirc", 0): (MULTIRC, ("Ann ran. Question: Who ran? Is it Ann?[MASK].", (" No", " Yes"), 1),
                     ("Ann ran. Question: Who ran? Is it Bob?[MASK].", (" No", " Yes"), 0)),
    ("record", 0): (RECORD, ("Ann met Bob.\n- A meeting It was[MASK] who met Bob.",
                             (" Ann", " Bob"), 0)),
    ("wsc", 0): (WSC, (f"{WSC_TEXT} The pronoun '*she*' refers to[MASK].",
                       (" Ann", " Bob", " that"), 0)),
    ("wsc", 2): (WSC, (f"{WSC_TEXT} Question: In the passage above, what does the pronoun '*she*' "
                       "refer to? Answer:[MASK].", (" Ann", " Bob", " that"), 0)),
}  # fmt: skip


def opened(tmp_path, task, *entries, split="train", **data):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    data = {"heldout_percent": 0} | data
    return open_task_records(task, FinetuneData(files=(str(path),), **data), split)


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_a_line_becomes_a_blank(name, pattern, tmp_path):
    entry, *expected = CASES[name, pattern]
    records = opened(tmp_path, TaskOptions(name=name, pattern=pattern), entry)
    assert [tuple(item[:3]) for _, item in records] == expected


def heldout(tmp_path, task, *entries):
    path = str(tmp_path / "task.jsonl")
    return [item for _, item in opened(tmp_path, task, *entries, split="heldout", heldout=path)]


def test_a_query_has_all_entities_held_out_and_one_right_one_in_training(tmp_path):
    text = " ".join(f"Name{i:02}" for i in range(14)) + " the Name03"
    spans = [{"start": 7 * i, "end": 7 * i + 5} for i in range(14)] + [{"start": 98, "end": 107}]
    entry = {
        "passage": {"text": text, "entities": spans},
        "qas": [{"query": "It was @placeholder.", "answers": [{"text": "Name03"}]}],
    }
    [whole] = heldout(tmp_path, TaskOptions("record"), entry)
    assert len(whole.answers) == 15 and whole.answers[whole.label] == " Name03"
    by_name = dict(zip(whole.answers, zip(whole.credit, whole.overlap, strict=True), strict=True))
    assert by_name[" the Name03"] == (1, 1) and by_name[" Name04"] == (0, 0)
    parts = [item for _, item in opened(tmp_path, TaskOptions("record"), entry)]
    assert [part.answers[0] for part in parts] == [" Name03", " the Name03"]
    assert all(len(part.answers) == 10 and part.label == 0 for part in parts)
    assert not {" Name03", " the Name03"} & {x for part in parts for x in part.answers[1:]}
    assert parts == [item for _, item in opened(tmp_path, TaskOptions("record"), entry)]


def test_a_pronoun_that_is_not_the_span_is_only_judged(tmp_path):
    task, entry = TaskOptions("wsc"), WSC | {"label": False}
    assert opened(tmp_path, task, entry) == []
    [judged] = heldout(tmp_path, task, entry)
    assert judged.label == -1 and judged.credit == (0, 1, 1)
    many = WSC | {"candidates": [{"text": f"name {i}"} for i in range(12)]}
    groups = [item.answers for _, item in opened(tmp_path, task, many)]
    assert [len(group) for group in groups] == [10, 4]
    assert all(group[0] == " Ann" for group in groups)


def test_the_answers_of_a_question_belong_together(tmp_path):
    records = opened(tmp_path, TaskOptions("multirc"), MULTIRC, MULTIRC)
    assert question_numbers(records) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("answer", "truth", "same", "f1"),
    [
        ("The U.S. Army", "us army", True, 1.0),
        ("Caf\u00e9 Roma", "cafe", False, 2 / 3),
        ("Ann Ann", "Ann", False, 2 / 3),
        ("Bob", "Ann", False, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, truth, same, f1):
    assert (bare(answer) == bare(truth)) is same
    assert word_f1(answer, truth) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("task", "entry", "message"),
    [
        (TaskOptions("rte"), NLI | {"label": "maybe"}, "line 1: label 'maybe' is none of entail"),
        (TaskOptions("wic", pattern=2), WIC, "wic has no pattern 2; there are 0, 1"),
        (TaskOptions("boolq"), {"passage": "x"}, "line 1: field 'question' is None, not a text"),
        (TaskOptions("wsc"), WSC | {"candidates": []}, "line 1: field 'candidates' is no list"),
        (
            TaskOptions("wsc"),
            WSC | {"target": WSC["target"] | {"span2_index": 1}},
            "span2_index 1 is not where 'she' stands",
        ),
        (
            TaskOptions("record"),
            RECORD | {"qas": [{"query": "It?", "answers": []}]},
            "query 'It[?]' has no @placeholder",
        ),
        (TaskOptions("classify"), {"text": "x"}, "field 'label' is None, not the name of a class"),
        (TaskOptions("choice"), {"inputs_pretokenized": "x", "label": 0}, "not a list of texts"),
        (
            TaskOptions("choice"),
            {"inputs_pretokenized": "x", "choices_pretokenized": ["a"], "label": 1},
            "label 1 is no index of the 1 choices",
        ),
    ],
)
def test_what_is_wrong_is_named(task, entry, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, task, entry)


def test_classes_and_a_share_that_is_held_out(tmp_path):
    task = TaskOptions("classify", text_fields=("a", "b"))
    entries = [{"a": f"x{i}", "b": "y", "label": "no" if i % 2 else "yes"} for i in range(20)]
    split = {
        name: opened(tmp_path, task, *entries, split=name, heldout_percent=20)
        for name in ("train", "heldout")
    }
    assert [item[0] for _, item in split["heldout"]] == ["x4\ny", "x9\ny", "x14\ny", "x19\ny"]
    assert len(split["train"]) == 16
    assert class_names(task, split["train"]) == ("no", "yes")
    with pytest.raises(UserError, match=r"label .no. is none of --task\.labels yes"):
        class_names(TaskOptions("classify", labels=("yes",)), split["train"])
