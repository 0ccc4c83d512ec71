"""The tokenizers of the GLM release: GPT-2 and RoBERTa BPE, WordPiece, Chinese SentencePiece.

Where each puts the command tokens: THUDM/GLM data_utils/tokenization*.py and the Hugging Face
releases (tokenization_glm.py). All of them but RoBERTa's read "[MASK]" with ``allow_special``.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from glm_jax.special import SpecialTokens
from glm_jax.text.base import BaseTokenizer
from glm_jax.text.byte_level import bytes_of, gpt2_bpe, parse_merges, parse_vocab
from glm_jax.text.decoding import (
    ByteStream,
    CleanUp,
    Filtered,
    PieceStream,
    Stream,
    WordPieceStream,
)
from glm_jax.text.pieces import PieceModel
from glm_jax.text.trained import NUM_COMMANDS, command_ids, command_tokens

_SOP, _EOP, _EOS = "<|startofpiece|>", "<|endofpiece|>", "<|endoftext|>"
_MASKS = frozenset({"[MASK]", "[sMASK]", "[gMASK]"})
_NO_PAIR = "the tokenizer of {} joins no pairs; encode one text"


class GLMGPT2Tokenizer(BaseTokenizer):
    """GLM-10B and GLM-2B: ``[CLS] text <|endoftext|>``, over GPT-2's vocabulary.

    Args:
      vocab: the bytes of ``vocab.json``.
      merges: the bytes of ``merges.txt``.

    Raises:
      ValueError: they are something else, or vocab_size is too small.
    """

    strips = _MASKS

    def __init__(
        self, vocab: bytes, merges: bytes, family: str = "glm-10b", vocab_size: int | None = None
    ):
        table = parse_vocab(vocab)
        ids = self._special_ids(table)
        self._engine = gpt2_bpe(table, parse_merges(merges))
        self._tokens = [bytes_of(token) for token in sorted(table, key=table.__getitem__)]
        used = max(ids.values()) + 1
        super().__init__([vocab, merges], family, self._roles(ids), ids, used, vocab_size)
        self._literal = {index: name for name, index in ids.items()}

    def __reduce__(self) -> Any:
        return type(self), (*self._files, self.family, self.vocab_size)

    def _special_ids(self, table: dict[str, int]) -> dict[str, int]:
        added = (_SOP, _EOP, "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]", "[dBLOCK]")
        n = len(table)
        return {_EOS: _known(table, _EOS), **{name: n + i for i, name in enumerate(added)}}

    def _roles(self, ids: dict[str, int]) -> SpecialTokens:
        return SpecialTokens(
            pad=ids[_EOS], eos=ids[_EOS], cls=ids["[CLS]"], sep=ids["[SEP]"], mask=ids["[MASK]"],
            unk=ids["[UNK]"], sop=ids[_SOP], eop=ids[_EOP], gmask=ids["[gMASK]"],
            smask=ids["[sMASK]"], dblock=ids["[dBLOCK]"],
        )  # fmt: skip

    def _ordinary(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        if pair is not None:
            raise ValueError(_NO_PAIR.format(self.family))
        cls, eos = self.special.require("cls", "eos")
        return [cls, *ids, eos]

    def _stream(self) -> Stream:
        return Filtered(ByteStream(self._bytes, self._literal), CleanUp())

    def _bytes(self, index: int) -> bytes:
        return self._tokens[index] if index < len(self._tokens) else b""

    def token_bytes(self, index: int) -> bytes:
        self._check(index)
        return b"" if index in self._literal else self._bytes(index)


class GLMRobertaTokenizer(GLMGPT2Tokenizer):
    """GLM-RoBERTa: ``<s> text </s>``, and for a pair ``<s> text </s></s> pair </s>``."""

    strips = frozenset({"<mask>"})

    def __init__(
        self,
        vocab: bytes,
        merges: bytes,
        family: str = "glm-roberta-large",
        vocab_size: int | None = None,
    ):
        super().__init__(vocab, merges, family, vocab_size)

    def _special_ids(self, table: dict[str, int]) -> dict[str, int]:
        own = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        return {name: _known(table, name) for name in own} | {
            _SOP: len(table),
            _EOP: len(table) + 1,
        }

    def _roles(self, ids: dict[str, int]) -> SpecialTokens:
        # THUDM/GLM pads with </s>; the vocabulary's own <pad> is never used.
        end = ids["</s>"]
        return SpecialTokens(
            pad=end, eos=end, sep=end, cls=ids["<s>"], mask=ids["<mask>"], unk=ids["<unk>"],
            sop=ids[_SOP], eop=ids[_EOP],
        )  # fmt: skip

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        cls, sep = self.special.require("cls", "sep")
        return [cls, *ids, sep, *([] if pair is None else [sep, *pair, sep])]


class GLMBertTokenizer(BaseTokenizer):
    """GLM-Base, -Large, -Doc, -410M and -515M: BERT's uncased WordPiece.

    ``[CLS] text [SEP]``, and for a pair ``[CLS] text [SEP] pair [SEP]``. Letters lose case and
    accents, blanks become one, and characters that no piece has become ``[UNK]``.

    Args:
      vocab: the bytes of ``vocab.txt``.

    Raises:
      ValueError: they are something else, or vocab_size is too small.
    """

    def __init__(self, vocab: bytes, family: str = "glm-large", vocab_size: int | None = None):
        lines = vocab.decode("utf-8").split("\n")
        self._tokens = [line.rstrip("\r") for line in lines[: len(lines) - (not lines[-1])]]
        table = {token: index for index, token in enumerate(self._tokens)}
        if len(table) < len(self._tokens) or "" in table:
            raise ValueError("not a vocabulary: it should have another token on every line")
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        ids = {name: _known(table, name) for name in names}
        ids |= {_SOP: len(table), _EOP: len(table) + 1}
        special = SpecialTokens(
            pad=ids["[PAD]"], eos=ids["[PAD]"], cls=ids["[CLS]"], sep=ids["[SEP]"],
            mask=ids["[MASK]"], unk=ids["[UNK]"], sop=ids[_SOP], eop=ids[_EOP],
        )  # fmt: skip
        self._engine = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
        self._engine.normalizer = normalizers.BertNormalizer()  # type: ignore
        self._engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore
        super().__init__([vocab], family, special, ids, len(table) + 2, vocab_size)
        self._literal = {ids[name]: name for name in (_SOP, _EOP)}

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.family, self.vocab_size)

    def _ordinary(self, text: str) -> list[int]:
        # Lowered here: Python knows the Greek final sigma, as the released tokenizer does.
        return self._engine.encode(text.lower(), add_special_tokens=False).ids

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        cls, sep = self.special.require("cls", "sep")
        return [cls, *ids, sep, *([] if pair is None else [*pair, sep])]

    def _stream(self) -> Stream:
        return Filtered(WordPieceStream(self._token, self._literal), CleanUp())

    def _token(self, index: int) -> str:
        return self._tokens[index] if index < len(self._tokens) else ""

    def token_bytes(self, index: int) -> bytes:
        """The letters of a piece, without the blank before a word or the ``##`` inside of one."""
        self._check(index)
        if index in self.special_ids.values():
            return b""
        return self._token(index).removeprefix("##").encode()


