"""GLM's pretraining objectives over one text: which one, what is blanked, which example."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from glm_jax.data import spans as choose
from glm_jax.data.layout import Example, layout_spans, layout_suffix
from glm_jax.special import SpecialTokens

_CONTEXT = 3  # how far from a blank context_mask_ratio reaches (context_mask_range)
OBJECTIVES = ("mask", "smask", "gmask")
MASK, SMASK, GMASK = range(3)


@dataclasses.dataclass(frozen=True)
class Infilling:
    """The mix of objectives and their knobs (THUDM/GLM arguments.py and config/*).

    The reference draws the objective once per batch; here every example draws its own, so that
    its randomness depends on nothing but (seed, example index).

    Raises:
      ValueError: shares that are negative or do not sum to one, a ratio outside 0..1.
    """

    mask: float = 1.0
    """Share of ``[MASK]``: short spans."""
    smask: float = 0.0
    """Share of ``[sMASK]``: whole sentences."""
    gmask: float = 0.0
    """Share of ``[gMASK]``: one long stretch."""
    task_mask: bool = True
    """Each objective has its own mask token; otherwise all use ``[MASK]``."""
    mask_ratio: float = 0.15
    """Part of the tokens that ``[MASK]`` blanks out (``bert_ratio``)."""
    smask_ratio: float = 0.15
    """Part of the tokens that ``[sMASK]`` blanks out (``gap_sentence_ratio``)."""
    smask_takes_cls: bool = False
    """A sentence that opens a further document of the sample begins with its ``[CLS]``, as in the
    reference; otherwise no ``[CLS]`` is ever blanked out."""
    mean_span: float = 3.0
    """Mean of the Poisson law behind the lengths of ``[MASK]`` spans."""
    single_span_prob: float = 0.0
    """Chance of ``[MASK]`` with one span, drawn before the objective."""
    gmask_min_ratio: float = 0.5
    """Least part of the text that ``[gMASK]`` blanks out (``gpt_min_ratio``)."""
    suffix_prob: float = 0.5
    """Chance that ``[gMASK]`` takes the end of the text (``gpt_infill_prob``)."""
    running_positions: bool = False
    """GLM-130B: positions run on through a ``[gMASK]`` suffix."""
    block_mask_prob: float = 0.0
    """Chance that an input of a ``[MASK]`` piece becomes ``[dBLOCK]``; its target stays."""
    context_mask_ratio: float = 0.0
    """Part of a ``[MASK]`` text that becomes ``[dBLOCK]`` in Part A, within three tokens of a
    blank."""
    random_position: int = 0
    """Positions start at a random place below this many rows; 0: always at 0."""
    shuffle: bool = True
    """Part B holds the spans in random order; otherwise in text order (an ablation)."""
    block_positions: bool = True
    """Part B counts block positions; otherwise they are all 1 (an ablation)."""
    short_seq_prob: float = 0.0
    """Chance that a text is cut to a random length first."""

    def __post_init__(self) -> None:
        shares = (self.mask, self.smask, self.gmask)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"mask, smask and gmask are {shares}; they must sum to 1")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "mean_span":
                if not value > 0:
                    raise ValueError(f"mean_span is {value}; it must be above 0")
            elif isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value}; it must lie between 0 and 1")

    def only(self, objective: str) -> Infilling:
        """The same knobs with one objective alone, and no other draw that could change it."""
        shares = {name: float(name == objective) for name in OBJECTIVES}
        return dataclasses.replace(self, **shares, single_span_prob=0.0)


def _glm(mask: float, smask: float, gmask: float, **knobs: Any) -> Infilling:
    knobs = {"gmask_min_ratio": 0.25, "block_mask_prob": 0.1, **knobs}
    return Infilling(mask=mask, smask=smask, gmask=gmask, **knobs)


# By the name of the released configuration file (THUDM/GLM config/*.json, *.sh).
INFILLING_PRESETS: dict[str, Infilling] = {
    "ds_block_base": Infilling(task_mask=False),
    "ds_block_large": Infilling(task_mask=False),
    "ds_blockta_large": Infilling(task_mask=False),
    "ds_block_10B": _glm(0.5, 0.3, 0.2, short_seq_prob=0.02),
    "ds_block_10B_chinese": _glm(0.5, 0.3, 0.2, short_seq_prob=0.02),
    "ds_block_10B_chinese_longer": _glm(0.5, 0.3, 0.2, short_seq_prob=0.5),
    "ds_block_10B_longer": _glm(0.4, 0.3, 0.3, short_seq_prob=0.5, single_span_prob=0.05),
    "ds_block_large_chinese": _glm(0.4, 0.3, 0.3, short_seq_prob=0.02),
    "glm-130b": Infilling(
        0.3, 0.0, 0.7, gmask_min_ratio=0.2, suffix_prob=1.0, running_positions=True
    ),
    "demo": Infilling(0.5, 0.25, 0.25, gmask_min_ratio=0.25),
}


def make_example(
    tokens: Int[np.ndarray, " n"],
    special: SpecialTokens,
    infilling: Infilling,
    rng: np.random.Generator,
    sentence_ends: Bool[np.ndarray, " V"],
) -> tuple[Example, int] | None:
    """An example of one sample ``[CLS] text <|endoftext|>`` and the index of its objective.

    A text without a whole sentence is blanked by tokens where ``[sMASK]`` was drawn.

    Args:
      sentence_ends: for every id of the vocabulary, whether it ends a sentence.

    Returns:
      None where nothing can be blanked out: the sample is dropped, as in the reference.

    Raises:
      ValueError: the vocabulary lacks a token that is needed.
    """
    eos_id, *_ = special.require("eos", "mask", "sop", "eop")
    cls_id = -1 if special.cls is None else special.cls  # ChatGLM-6B's vocabulary has none
    if len(tokens) < 4:
        return None
    single = infilling.single_span_prob > 0 and rng.random() < infilling.single_span_prob
    shares = np.cumsum((infilling.mask, infilling.smask))
    objective = MASK if single else int((rng.random() >= shares).sum())
    documents = choose.stretches(tokens, cls_id, eos_id)
    if objective == GMASK:
        return _generation(tokens, documents, special, infilling, rng)
    found = None
    if objective == SMASK:
        ends = sentence_ends[tokens]
        whole = choose.sentences(tokens, ends, cls_id, eos_id, with_cls=infilling.smask_takes_cls)
        found = choose.sentence_spans(len(tokens), whole, rng, ratio=infilling.smask_ratio)
        objective = SMASK if found is not None else MASK
    if found is None:
        found = choose.token_spans(
            len(tokens),
            documents,
            rng,
            ratio=infilling.mask_ratio,
            mean=infilling.mean_span,
            single=single,
        )
    if found is None:
        return None
    example = _blank(tokens, found, objective, special, infilling, rng)
    if objective == MASK:
        _noise(example, found, len(tokens), special, infilling, rng)
    return _shift(example, infilling, rng), objective


def _generation(tokens, documents, special, infilling, rng) -> tuple[Example, int] | None:
    """``[gMASK]``: the end of the text, or one stretch of the same length anywhere inside it."""
    most = len(tokens) - 2
    least = min(max(1, int(infilling.gmask_min_ratio * len(tokens))), most)
    length = int(rng.integers(least, most + 1))
    several = bool((tokens[:-1] == special.eos).any())
    if several or not documents or rng.random() < infilling.suffix_prob:
        example = layout_suffix(
            tokens,
            length,
            gmask_id=_mask_id(GMASK, special, infilling),
            sop_id=special.sop,
            # A packed document's [CLS] is read but not scored (the sample's own loss mask).
            loss_mask=None if special.cls is None else (tokens != special.cls).astype(np.int64),
            running_positions=infilling.running_positions,
            block_positions=infilling.block_positions,
        )
    else:
        found = choose.place(np.array([length]), documents[0], rng)
        if found is None:
            return None
        example = _blank(tokens, found, GMASK, special, infilling, rng)
    return _shift(example, infilling, rng), GMASK


def _mask_id(objective: int, special: SpecialTokens, infilling: Infilling) -> int:
    name = OBJECTIVES[objective] if infilling.task_mask else "mask"
    return special.require(name)[0]


def _blank(tokens, found, objective, special, infilling, rng) -> Example:
    return layout_spans(
        tokens,
        found,
        rng.permutation(len(found)) if infilling.shuffle else range(len(found)),
        mask_id=_mask_id(objective, special, infilling),
        sop_id=special.sop,
        eop_id=special.eop,
        eos_id=special.eos,
        block_positions=infilling.block_positions,
    )


def _noise(example: Example, found, length: int, special, infilling, rng) -> None:
    """Puts ``[dBLOCK]`` over inputs: in Part B each by chance, in Part A a share near blanks."""
    tokens, sep = example.tokens, example.sep
    if infilling.block_mask_prob:
        hit = rng.random(len(tokens)) < infilling.block_mask_prob
        hit &= (np.arange(len(tokens)) >= sep) & (tokens != special.sop)
        tokens[hit] = special.require("dblock")[0]
    if infilling.context_mask_ratio:
        near = _around_blanks(found, sep)
        near = near[
            ~np.isin(tokens[near], [i for i in (special.cls, special.eos) if i is not None])
        ]
        count = int(infilling.context_mask_ratio * length)
        tokens[rng.permutation(near)[:count]] = special.require("dblock")[0]


def _around_blanks(found: choose.Spans, sep: int) -> np.ndarray:
    """Slots of Part A within reach of a blank, the blanks themselves left out."""
    vanish = found[:, 1] - found[:, 0] - 1
    blanks = found[:, 0] - (np.cumsum(vanish) - vanish)
    near = (blanks[:, None] + np.arange(-_CONTEXT, _CONTEXT + 1)).ravel()
    near = np.setdiff1d(near, blanks)
    return near[(near >= 0) & (near < sep)]


def _shift(example: Example, infilling: Infilling, rng) -> Example:
    if infilling.random_position:
        room = max(0, infilling.random_position - int(example.positions[0].max()) - 1)
        example.positions[0] += int(rng.integers(0, room + 1))
    return example
