"""How SQuAD and ReCoRD compare an answer with a right one.

Source: the tasks' evaluation scripts, of which THUDM/GLM tasks/superglue/evaluate.py is one.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def bare(text: str) -> str:
    """In lower case, without accents, punctuation, articles and blanks beyond one."""
    letters = unicodedata.normalize("NFKD", text.lower())
    kept = "".join(x for x in letters if not unicodedata.combining(x))
    return " ".join(_ARTICLES.sub(" ", kept.translate(_NO_PUNCTUATION)).split())


def word_f1(answer: str, truth: str) -> float:
    """``2 p r / (p + r)`` over the words of both, counted as often as they stand there."""
    said, true = bare(answer).split(), bare(truth).split()
    same = (Counter(said) & Counter(true)).total()
    return 2 * same / (len(said) + len(true)) if same else 0.0
