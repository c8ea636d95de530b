import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from domains.errors import UserError
from domains.timeseries import student_t
from domains.timeseries.config import LEVELS, HeadConfig
from domains.timeseries.distributions import Mixture, Normal, Quantiles, StudentT, make_head

KINDS = ("student_t", "mixture", "quantiles", "normal")
LOSSES = [
    *itertools.product(("student_t", "mixture", "normal"), ("nll", "crps")),
    ("normal", "qlike"),
    ("quantiles", "nll"),
]
Y = (-7.0, -1.2, -0.05, 0.0, 0.3, 2.5, 40.0)


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def parametric():
    """Pairs of one of our distributions and its density and distribution function by scipy."""
    for location, scale, df in ((0.0, 1.0, 2.1), (0.5, 2.0, 5.0), (-3.0, 0.1, 80.0), (0.0, 1.0, 3000.0)):
        theirs = stats.t(df, location, scale)
        yield StudentT(double(location)[0], double(scale)[0], double(df)[0]), theirs.pdf, theirs.cdf
    normal = stats.norm(0.4, 1.7)
    yield Normal(double(0.4)[0], double(1.7)[0]), normal.pdf, normal.cdf
    weights, parts = (0.2, 0.5, 0.3), (stats.norm(-1, 0.2), stats.norm(0.5, 1.5), stats.norm(6, 0.7))
    yield (
        Mixture(torch.log(double(*weights)), double(-1, 0.5, 6), double(0.2, 1.5, 0.7)),
        lambda z: sum(w * part.pdf(z) for w, part in zip(weights, parts, strict=True)),
        lambda z: sum(w * part.cdf(z) for w, part in zip(weights, parts, strict=True)),
    )


PARAMETRIC = list(parametric())


