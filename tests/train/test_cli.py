"""Every mistake at the command line is one line that names the thing and what would be right."""

import jax
import pytest

from glm_jax.errors import UserError
from glm_jax.sharding import MeshConfig, make_mesh
from tests.train.small import SPECIAL
from train import cli, pretrain
from train.presets import PRESETS
from train.session import check_shapes


def parse(*argv: str):
    return cli.parse(PRESETS, "demo", "python -m train.pretrain", argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--preset", "glm-11b"), "--preset glm-11b is unknown; there are demo, tiny, glm-base"),
        (("--stepz", "5"), "; perhaps --steps"),
        (("--steps", "many"), "--steps: 'many' is not a whole number"),
        (("--steps",), "--steps"),
        (("--steps", "0"), "--steps 0 is below 1"),
        (("--optimizer.schedule.warmup", "2"), "warmup is 2.0; it is a share of decay_steps"),
        (("--optimizer.schedule.shape", "square"), "shape"),
        (("--batch-size", "9", "--accumulate", "2"), "--accumulate 2 does not divide"),
        (("--every.save", "-1"), "save is -1"),
        (("--multitask.ratio", "2"), "ratio is 2.0; it is a chance between 0 and 1"),
        (("extra",), "extra"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_bad_options(argv, said):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--output", "/proc/here"), "--output /proc/here cannot be a directory"),
        (("--tokenizer", "/nowhere"), "/nowhere"),
        (("--data.source", "files:/nowhere/*.txt"), "/nowhere/*.txt"),
    ],
    ids=str,
)
def test_bad_paths(argv, said, tmp_path):
    with pytest.raises(UserError) as error:
        pretrain.main(parse("--preset", "tiny", "--output", str(tmp_path), *argv))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rows_that_cannot_be_cut_over_the_mesh():
    args = parse("--preset", "tiny", "--seq-len", "60", "--mesh.context", "4")
    mesh = make_mesh(MeshConfig(data=1, context=4), devices=jax.devices()[:4])
    with pytest.raises(UserError, match=r"--seq-len 60 .* --mesh.context 4: .* multiple of 8$"):
        check_shapes(args, PRESETS["tiny"].model.config(128, SPECIAL), mesh)


def test_a_preset_and_options_on_top():
    args = parse("--preset=glm-10b", "--mesh.fsdp", "8", "--compute.remat", "full")
    assert (args.mesh.fsdp, args.compute.remat, args.model.preset) == (8, "full", "glm-10b")
    schedule = args.optimizer.schedule
    assert (schedule.peak, schedule.decay_steps, schedule.floor) == (1e-4, 175_000, 0.1)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    said = " ".join(capsys.readouterr().out.split())
    for words in (*PRESETS, "--mesh.fsdp", "goes on where it stopped", "keeps falling, below zero"):
        assert words in said


def test_exit_status(capsys):
    def fails():
        raise UserError("steps is 0; it must be at least 1")

    with pytest.raises(SystemExit) as stop:
        cli.run(fails)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: steps is 0; it must be at least 1\n"
