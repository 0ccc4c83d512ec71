import pytest

from train.schedules import Schedule


@pytest.mark.parametrize(
    ("update", "rate"),
    [(0, 0.0), (3_000, 2e-4), (6_000, 4e-4), (63_000, 2.1e-4), (120_000, 2e-5), (150_000, 2e-5)],
)
def test_cosine_of_glm_base(update, rate):
    schedule = Schedule(peak=4e-4, decay_steps=120_000, warmup=0.05, floor=0.05, shape="cosine")
    assert float(schedule.fn()(update)) == pytest.approx(rate, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    ("update", "rate"), [(15_000, 2e-4), (30_000, 4e-4), (265_000, 2.05e-4), (500_000, 1e-5)]
)
def test_linear_of_glm_roberta(update, rate):
    schedule = Schedule(peak=4e-4, decay_steps=500_000, warmup=0.06, floor=0.025, shape="linear")
    assert float(schedule.fn()(update)) == pytest.approx(rate, rel=1e-5)


def test_linear_is_not_clamped():
    """GLM's linear schedule keeps falling behind its end, below zero."""
    schedule = Schedule(peak=1.0, decay_steps=100, warmup=0.0, floor=0.1, shape="linear")
    assert float(schedule.fn()(100)) == pytest.approx(0.1)
    assert float(schedule.fn()(200)) == pytest.approx(-0.8)


def test_no_warmup_starts_at_the_peak():
    assert float(Schedule(peak=1.0, decay_steps=10, warmup=0.0).fn()(0)) == 1.0


@pytest.mark.parametrize(
    "wrong", [{"warmup": 1.0}, {"floor": 0.0}, {"peak": 0.0}, {"decay_steps": 0}]
)
def test_nonsense_is_refused(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Schedule(**wrong)
