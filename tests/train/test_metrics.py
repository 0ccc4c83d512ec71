"""What generated answers are worth, on numbers that can be worked out by hand."""

import sys

import pytest

from glm_jax.errors import UserError
from train.finetuning import metrics

TRUTH = "The cat sat on the mat."


def test_words_and_characters():
    assert metrics.words("Don't, Panic 42!") == ["don", "t", "panic", "42"]
    assert metrics.characters("a b") == ["a", " ", "b"]


def test_rouge_of_one_answer():
    """the, cat, sat of the, cat, sat, on, the, mat: precision 1, recall 1/2; two of five pairs."""
    found = metrics.score(["rouge"], ["the cat sat"], [TRUTH], "released")
    assert found == pytest.approx(
        {"rouge-1": 100 * 2 / 3, "rouge-2": 100 * 4 / 7, "rouge-l": 100 * 2 / 3}
    )


def test_a_word_that_comes_twice_counts_twice():
    one = metrics.rouge(["the the"], [TRUTH], metrics.words)["rouge-1"]
    assert one == pytest.approx(100 * 2 * 2 / (2 + 6))


def test_bleu_is_one_for_the_truth_and_smoothed_for_a_part():
    assert metrics.score(["bleu"], [TRUTH], [TRUTH], "released")["bleu-4"] == pytest.approx(100)
    # Words: 3/3, 2/2, 1/1; no 4-gram: method 3 takes 1/2. Brevity exp(1 - 6/3).
    found = metrics.score(["bleu"], ["the cat sat"], [TRUTH.lower()], "words")["bleu-4"]
    assert found == pytest.approx(100 * 0.5**0.25 * 2.718281828 ** (1 - 6 / 3), rel=1e-6)
    assert metrics.score(["bleu"], [""], [TRUTH], "released")["bleu-4"] == 0


def test_exact_and_accuracy():
    answers, truths = ["Yes.", "no", "Maybe"], ["yes", "no ", "Yes"]
    found = metrics.score(["exact", "accuracy"], answers, truths, "released")
    assert found == pytest.approx({"exact": 100 / 3, "accuracy": 200 / 3})


def test_chinese_needs_jieba_for_words_and_nothing_for_characters(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match="need jieba"):
        metrics.score(["rouge"], ["我喜欢猫"], ["我喜欢狗"], "released")
    found = metrics.score(["rouge", "bleu"], ["我喜欢猫"], ["我喜欢狗"], "characters")
    assert found["rouge-1"] == pytest.approx(75)


def test_chinese_words_are_those_of_jieba():
    pytest.importorskip("jieba", reason="jieba is not installed")
    assert metrics.words("我喜欢小猫") == ["我", "喜欢", "小猫"]
