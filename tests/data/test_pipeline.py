"""The loader: the same batches on any number of hosts, workers and restarts."""

import dataclasses
import json

import grain
import numpy as np
import pytest

from glm_jax.data import DataConfig, make_loader
from glm_jax.data.corpus import Corpus
from glm_jax.data.objectives import INFILLING_PRESETS
from glm_jax.data.stream import Recipe, RowStream
from glm_jax.errors import UserError
from glm_jax.text import train_sentencepiece

SENTENCE = (
    "the file socket archive buffer stream is was opened closed read written parsed by a module "
    "when called with an argument that names one and returns nothing else"
)
WORDS = SENTENCE.split()


def story(i: int) -> str:
    """A document of 4 to 400 words in sentences of a few words."""
    rng = np.random.default_rng(i)
    words = rng.choice(WORDS, int(np.exp(rng.uniform(np.log(4), np.log(400)))))
    return "".join(f"{w}{'. ' if rng.random() < 0.12 else ' '}" for w in words)


STORIES = [story(i) for i in range(120)]


@pytest.fixture(scope="module")
def tokenizer():
    letters = [f"{a}{b}{c} " * 2 for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    return train_sentencepiece([*STORIES, *letters], 512, model_type="bpe")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in STORIES)
    (folder / "stories.jsonl").write_text(lines)
    return DataConfig(
        source=f"files:{folder}/*.jsonl", cache_dir=str(folder / "cache"), heldout_percent=15
    )


def loader(config, tokenizer, **options):
    kwargs = {"split": "train", "batch_size": 4, "seq_len": 96, "seed": 3} | options
    return make_loader(config, tokenizer, **kwargs)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def share(process, processes, batch_size=4):
    """The rows of one process of several."""
    rows = batch_size // processes
    return range(process * rows, (process + 1) * rows)