@pytest.mark.parametrize(("ours", "pdf", "cdf"), PARAMETRIC)
def test_density_distribution_function_and_quantiles(ours, pdf, cdf):
    y = double(*Y)
    density = np.array([pdf(value) for value in Y])
    seen = density > 1e-300
    np.testing.assert_allclose(ours.log_prob(y).exp().numpy()[seen], density[seen], rtol=1e-10)
    np.testing.assert_allclose(ours.cdf(y).numpy(), [cdf(value) for value in Y], atol=1e-13)
    levels = double(1e-6, *LEVELS, 1 - 1e-6)
    quantiles = ours.quantile(levels)
    assert quantiles.shape == levels.shape
    np.testing.assert_allclose([cdf(value) for value in quantiles.tolist()], levels, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ours", "pdf", "cdf"), PARAMETRIC)
def test_mean_and_variance(ours, pdf, cdf):
    if isinstance(ours, StudentT):  # heavy tails: by formula
        theirs = stats.t(ours.df.item(), ours.location.item(), ours.scale.item())
        expected = theirs.mean(), theirs.var()
    else:
        mean = integrate.quad(lambda z: z * pdf(z), -20, 20, points=[-1, 0, 6])[0]
        expected = mean, integrate.quad(lambda z: (z - mean) ** 2 * pdf(z), -20, 20, points=[-1, 0, 6])[0]
    np.testing.assert_allclose((ours.mean.item(), ours.variance.item()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("ours", "pdf", "cdf"), PARAMETRIC)
def test_crps_is_the_integral_of_its_definition(ours, pdf, cdf):
    for y in (-4.0, 0.0, 0.7, 9.0):
        below = integrate.quad(lambda z: cdf(z) ** 2, -np.inf, y, limit=500)[0]
        above = integrate.quad(lambda z: (1 - cdf(z)) ** 2, y, np.inf, limit=500)[0]
        assert ours.crps(double(y)[0]).item() == pytest.approx(below + above, rel=1e-6)


@pytest.mark.parametrize(("ours", "pdf", "cdf"), PARAMETRIC)
def test_draws_follow_the_distribution_and_give_the_same_crps(ours, pdf, cdf):
    shape = (2, 20_000)
    many = type(ours)(*(part.expand(*shape, *part.shape) for part in vars(ours).values()))
    one, other = many.sample(torch.Generator().manual_seed(7))
    assert stats.kstest(one.numpy(), cdf).pvalue > 1e-3
    y = ours.mean + 0.5
    identity = (one - y).abs() - 0.5 * (one - other).abs()
    error = identity.std().item() / math.sqrt(len(identity))
    assert ours.crps(y).item() == pytest.approx(identity.mean().item(), abs=4 * error)
    assert torch.equal(many.sample(torch.Generator().manual_seed(7))[0], one)


def standard_normal_quantiles(scale=1.0, centre=0.0):
    return Quantiles(LEVELS, centre + scale * torch.special.ndtri(double(*LEVELS)))


def test_quantiles_are_linear_inside_and_normal_outside():
    ours = standard_normal_quantiles(2.0, 0.5)
    np.testing.assert_allclose(ours.quantile(double(*LEVELS)), ours.values)
    tails = double(1e-5, 0.002, 0.998, 1 - 1e-5)
    np.testing.assert_allclose(ours.quantile(tails), stats.norm(0.5, 2).ppf(tails), rtol=1e-9)
    assert ours.quantile(double(0.35)).item() == pytest.approx(ours.values[5:7].mean().item())
    levels = double(*np.linspace(0.0005, 0.9995, 301))
    at = ours.quantile(levels)
    spread = Quantiles(LEVELS, ours.values.expand(301, -1))
    np.testing.assert_allclose(spread.cdf(at), levels, atol=1e-12)
    at = (at + 1e-4).requires_grad_()
    (slope,) = torch.autograd.grad(spread.cdf(at).sum(), at)
    np.testing.assert_allclose(spread.log_prob(at).exp().detach(), slope, rtol=1e-9)


def test_moments_of_quantiles():
    skewed = Quantiles(LEVELS, double(*(stats.gamma(3).ppf(level) for level in LEVELS)))
    # P(X > z) integrated over z > 0 less P(X < z) over z < 0, and 2 z times as much for the square
    grid = torch.linspace(-5, 20, 400_001, dtype=torch.float64)
    cdf = Quantiles(LEVELS, skewed.values.expand(len(grid), -1)).cdf(grid).numpy()
    share = np.where(grid > 0, 1 - cdf, -cdf)
    mean = integrate.trapezoid(share, grid.numpy())
    square = integrate.trapezoid(2 * grid.numpy() * share, grid.numpy())
    assert skewed.mean.item() == pytest.approx(mean, abs=1e-4)
    assert skewed.variance.item() == pytest.approx(square - mean**2, abs=1e-3)
    draws = Quantiles(LEVELS, skewed.values.expand(40_000, -1)).sample(torch.Generator().manual_seed(1))
    assert draws.mean().item() == pytest.approx(mean, abs=4 * math.sqrt((square - mean**2) / 40_000))


def test_pinball_loss_and_crps_of_quantiles():
    ours, exact = standard_normal_quantiles(), Normal(double(0)[0], double(1)[0])
    values = ours.values.tolist()
    for y in (-3.0, -2.0, -0.5, 0.0, 0.1, 1.0, 3.0):
        at = double(y)[0]
        by_hand = [2 * (level - (y < q)) * (y - q) for level, q in zip(LEVELS, values, strict=True)]
        assert ours.pinball(at).item() == pytest.approx(np.mean(by_hand))
        assert ours.crps(at).item() == pytest.approx(exact.crps(at).item(), rel=0.04)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_raw_numbers_of_zero_give_a_standard_distribution(kind, mean):
    head = make_head(HeadConfig(kind=kind, mean=mean))
    standard = head(torch.zeros(2, 3, head.size))
    for numbers in (standard.mean, standard.variance):
        assert numbers.shape == (2, 3)
        assert numbers.dtype == torch.float32
    assert standard.mean.abs().max() < 1e-6
    assert (standard.variance - 1).abs().max() < (0.06 if kind == "quantiles" else 1e-5)
    assert (standard.cdf(torch.zeros(2, 3)) - 0.5).abs().max() < 1e-6


def test_components_of_a_mixture_learn_different_things_from_the_start():
    head = make_head(HeadConfig(kind="mixture"))
    raw = torch.zeros(1, head.size, requires_grad=True)
    head.loss(raw, torch.tensor([1.5])).sum().backward()
    for group in raw.grad.reshape(3, 3):
        assert len({round(value, 4) for value in group.tolist()}) == 3


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_gradients_of_losses(kind, loss, mean):
    head = make_head(HeadConfig(kind=kind, loss=loss, mean=mean))
    raw = torch.randn(5, head.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    log_scale = double(0.0, 0.3, -0.2, 1.0, -1.0).requires_grad_()
    y = double(-1.5, 0.02, 0.4, 3.0, -9.0)
    assert torch.autograd.gradcheck(lambda r, s: head.loss(r, y, s), (raw, log_scale))


def test_gradients_of_student_t_distribution_function_at_its_centre():
    z, df = double(-2.0, 0.0, 0.7, 30.0), double(2.2, 3.0, 6.0, 40.0)
    z, df = z.requires_grad_(), df.requires_grad_()
    cdf = StudentT(torch.zeros_like(z), torch.ones_like(z), df).cdf(z)
    by_z, by_df = torch.autograd.grad(cdf.sum(), (z, df))
    np.testing.assert_allclose(by_z, stats.t.pdf(z.detach(), df.detach()), rtol=1e-9)
    step = 1e-5
    sides = [stats.t.cdf(z.detach(), df.detach() + sign * step) for sign in (1, -1)]
    np.testing.assert_allclose(by_df, (sides[0] - sides[1]) / (2 * step), atol=1e-9)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_increase_and_invert_the_distribution_function(kind, mean):
    head = make_head(HeadConfig(kind=kind, mean=mean))
    raw = 3 * torch.randn(50, head.size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    levels = double(0.001, *LEVELS, 0.999)
    said = head(raw)
    quantiles = said.quantile(levels)
    assert quantiles.shape == (50, len(levels))
    assert (quantiles.diff(dim=-1) > 0).all()
    back = torch.stack([said.cdf(quantiles[:, index]) for index in range(len(levels))], -1)
    np.testing.assert_allclose(back, levels.expand(50, -1), atol=1e-9)
    if not mean:
        np.testing.assert_allclose(quantiles, -quantiles.flip(-1), atol=1e-9 * quantiles.abs().max().item())
        assert said.mean.abs().max() < 1e-9 * quantiles.abs().max()


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_a_scale_from_outside_stretches_the_distribution(kind, loss):
    head = make_head(HeadConfig(kind=kind, loss=loss))
    raw = torch.randn(4, head.size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y, log_scale = double(-1.0, 0.0, 0.5, 2.0), double(0.7, -1.0, 2.0, 0.0)
    unit = log_scale.exp()
    stretched, plain = head(raw, log_scale), head(raw)
    np.testing.assert_allclose(
        stretched.quantile(double(0.1, 0.6)), unit[:, None] * plain.quantile(double(0.1, 0.6)), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(stretched.crps(y * unit), unit * plain.crps(y), rtol=1e-9)
    np.testing.assert_allclose(stretched.log_prob(y * unit), plain.log_prob(y) - log_scale, rtol=1e-9, atol=1e-12)
    shift = {"qlike": 2 * log_scale, "nll": log_scale, "crps": None}[loss]
    if kind == "quantiles" or loss == "crps":
        np.testing.assert_allclose(head.loss(raw, y * unit, log_scale), unit * head.loss(raw, y), rtol=1e-9)
    else:
        np.testing.assert_allclose(
            head.loss(raw, y * unit, log_scale), head.loss(raw, y) + shift, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_extreme_raw_numbers_give_finite_losses_and_gradients(kind, loss, mean):
    head = make_head(HeadConfig(kind=kind, loss=loss, mean=mean))
    choices = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    drawn = torch.randint(0, 5, (4000, head.size), generator=torch.Generator().manual_seed(6))
    raw = torch.cat([choices[drawn], choices[:, None].expand(5, head.size)]).requires_grad_()
    for y, log_scale in itertools.product((0.0, 1.0, -1e3), (-1e4, 0.0, 1e4)):
        losses = head.loss(raw, torch.full((len(raw),), y), torch.full((len(raw),), log_scale))
        assert losses.isfinite().all()
        (gradient,) = torch.autograd.grad(losses.sum(), raw)
        assert gradient.isfinite().all()
    said = head(raw.detach())
    for numbers in (said.cdf(torch.ones(len(raw))), said.log_prob(torch.ones(len(raw))), said.mean, said.variance):
        assert numbers.isfinite().all()
    quantiles = said.quantile(torch.tensor(LEVELS))
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize(("kind", "loss"), LOSSES)
def test_the_truth_has_the_lowest_expected_loss(kind, loss):
    """Over a grid about it, of one raw number at a time."""
    head = make_head(HeadConfig(kind=kind, loss=loss))
    truth = 0.5 * torch.randn(head.size, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    y = head(truth).quantile(levels)
    best = head.loss(truth.expand(len(y), -1), y).mean()
    for index in range(head.size):
        for step in (-1.0, -0.3, 0.3, 1.0):
            other = truth.clone()
            other[index] += step
            assert head.loss(other.expand(len(y), -1), y).mean() > best


def test_single_precision_of_nearly_normal_tails():
    df = torch.tensor([2.1, 5.0, 200.0, 1e4])
    for z in (0.0, 0.01, 1.0, 4.0):
        tail = student_t.upper_tail(torch.full((4,), z), df)
        np.testing.assert_allclose(tail, stats.t.sf(z, df.double()), rtol=1e-5)
    levels = torch.tensor(LEVELS)
    quantiles = StudentT(torch.zeros(4), torch.ones(4), df).quantile(levels)
    assert quantiles.dtype == torch.float32
    np.testing.assert_allclose(quantiles, stats.t.ppf(LEVELS, df.double()[:, None]), rtol=2e-4, atol=1e-5)


def test_student_t_quantiles_of_any_degrees_of_freedom():
    df = torch.cat([double(2.0), 2 + torch.logspace(-4, 7, 300, dtype=torch.float64)])
    tails = [1e-12, 1e-6, 0.001, 0.1, 0.4, 0.499, 0.5]
    found = student_t.upper_quantile(tails, df).numpy()
    assert found.shape == (301, 7)
    np.testing.assert_allclose(found[:, :-1], stats.t.isf(tails[:-1], df.numpy()[:, None]), rtol=1e-9)
    np.testing.assert_allclose(found[:, 1:5], stats.t.isf(tails[1:5], df.numpy()[:, None]), rtol=1e-12)
    assert np.abs(found[:, -1]).max() < 1e-12


def test_half_precision_is_worked_on_in_single():
    for kind in KINDS:
        head = make_head(HeadConfig(kind=kind))
        raw = torch.randn(3, head.size, generator=torch.Generator().manual_seed(9)).bfloat16()
        loss = head.loss(raw, torch.ones(3, dtype=torch.bfloat16))
        assert loss.dtype == torch.float32
        assert torch.equal(loss, head.loss(raw.float(), torch.ones(3)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (HeadConfig(kind="cauchy"), "head.kind=cauchy: must be one of student_t, mixture"),
        (HeadConfig(loss="qlike"), "head.loss=qlike: with head.kind=student_t it must be one of nll, crps"),
        (HeadConfig(kind="mixture", components=0), "head.components=0"),
    ],
)
def test_heads_that_there_are_not(config, words):
    with pytest.raises(UserError, match=words):
        make_head(config)
