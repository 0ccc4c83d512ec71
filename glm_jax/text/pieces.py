"""A SentencePiece model and what its file says about it."""

from __future__ import annotations

import functools

import sentencepiece as spm
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a blank
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # ModelProto.SentencePiece.Type


class PieceModel:
    """A SentencePiece model, pickled as its bytes.

    Args:
      model: the bytes of a ``.model`` file.
      extra: pieces to add behind the file's own, each with its type; byte pieces among them switch
        the fallback to bytes on.

    Raises:
      ValueError: the bytes are no SentencePiece model.
    """

    def __init__(self, model: bytes, extra: tuple[tuple[str, int], ...] = ()):
        proto = sentencepiece_model_pb2.ModelProto()  # pyrefly: ignore
        try:
            proto.ParseFromString(model)
            for piece, kind in extra:
                proto.pieces.add(piece=piece, score=0.0, type=kind)
                proto.trainer_spec.byte_fallback |= kind == BYTE
            if not proto.pieces:
                raise ValueError(f"{len(model)} bytes that are no SentencePiece model")
            self.sp = spm.SentencePieceProcessor(
                model_proto=proto.SerializeToString() if extra else model
            )
        except (DecodeError, RuntimeError) as error:
            raise ValueError(f"{len(model)} bytes that are no SentencePiece model") from error
        self._bytes, self._extra = model, extra
        rules = proto.normalizer_spec
        self.unk_surface: str = proto.trainer_spec.unk_surface
        self.strips_all_blanks: bool = rules.remove_extra_whitespaces
        self.strips_blank: bool = rules.add_dummy_prefix or rules.remove_extra_whitespaces

    def __reduce__(self):
        return type(self), (self._bytes, self._extra)

    def __len__(self) -> int:
        return self._size

    @functools.cached_property
    def _size(self) -> int:
        return self.sp.get_piece_size()

    def __contains__(self, piece: str) -> bool:
        return self.find(piece) is not None

    def find(self, piece: str) -> int | None:
        """The id of a piece."""
        index = self.sp.piece_to_id(piece)
        return index if self.sp.id_to_piece(index) == piece else None

    def encode(self, text: str) -> list[int]:
        return self.sp.encode(text)

    def is_byte(self, index: int) -> bool:
        return 0 <= index < self._size and self.sp.is_byte(index)

    def is_unknown(self, index: int) -> bool:
        return 0 <= index < self._size and self.sp.is_unknown(index)

    def byte(self, index: int) -> bytes:
        """What a byte piece, written ``<0x0A>``, stands for."""
        return bytes([int(self.sp.id_to_piece(index)[3:5], 16)])

    def visible(self, index: int) -> str:
        """A piece as it is written; nothing for a control piece or an id outside the model."""
        inside = 0 <= index < self._size and not self.sp.is_control(index)
        return self.sp.id_to_piece(index) if inside else ""

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that an id stands for within a text."""
        if self.is_byte(index):
            return self.byte(index)
        if self.is_unknown(index):
            return "\N{REPLACEMENT CHARACTER}".encode()
        return self.visible(index).replace(SPACE, " ").encode()