class GLMChineseTokenizer(BaseTokenizer):
    """GLM-Large-Chinese and GLM-10B-Chinese: ``[CLS] text <|endoftext|>``, over SentencePiece.

    Texts are normalised (NFKC, blanks at the ends removed, others become one), and characters that
    no piece has are lost.

    Args:
      model: the bytes of ``cog-pretrain.model``.
      fixed: whether [gMASK] has an id of its own (THUDM/GLM --fix-command-token), as in
        GLM-Large-Chinese and in the Hugging Face release of GLM-10B-Chinese. Without, it is
        <|endofpiece|>'s, as GLM-10B-Chinese was trained.

    Raises:
      ValueError: they are no SentencePiece model, or vocab_size is too small.
    """

    strips = _MASKS

    def __init__(
        self,
        model: bytes,
        family: str = "glm-10b-chinese",
        vocab_size: int | None = None,
        fixed: bool = True,
    ):
        self._pieces, self._fixed = PieceModel(model), fixed
        n = len(self._pieces)
        special = command_tokens(n)
        if not fixed:
            special = SpecialTokens(**{**vars(special), "gmask": n + 7, "dblock": n + 9})
        ids = {**command_ids(special), "[UNUSED1]": n + 5}
        super().__init__([model], family, special, ids, n + NUM_COMMANDS, vocab_size)
        # Where two tokens share an id it is written as the first of them: <|endofpiece|>.
        self._literal = {index: name for name, index in reversed(ids.items())}

    def __reduce__(self) -> Any:
        return type(self), (self._files[0], self.family, self.vocab_size, self._fixed)

    def _ordinary(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _wrap(self, ids: list[int], pair: list[int] | None) -> list[int]:
        if pair is not None:
            raise ValueError(_NO_PAIR.format(self.family))
        cls, eos = self.special.require("cls", "eos")
        return [cls, *ids, eos]

    def _stream(self) -> Stream:
        return Filtered(PieceStream(self._pieces, self._literal), CleanUp())

    def token_bytes(self, index: int) -> bytes:
        self._check(index)
        return self._pieces.token_bytes(index)


def _known(table: dict[str, int], name: str) -> int:
    if name not in table:
        raise ValueError(f"the vocabulary of {len(table)} tokens has no {name}")
    return table[name]
