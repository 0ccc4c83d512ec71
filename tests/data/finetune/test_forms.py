"""The forms of fine-tuning files, and one line for everything that is wrong with one."""

import gzip
import pickle

import pytest

from glm_jax.chat import Message, ToolCall
from glm_jax.data import FinetuneData
from glm_jax.data.finetune import open_records
from glm_jax.data.finetune.forms import Conversation, Pair, Text
from glm_jax.errors import UserError
from tests.data.finetune.files import write

QA = [Message("user", "q"), Message("assistant", "a")]
TOOL = {"type": "function", "function": {"name": "track"}}
CALL = Message("assistant", tool_calls=(ToolCall("track", {"symbol": "10111"}),))


def read(path, **fields):
    return open_records(FinetuneData(files=(path,), heldout_percent=0, **fields), "train", "x")


USER = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
FORMS = {
    "chatglm": ({"prompt": "q", "response": "a"}, Pair("q", "a")),
    "no history": ({"prompt": "q", "response": "a", "history": []}, Pair("q", "a")),
    "history": (
        {"prompt": "q", "response": "a", "history": [["q1", "a1"]]},
        Conversation([Message("user", "q1"), Message("assistant", "a1"), *QA]),
    ),
    "adgen": ({"content": "q", "summary": "a"}, Pair("q", "a")),
    "seq2seq": ({"source": "q", "target": "a"}, Pair("q", "a")),
    "text": ({"text": "x"}, Text("x")),
    "chatglm3": (
        {"conversations": [USER, SAID]},
        Conversation(QA),
    ),
    "chatglm3, tools": (
        {
            "tools": [{"name": "track"}],
            "conversations": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "so", "loss": False},
                {"role": "tool", "name": "track", "parameters": {"symbol": "10111"},
                 "observation": {"price": 1}},
                {"role": "assistant", "content": "a"},
            ],
        },
        Conversation(
            [Message("system", "s"), QA[0], Message("assistant", "so", loss=False), CALL,
             Message("observation", '{"price": 1}'), QA[1]],
            [{"name": "track"}],
        ),
    ),
    "glm-4": (
        {
            "messages": [
                {"role": "system", "content": "s", "tools": [TOOL]},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "track\n{}"},
                {"role": "observation", "content": "1"},
                {"role": "assistant", "content": "a"},
            ]
        },
        Conversation(
            [Message("system", "s", tools=[TOOL]), QA[0], Message("assistant", "track\n{}"),
             Message("observation", "1"), QA[1]]
        ),
    ),
    "openai": (
        {
            "tools": [TOOL],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": None, "weight": 0, "tool_calls": [
                    {"id": "1", "type": "function", "function":
                     {"name": "track", "arguments": '{"symbol": "10111"}'}}]},
                {"role": "tool", "tool_call_id": "1", "content": "1"},
                {"role": "assistant", "content": "a", "weight": 1},
            ],
        },
        Conversation(
            [QA[0],
             Message("assistant", tool_calls=(ToolCall("track", {"symbol": "10111"}, id="1"),),
                     loss=False),
             Message("observation", "1", tool_call_id="1"),
             Message("assistant", "a", loss=True)],
            [TOOL],
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_known_by_its_fields(name, tmp_path):
    entry, content = FORMS[name]
    [record] = read(write(tmp_path / "a.jsonl", entry))
    assert record.content == content


def test_chosen_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "x", "a": "y", "h": [["b", "c"]], "text": "t"})
    [record] = read(path, prompt_column="q", response_column="a", history_column="h")
    assert [m.content for m in record.content.messages] == ["b", "c", "x", "y"]
    [record] = read(path, form="text")
    assert record.content == Text("t")


def test_pairs_of_files(tmp_path):
    (tmp_path / "train.source").write_text("q 1\nq 2\n")
    (tmp_path / "train.target").write_text("a 1\na 2\n")
    records = read(str(tmp_path / "train"))
    assert [r.content for r in records] == [Pair("q 1", "a 1"), Pair("q 2", "a 2")]
    assert records[1].place == f"{tmp_path}/train.source, line 2"
    (tmp_path / "train.target").write_text("a 1\n")
    with pytest.raises(UserError, match=r"train.source has 2 lines and train.target 1; line n of"):
        read(str(tmp_path / "train"))


