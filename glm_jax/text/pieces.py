"""A SentencePiece model and what its file says about it."""

from __future__ import annotations

import sentencepiece as spm
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a blank
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # ModelProto.SentencePiece.Type


class PieceModel:
    """A SentencePiece model and what its file says about its pieces; pickled as its bytes.

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
            self.sp = spm.SentencePieceProcessor(
                model_proto=proto.SerializeToString() if extra else model
            )
            self._names: list[str] = [piece.piece for piece in proto.pieces]
            # protobuf gives bytes where a name is not UTF-8.
            if not self._names or not all(isinstance(name, str) for name in self._names):
                raise ValueError("no pieces, or pieces that are no text")
            kinds = enumerate(piece.type for piece in proto.pieces)
            self._kinds = {i: kind for i, kind in kinds if kind in (UNKNOWN, CONTROL, BYTE)}
            # A byte's piece is written <0x0A>.
            self._bytes = {
                i: bytes([int(self._names[i][3:-1], 16)])
                for i, kind in self._kinds.items()
                if kind == BYTE
            }
        except (DecodeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{len(model)} bytes that are no SentencePiece model") from error
        self._arguments = model, extra
        rules = proto.normalizer_spec
        self.unk_surface: str = proto.trainer_spec.unk_surface
        self.strips_all_blanks: bool = rules.remove_extra_whitespaces
        self.strips_blank: bool = rules.add_dummy_prefix or rules.remove_extra_whitespaces

    def __reduce__(self):
        return type(self), self._arguments

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, piece: str) -> bool:
        return self.find(piece) is not None

    def find(self, piece: str) -> int | None:
        """The id of a piece."""
        index = self.sp.piece_to_id(piece)
        return index if self._names[index] == piece else None

    def encode(self, text: str) -> list[int]:
        return self.sp.encode(text)

    def byte(self, index: int) -> bytes | None:
        """What a byte piece stands for; None for another."""
        return self._bytes.get(index)

    def is_unknown(self, index: int) -> bool:
        return self._kinds.get(index) == UNKNOWN

    def visible(self, index: int) -> str:
        """A piece as it is written; nothing for a control piece or an id outside the model."""
        inside = 0 <= index < len(self._names) and self._kinds.get(index) != CONTROL
        return self._names[index] if inside else ""

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that an id stands for within a text."""
        if index in self._bytes:
            return self._bytes[index]
        if self.is_unknown(index):
            return "\N{REPLACEMENT CHARACTER}".encode()
        return self.visible(index).replace(SPACE, " ").encode()
