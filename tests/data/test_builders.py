"""TFDS builders: ArrayRecord without TensorFlow, whole or absent, prepared again after a change."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from glm_jax.data import builders
from glm_jax.data.config import DataConfig
from glm_jax.data.corpus import open_corpus
from glm_jax.data.sources import python_docs
from glm_jax.errors import UserError


@pytest.fixture
def config(tmp_path):
    for name in "ab":
        lines = "".join(f'{{"text": "document {i} of {name}"}}\n' for i in range(100))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return DataConfig(
        source=f"files:{tmp_path}/*.jsonl", cache_dir=str(tmp_path / "cache"), heldout_percent=10
    )


def all_texts(config, split):
    corpus = open_corpus(config, split)
    return [corpus[i] for i in range(len(corpus))]


def test_every_document_is_in_one_split(config):
    train, heldout = all_texts(config, "train"), all_texts(config, "heldout")
    assert sorted(train + heldout) == sorted(
        f"document {i} of {name}" for i in range(100) for name in "ab"
    )
    assert 8 <= len(heldout) <= 35
    assert all(builders.is_heldout(t, 10) for t in heldout)


def test_no_tensorflow(config):
    open_corpus(config, "train")
    assert "tensorflow" not in sys.modules


def test_the_order_is_always_the_same(config, tmp_path):
    again = dataclasses.replace(config, cache_dir=str(tmp_path / "other"))
    assert all_texts(config, "train") == all_texts(again, "train")


def test_a_changed_file_is_prepared_again(config, tmp_path):
    before = len(all_texts(config, "train"))
    (tmp_path / "b.jsonl").unlink()
    assert len(all_texts(config, "train")) < before


def test_a_failed_preparation_leaves_nothing_that_looks_whole(config, tmp_path):
    with (tmp_path / "b.jsonl").open("a") as f:
        f.write('{"txt": 1}\n')
    for _ in range(2):
        with pytest.raises(UserError, match=r"b\.jsonl, line 101: no field 'text'"):
            open_corpus(config, "train")
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_an_interrupted_preparation_leaves_nothing_that_looks_whole(config, monkeypatch):
    def stop(*args):
        yield "0", "a text"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builders.files, "documents", stop)
        with pytest.raises(KeyboardInterrupt):
            open_corpus(config, "train")
    assert len(all_texts(config, "train")) > 100


def test_two_processes_may_prepare_at_once(config, monkeypatch):
    real = builders.files.documents

    def slower(*args):
        with monkeypatch.context() as patch:
            patch.setattr(builders.files, "documents", real)
            open_corpus(config, "train")  # another process is through before this one has begun
        yield from real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(builders.files, "documents", slower)
        before = all_texts(config, "train")
    assert before == all_texts(config, "train")


def test_bad_records_are_counted(config, tmp_path, caplog):
    with (tmp_path / "b.jsonl").open("a") as f:
        f.write('{"txt": 1}\n')
    open_corpus(dataclasses.replace(config, on_bad="skip"), "train")
    assert "skipped 1 bad records, the first of them: " in caplog.text


def test_a_corpus_is_picklable_and_quiet(config, capfd):
    corpus = open_corpus(config, "train")
    again = pickle.loads(pickle.dumps(corpus))
    assert (len(again), again[5]) == (len(corpus), corpus[5])
    assert capfd.readouterr() == ("", "")


def test_too_small_for_a_heldout_split(tmp_path):
    (tmp_path / "a.txt").write_text("one document")
    config = DataConfig(source=f"files:{tmp_path}/a.txt", cache_dir=str(tmp_path / "cache"))
    assert all_texts(config, "train") == ["one document"]
    with pytest.raises(UserError, match="no document falls into 'heldout'"):
        open_corpus(config, "heldout")


def test_blank_files_hold_no_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n")
    config = DataConfig(source=f"files:{tmp_path}/a.txt", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="holds no document"):
        open_corpus(config, "train")


def test_python_docs_builder(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    for i in range(60):
        text = f"Module number {i} does one thing and does it rather well. " * 5
        (tmp_path / "lib" / f"m{i}.py").write_text(f'"""{text}"""')
    monkeypatch.setattr(python_docs, "stdlib_dir", lambda: tmp_path / "lib")
    config = DataConfig(cache_dir=str(tmp_path / "cache"), heldout_percent=20)
    train, heldout = all_texts(config, "train"), all_texts(config, "heldout")
    assert len(train) + len(heldout) == 60
    assert all(t.startswith("Module m") for t in train)


class Stories(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set as TFDS users have them, with a bad record."""

    VERSION = tfds.core.Version("1.0.0")
    name = "stories"

    def _info(self):
        features = {"story": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(100):
            yield i, {"story": b"\xff" if i == 7 else f"story {i}", "label": i}


@pytest.fixture
def stories(tmp_path, monkeypatch):
    with builders.quiet():
        builder = Stories(data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare()
    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: builder)
    return DataConfig(source="tfds:stories", text_field="story")


def test_tfds_by_name(stories):
    with pytest.raises(UserError, match=r"tfds:stories train.*, record \d+: invalid UTF-8"):
        all_texts(stories, "train")
    stories = dataclasses.replace(stories, on_bad="skip")
    train, heldout = all_texts(stories, "train"), all_texts(stories, "heldout")
    assert (len(train), len(heldout)) == (97, 3)
    assert sorted({*train, *heldout} - {""}) == sorted(f"story {i}" for i in range(100) if i != 7)


def test_tfds_errors(stories, monkeypatch):
    for field, message in (("text", "no field 'text'; its fields: "), ("label", "not Text")):
        with pytest.raises(UserError, match=message):
            open_corpus(dataclasses.replace(stories, text_field=field), "train")
    monkeypatch.undo()
    with pytest.raises(UserError, match="tfds:no_such_set: Dataset no_such_set not found"):
        open_corpus(DataConfig(source="tfds:no_such_set"), "train")


def test_unknown_sources():
    for source in ("pile", "files:", "tfds:", ""):
        with pytest.raises(UserError, match="is not python_docs, files:GLOB or tfds:NAME"):
            open_corpus(DataConfig(source=source), "train")
