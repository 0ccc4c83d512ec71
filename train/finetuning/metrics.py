"""How near generated answers come to the true ones, in percent.

``rouge`` and ``bleu`` count as the releases' fine-tuning scripts do (ChatGLM-6B ptuning/main.py,
ChatGLM3 finetune_hf.py): ROUGE over words, Chinese cut into words by jieba, and BLEU-4 of single
answers over characters, smoothed by NLTK's method 3; or both over the unit that is asked for. ROUGE
itself is rouge-score's, where a word that comes twice counts twice.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from glm_jax.errors import UserError

Metric = Literal["rouge", "bleu", "exact", "accuracy"]
Unit = Literal["released", "words", "characters"]
Cut = Callable[[str], list[str]]
ROUGE = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}
_PIECES = re.compile(r"[\u3400-\u9fff]+|[^\W\u3400-\u9fff]+")
_HAN = re.compile(r"[\u3400-\u9fff]")


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; runs of Chinese characters as jieba cuts them.

    Raises:
      UserError: there is Chinese in the text, and no jieba.
    """
    found: list[str] = []
    for piece in _PIECES.findall(text.lower()):
        found += _jieba()(piece) if _HAN.match(piece) else [piece]
    return found


def characters(text: str) -> list[str]:
    return list(text)


def score(
    metrics: Sequence[Metric], answers: Sequence[str], truths: Sequence[str], unit: Unit
) -> dict[str, float]:
    """The mean over the answers of each number that the metrics give, 0 to 100.

    Raises:
      UserError: as ``words``.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        if metric == "rouge":
            found |= rouge(answers, truths, characters if unit == "characters" else words)
        elif metric == "bleu":
            found["bleu-4"] = bleu(answers, truths, words if unit == "words" else characters)
        else:
            same = _SAME[metric]
            hits = [same(a) == same(b) for a, b in zip(answers, truths, strict=True)]
            found[metric] = 100 * float(np.mean(hits))
    return found


def rouge(answers: Sequence[str], truths: Sequence[str], cut: Cut) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=_Tokenizer(cut))
    each = [scorer.score(truth, answer) for answer, truth in zip(answers, truths, strict=True)]
    return {
        ours: 100 * float(np.mean([scores[theirs].fmeasure for scores in each]))
        for theirs, ours in ROUGE.items()
    }


def bleu(answers: Sequence[str], truths: Sequence[str], cut: Cut) -> float:
    """Mean BLEU-4 of single answers."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method3
    each = [
        sentence_bleu([cut(truth)], cut(answer), smoothing_function=smooth)
        for answer, truth in zip(answers, truths, strict=True)
    ]
    return 100 * float(np.mean(each))


class _Tokenizer:
    def __init__(self, cut: Cut):
        self.tokenize = cut


def _plain(text: str) -> str:
    """Without what labels in prose differ in: case, punctuation, blanks."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation + "。，！？；：")
    return " ".join(kept.split())


_SAME: dict[str, Callable[[str], str]] = {"exact": str.strip, "accuracy": _plain}


def _jieba() -> Cut:
    try:
        import jieba
    except ImportError:
        raise UserError(
            "words of a Chinese text need jieba (pip install jieba); --metric-unit characters "
            "does without"
        ) from None
    jieba.setLogLevel("ERROR")
    return jieba.lcut
