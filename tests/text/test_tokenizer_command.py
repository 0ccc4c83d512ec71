"""``python -m train.tokenizer``."""

import json
import subprocess
import sys

from glm_jax.data import DataConfig
from glm_jax.text import load_tokenizer
from train.tokenizer import Args, main

TEXT = " ".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx")


def test_it_writes_a_tokenizer_and_says_what_it_holds(tmp_path, capsys):
    lines = "".join(json.dumps({"text": f"{TEXT} {i}"}) + "\n" for i in range(20))
    (tmp_path / "a.jsonl").write_text(lines)
    data = DataConfig(source=f"files:{tmp_path}/a.jsonl", cache_dir=str(tmp_path / "cache"))
    output = str(tmp_path / "tok")
    main(Args(output=output, vocab_size=512, model_type="bpe", data=data))
    tokenizer = load_tokenizer(output)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: 501 pieces, vocabulary 512, ")
    assert "bytes per token" in said


def test_errors_are_one_line(tmp_path):
    arguments = ["--output", str(tmp_path / "tok"), "--data.source", "files:nothing/*.txt"]
    command = [sys.executable, "-m", "train.tokenizer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no file matches 'nothing/*.txt'")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "tok").exists()