def joined(parts):
    """Global batches from those of each process."""
    return [
        {k: np.concatenate([b[k] for b in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]


def test_a_batch(config, tokenizer):
    batch = next(loader(config, tokenizer))
    shapes = {name: (array.shape, str(array.dtype)) for name, array in batch.items()}
    assert shapes == {
        "tokens": ((4, 96), "int32"),
        "targets": ((4, 96), "int32"),
        "loss_weights": ((4, 96), "float32"),
        "positions": ((4, 2, 96), "int32"),
        "k_start": ((4, 96), "int32"),
        "k_end": ((4, 96), "int32"),
        "objective": ((4, 96), "int32"),
    }
    assert batch["tokens"].max() < tokenizer.vocab_size
    assert batch["loss_weights"].sum() > 0
    assert {0, 1, 2} >= set(np.unique(batch["objective"])) - {-1}
    padding = batch["objective"] < 0
    assert not batch["k_end"][padding].any()
    assert (batch["tokens"][padding] == tokenizer.special.pad).all()


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(config, tokenizer, processes):
    parts = [take(loader(config, tokenizer, rows=share(p, processes)), 6) for p in range(processes)]
    assert parts[0][0]["tokens"].shape == (4 // processes, 96)
    assert_same(joined(parts), take(loader(config, tokenizer), 6))


@pytest.mark.parametrize("isolate", [True, False])
def test_a_restart_goes_on_exactly(config, tokenizer, isolate):
    config = dataclasses.replace(config, isolate=isolate, open_rows=3)
    unbroken = loader(config, tokenizer)
    for _ in range(3):
        take(unbroken, 4)
        state = json.dumps(unbroken.get_state())
        expected = take(unbroken, 3)
        restarted = loader(config, tokenizer)
        restarted.set_state(json.loads(state))
        assert json.dumps(restarted.get_state()) == state
        assert_same(take(restarted, 3), expected)
    assert len(state) < 2000


def test_the_place_outlives_a_change_of_processes_and_workers(config, tokenizer):
    parts = [loader(config, tokenizer, rows=share(p, 4)) for p in range(4)]
    for part in parts:
        take(part, 3)
    whole = {k: v for part in parts for k, v in part.get_state()["rows"].items()}
    expected = joined([take(part, 3) for part in parts])
    config = dataclasses.replace(config, num_workers=2)
    halves = [loader(config, tokenizer, rows=rows) for rows in ([0, 3], [1, 2])]
    found = []
    for half in halves:
        half.set_state({"rows": whole})
        found.append(take(half, 3))
        half.close()
    for step, (first, second) in enumerate(zip(*found, strict=True)):
        rows = [first["tokens"][0], *second["tokens"], first["tokens"][1]]
        np.testing.assert_array_equal(rows, expected[step]["tokens"])


def test_a_place_without_ones_rows_is_refused(config, tokenizer):
    half = loader(config, tokenizer, rows=[0, 1])
    take(half, 1)
    with pytest.raises(UserError, match="has none of row 2 of the global batch"):
        loader(config, tokenizer, rows=[2, 3]).set_state(half.get_state())


def test_grains_checkpoint_handler_saves_it(config, tokenizer, tmp_path):
    unbroken = loader(config, tokenizer)
    take(unbroken, 3)
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(tmp_path, unbroken)
    expected = take(unbroken, 3)
    restarted = handler.restore(tmp_path, loader(config, tokenizer))
    assert_same(take(restarted, 3), expected)


def test_worker_processes_give_the_same_batches(config, tokenizer):
    expected = take(loader(config, tokenizer), 6)
    config = dataclasses.replace(config, num_workers=2, prefetch=1)
    workers = loader(config, tokenizer)
    try:
        assert_same(take(workers, 3), expected[:3])
        state = json.loads(json.dumps(workers.get_state()))
    finally:
        workers.close()
    workers = loader(config, tokenizer)
    try:
        workers.set_state(state)
        assert_same(take(workers, 3), expected[3:])
    finally:
        workers.close()


def test_seeds_differ(config, tokenizer):
    one, other = next(loader(config, tokenizer)), next(loader(config, tokenizer, seed=4))
    assert (one["tokens"] != other["tokens"]).any()


def heldout(config, tokenizer, **options):
    return loader(config, tokenizer, split="heldout", num_epochs=1, **options)


def test_a_finite_loader_pads_its_last_batch(config, tokenizer):
    batches = list(heldout(config, tokenizer, batch_size=8))
    empty = [(b["objective"] < 0).all(axis=1) for b in batches]
    assert not np.concatenate(empty[:-1]).any()
    assert empty[-1].any()
    assert not empty[-1][0]
    assert all(b["tokens"].shape == (8, 96) for b in batches)


def test_a_finite_loader_has_the_same_rows_at_any_batch_size(config, tokenizer):
    def rows(batches):
        full = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        keep = ~(full["objective"] < 0).all(axis=1)
        return {name: array[keep] for name, array in full.items()}

    small = rows(list(heldout(config, tokenizer, batch_size=2)))
    assert_same([small], [rows(list(heldout(config, tokenizer, batch_size=8)))])


def test_a_finite_loader_on_several_processes(config, tokenizer):
    parts = [list(heldout(config, tokenizer, rows=share(p, 2))) for p in range(2)]
    assert_same(joined(parts), list(heldout(config, tokenizer)))


def test_a_finite_loader_restarts_even_at_its_end(config, tokenizer):
    unbroken = heldout(config, tokenizer)
    states, batches = [], []
    for batch in unbroken:
        batches.append(batch)
        states.append(json.loads(json.dumps(unbroken.get_state())))
    for i in range(len(batches)):
        restarted = heldout(config, tokenizer)
        restarted.set_state(states[i])
        assert_same(list(restarted), batches[i + 1 :])


@pytest.mark.parametrize(("objective", "index"), [("mask", 0), ("gmask", 2)])
def test_one_objective_alone(config, tokenizer, objective, index):
    batches = list(heldout(config, tokenizer, objective=objective))
    assert set(np.unique([b["objective"] for b in batches])) == {-1, index}


def test_no_token_is_lost_or_repeated(tokenizer):
    recipe = Recipe(tokenizer, INFILLING_PRESETS["demo"], seq_len=96, seed=1)
    stream = RowStream(recipe, STORIES, len(STORIES), 1, 3)
    samples = []
    stream._recipe = _Spy(recipe, samples)
    while stream.next_row() is not None:
        pass
    by_document: dict[int, list] = {}
    for position, begin, end in samples:
        by_document.setdefault(position, []).append((begin, end))
    assert list(by_document) == list(range(1, len(STORIES), 3))
    for position, pieces in by_document.items():
        begins, ends = zip(*pieces, strict=True)
        assert begins == (0, *ends[:-1])
        assert ends[-1] == len(recipe.document(STORIES[position]))


class _Spy:
    """A recipe that notes the samples asked of it."""

    def __init__(self, recipe, samples):
        self._recipe, self._samples = recipe, samples

    def __getattr__(self, name):
        return getattr(self._recipe, name)

    def example(self, document, sample):
        self._samples.append(sample)
        return self._recipe.example(document, sample)


def test_little_padding(config, tokenizer):
    batches = take(loader(config, tokenizer, seq_len=256), 12)
    assert np.mean([b["objective"] < 0 for b in batches]) < 0.03


def test_short_samples(tokenizer):
    document = np.full(1000, tokenizer.encode("a", add_special_tokens=False)[0], np.int32)
    infilling = dataclasses.replace(INFILLING_PRESETS["demo"], short_seq_prob=1.0)
    lengths = []
    for short in (False, True):
        recipe = Recipe(tokenizer, infilling if short else INFILLING_PRESETS["demo"], 256, seed=1)
        lengths.append([recipe.cut(document, p, 0, []) for p in range(50)])
    assert len(set(lengths[0])) == 1
    assert min(lengths[1]) >= 32
    assert len(set(lengths[1])) > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [2, 1]}, r"rows \[2, 1\] are not ascending rows of a batch of 4"),
        ({"rows": [4]}, r"rows \[4\] are not ascending rows of a batch of 4"),
        ({"seq_len": 16}, "seq_len 16 is too short; at least 32"),
        ({"seed": -1}, "seed -1 is not between"),
        ({"objective": "nsp"}, "objective 'nsp' is not one of mask, smask, gmask"),
    ],
)
def test_bad_arguments(config, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        loader(config, tokenizer, **options)


def test_bad_recipes(config, tokenizer):
    with pytest.raises(UserError, match="infilling 'gml-10b' is not one of ds_block_base, "):
        loader(dataclasses.replace(config, infilling="gml-10b"), tokenizer)


def test_texts_too_short_for_anything(tokenizer):
    recipe = Recipe(tokenizer, INFILLING_PRESETS["demo"], seq_len=96, seed=1)
    texts = Corpus([{"text": b"a"}] * 2000, "text", "raise", "tiny")
    with pytest.raises(UserError, match="no text is long enough for an example"):
        RowStream(recipe, texts, 5, 0, 1).next_row()