def test_several_files_compressed_and_pickled(tmp_path):
    entries = [{"prompt": f"q{i}", "response": "a"} for i in range(5)]
    plain = write(tmp_path / "a.jsonl", *entries[:3], "", "  ")
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(write_bytes(tmp_path, entries[3:])))
    records = open_records(FinetuneData(files=(plain, str(packed)), heldout_percent=0), "train")
    again = pickle.loads(pickle.dumps(records))
    for some in (records, again):
        assert [r.content.source for r in some] == [f"q{i}" for i in range(5)]
        assert some[4].place == f"{packed}, line 2"


def write_bytes(folder, entries):
    with open(write(folder / "x.txt", *entries), "rb") as file:
        return file.read()


BAD = {
    "not JSON (Expecting ',' delimiter": '{"prompt": "q" "response"}',
    "a JSON list, not an object": "[1]",
    "its form cannot be told from its fields (a, b)": {"a": 1, "b": 2},
    "no field 'response'; its fields: prompt": {"prompt": "q"},
    "field 'response' is a number, not a string": {"prompt": "q", "response": 1},
    "field 'response' is empty": {"prompt": "q", "response": " "},
    "field 'prompt' is null, not a string": {"prompt": None, "response": "a"},
    "history[0] is a text, not a [question, answer] pair": {
        "prompt": "q", "response": "a", "history": ["x"]},
    "field 'history' is a text, not a list": {"prompt": "q", "response": "a", "history": "x"},
    "field 'messages' is an empty list, not a list with messages": {"messages": []},
    "messages[1]: role 'bot' is unknown; choose one of": {
        "messages": [USER, {"role": "bot", "content": "a"}]},
    "messages[0]: a message is a dict with a role, not 'x'": {"messages": ["x"]},
    "messages[1]: content is 5; it must be a list": {
        "messages": [USER, {"role": "assistant", "content": 5}]},
    "messages[1]: weight of a message is 2; it must be 0 or 1": {
        "messages": [USER, {**SAID, "weight": 2}]},
    "conversations[1]: loss of a message is 'no'; it must be": {
        "conversations": [USER, {**SAID, "loss": "no"}]},
    "conversations[0]: parameters of f are null, no object": {
        "conversations": [{"role": "tool", "name": "f", "observation": ""}, SAID]},
    "conversations[0]: a call of f has no observation": {
        "conversations": [{"role": "tool", "name": "f", "parameters": {}}, SAID]},
    "message 1: the assistant's answer is empty": {"messages": [USER, {**SAID, "content": ""}]},
    "there is no answer of the assistant's to learn": {"messages": [USER]},
    "tools is 'x'; it must be a list": {"messages": [USER, SAID], "tools": "x"},
    "a tool has no name": {"messages": [USER, SAID], "tools": [{}]},
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_what_is_wrong_with_a_line_is_said_in_one(reason, tmp_path):
    good = {"prompt": "q", "response": "a"}
    path = write(tmp_path / "a.jsonl", good, "", BAD[reason])
    with pytest.raises(UserError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 3: {reason}"), said
    assert "\n" not in said
    assert [r.content for r in read(path, on_bad="skip")] == [Pair("q", "a")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"files": ()}, "files is empty"),
        ({"files": ("no/*.jsonl",)}, r"no file matches 'no/\*.jsonl'"),
        ({"heldout_percent": 0}, "heldout_percent is 0: there is nothing to evaluate on"),
        ({"heldout_percent": 60}, "nothing is left to train on"),
    ],
)
def test_what_cannot_be_opened(fields, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "q", "response": "a"})
    with pytest.raises(UserError, match=reason):
        open_records(FinetuneData(**{"files": (path,), **fields}), "heldout")
    with pytest.raises(ValueError, match="replay_ratio 1 is not between 0 and 1"):
        FinetuneData(replay=("x",), replay_ratio=1)
