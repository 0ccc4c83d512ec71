"""Which tokenizer a folder holds; what is wrong with it is said in one line."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from glm_jax.config import preset
from glm_jax.errors import UserError
from glm_jax.text import FAMILIES, load_tokenizer
from tests.text import tiny
from tests.text.every import RELEASED, SHARED, tiny_tokenizer

FILES = {
    "glm-10b": {"vocab.json": tiny.gpt2_vocab, "merges.txt": tiny.merges},
    "glm-roberta-large": {"vocab.json": tiny.roberta_vocab, "merges.txt": tiny.merges},
    "glm-large": {"vocab.txt": tiny.bert_vocab},
    "glm-10b-chinese": {"cog-pretrain.model": tiny.chinese},
    "chatglm-6b": {"ice_text.model": tiny.chatglm},
    "chatglm-6b-v1.0": {"ice_text.model": tiny.chatglm_v1_0},
    "chatglm2-6b": {"tokenizer.model": tiny.chatglm2},
    "chatglm3-6b": {"tokenizer.model": tiny.chatglm2},
    "glm-4-9b": {"tokenizer.model": tiny.ranks},
    "glm-4-9b, tokenizer.json": {"tokenizer.json": tiny.fast},
}


def model_directory(root, name, config_family=None, generation=None, **changes):
    """A model directory of this library with the tiny tokenizer of a release."""
    (root / "tokenizer").mkdir(parents=True)
    for file, content in FILES[name].items():
        (root / "tokenizer" / file).write_bytes(content())
    rows = tiny_tokenizer(name).vocab_size
    family = config_family or name.partition(",")[0]
    special = tiny_tokenizer(name).special
    config = preset(family).replace(**{"vocab_size": rows, "special": special, **changes})
    (root / "config.json").write_text(config.to_json())
    if generation is not None:
        (root / "generation.json").write_text(json.dumps(generation))
    return root


@pytest.mark.parametrize("name", FILES)
def test_model_directories(name, tmp_path):
    family = name.partition(",")[0]
    root = model_directory(tmp_path / "model", name, generation={"family": family})
    tok, expected = load_tokenizer(root), tiny_tokenizer(name)
    assert (tok.family, tok.fingerprint) == (family, expected.fingerprint)
    assert load_tokenizer(root, family=family).encode("the file") == expected.encode("the file")


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("chatglm2-6b", "chatglm3-6b")])
def test_files_tell_the_family(name, tmp_path):
    tok = load_tokenizer(model_directory(tmp_path / "model", name, generation={}))
    assert tok.family == name.partition(",")[0]


@pytest.mark.parametrize("family", ["chatglm2-6b", "chatglm3-6b"])
def test_chatglm2_or_3_by_what_lies_beside(family, tmp_path):
    root = model_directory(tmp_path / "model", family)
    with pytest.raises(UserError, match=r"suits chatglm2-6b and chatglm3-6b.*pass family="):
        load_tokenizer(root)
    told = {"name_or_path": f"THUDM/{family}"}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told))
    assert load_tokenizer(root).family == family


def test_config_tells_chinese_command_tokens(tmp_path):
    """[gMASK] has an id of its own, or eop's: the model's config says it."""
    special = tiny_tokenizer("glm-10b-chinese, unfixed").special
    root = model_directory(tmp_path / "model", "glm-10b-chinese", special=special)
    assert load_tokenizer(root).special == special


def test_a_trained_tokenizer_in_a_model_directory(tmp_path):
    tokenizer = tiny_tokenizer("trained")
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    for folder in (tmp_path, tmp_path / "tokenizer"):
        assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("family", RELEASED)
def test_released_folders(family, tmp_path):
    folder = SHARED / "tokenizers" / family
    if not folder.is_dir():
        pytest.skip(f"the released tokenizer files of {family} are not beside this checkout")
    assert load_tokenizer(folder).family == family
    assert load_tokenizer(folder, family=family).family == family
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-4000])
        main = file.name
    (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path, family=family)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value), main


def test_the_right_family_is_asked_for(tmp_path):
    folder = SHARED / "tokenizers"
    if not folder.is_dir():
        pytest.skip("the released tokenizer files are not beside this checkout")
    with pytest.raises(UserError, match=r"gives 130344 ids where chatglm-6b-v1\.0's gives 150344"):
        load_tokenizer(folder / "chatglm-6b", family="chatglm-6b-v1.0")
    shutil.copy(folder / "chatglm2-6b" / "tokenizer.model", tmp_path)
    with pytest.raises(UserError, match="suits chatglm2-6b and chatglm3-6b"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, family="chatglm3-6b-32k").family == "chatglm3-6b-32k"


def test_family_names(tmp_path):
    assert {"glm-2b", "glm-large-chinese", "chatglm3-6b-128k", "glm-4-9b-chat"} <= set(FAMILIES)
    for family in FAMILIES:
        preset(family)
    root = model_directory(tmp_path / "model", "glm-10b")
    with pytest.raises(UserError, match="family 'glm-7b' is unknown; choose one of glm-base"):
        load_tokenizer(root, family="glm-7b")
    with pytest.raises(UserError, match=r"has no ice_text\.model: chatglm-6b's tokenizer"):
        load_tokenizer(root, family="chatglm-6b")
    with pytest.raises(UserError, match=r"has no tokenizer\.model and no tokenizer\.json"):
        load_tokenizer(root, family="glm-4-9b")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"tokenizer\.json is missing, and so is every file of"):
        load_tokenizer(tmp_path)
    root = model_directory(tmp_path / "model", "glm-10b")
    (root / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"has no merges\.txt: glm-10b's tokenizer"):
        load_tokenizer(root)


DAMAGED = [
    ("chatglm-6b", "ice_text.model", b"hello", "5 bytes that are no SentencePiece model"),
    ("chatglm-6b", "ice_text.model", b"", "0 bytes that are no SentencePiece model"),
    ("chatglm2-6b", "tokenizer.model", b"\xff" * 99, "99 bytes that are no SentencePiece model"),
    ("glm-10b-chinese", "cog-pretrain.model", b"\x00", "1 bytes that are no SentencePiece"),
    ("glm-4-9b", "tokenizer.model", b"IQ== 0\nIg== 2\n", "line 2 is b'Ig== 2', not a token in"),
    ("glm-4-9b", "tokenizer.model", b"IQ== 0\nIg==", "line 2 is b'Ig=='"),
    ("glm-4-9b", "tokenizer.model", b"IQ== 0\n", "no token for the byte 0 (255 of"),
    ("glm-4-9b, tokenizer.json", "tokenizer.json", b'{"model": {}}', "not a tokenizer.json"),
    ("glm-4-9b, tokenizer.json", "tokenizer.json", b'{"added', "Unterminated string"),
    ("glm-10b", "vocab.json", b'{"a": 0', "delimiter"),
    ("glm-10b", "vocab.json", b"[]", "not a vocabulary"),
    ("glm-10b", "vocab.json", b'{"a": 0, "b": 2}', "not a vocabulary: it should map n tokens"),
    ("glm-10b", "vocab.json", b'{"a": 0}', "the vocabulary of 1 tokens has no <|endoftext|>"),
    ("glm-10b", "merges.txt", b"#version\nt\n", "line 2 is 't', not two tokens"),
    ("glm-10b", "merges.txt", b"t qqqq\n", "the merge 't' 'qqqq' is not of tokens of"),
    ("glm-10b", "merges.txt", b"".join(tiny.merges().splitlines(True)[:-3]), "lines are missing"),
    ("glm-10b", "merges.txt", b"\xff\xfe", "can't decode byte 0xff"),
    ("glm-large", "vocab.txt", b"[PAD]\n[PAD]\n", "another token on every line"),
    ("glm-large", "vocab.txt", b"[PAD]\n", "the vocabulary of 1 tokens has no [UNK]"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), DAMAGED)
def test_damaged_files_are_named(name, file, content, message, tmp_path):
    family = name.partition(",")[0]
    root = model_directory(tmp_path / "model", name, generation={"family": family})
    (root / "tokenizer" / file).write_bytes(content)
    for stated in (family, None):
        with pytest.raises(UserError) as caught:
            load_tokenizer(root, family=stated)
        assert file in str(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def mutated(content, rng):
    """A file cut short, with other bytes, with bytes missing or with bytes too many."""
    data, at = bytearray(content), rng.randrange(len(content))
    how = rng.choice(("cut", "change", "delete", "insert"))
    if how == "cut":
        del data[at:]
    elif how == "change":
        data[at] = rng.randrange(256)
    elif how == "delete":
        del data[at : at + rng.randrange(1, 60)]
    else:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_refused(name, tmp_path):
    rng, refused = random.Random(name), 0
    root = model_directory(tmp_path / "model", name)
    for file, content in FILES[name].items():
        for _ in range(30):
            (root / "tokenizer" / file).write_bytes(mutated(content(), rng))
            try:
                tok = load_tokenizer(root, family=name.partition(",")[0])
                tok.decode(tok.encode("The file 晚上 it's\n\n x😀"))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)
        (root / "tokenizer" / file).write_bytes(content())
    assert refused


def test_damaged_json_beside_them(tmp_path):
    root = model_directory(tmp_path / "model", "glm-10b")
    (root / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is not a GLMConfig"):
        load_tokenizer(root)
    (root / "config.json").unlink()
    (root / "generation.json").write_text("[")
    with pytest.raises(UserError, match=r"generation\.json is no JSON object"):
        load_tokenizer(root)
    (root / "generation.json").unlink()
    with pytest.raises(UserError, match=r"gives 410 ids where glm-10b's gives 50266: it is cut"):
        load_tokenizer(root)


def test_a_vocabulary_larger_than_the_model(tmp_path):
    root = model_directory(tmp_path / "model", "glm-10b", vocab_size=256)
    with pytest.raises(UserError, match="vocab_size 256 is less than the 410 ids in use"):
        load_tokenizer(root)
