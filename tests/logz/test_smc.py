"""Sequential Monte Carlo finds log Z that is known in closed form, and agrees with annealing and quadrature.

Errors are those of 32 independent groups: 4.5 of them are exceeded by chance once in 1e4 (Student, 31 degrees of
freedom). The bias of a log of a mean, stderr^2 / 2, is far below them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import energyflow as ef
from energyflow.energies import gaussian
from energyflow.kernels import adapt
from energyflow.kernels.algorithm import pair
from energyflow.kernels.tempering import parallel_tempering
from energyflow.logz import particles
from energyflow.logz.smc import smc

GROUPS, BETAS = 32, np.linspace(0, 1, 33) ** 2
pytestmark = pytest.mark.lenient("numpyro")


def gaussian_10d():
    """Condition number 30, off centre, with an offset; the base is wider."""
    variances = np.geomspace(0.3, 9.0, 10)
    energy = gaussian(np.full(10, 0.5), covariance=np.diag(variances), offset=-1.0)
    return energy, dist.Normal(jnp.zeros(10), 4.0 * jnp.ones(10)).to_event(1), energy.log_z


def two_modes(x):
    """A .3/.7 mixture of unnormalised Gaussians in the plane: Z = e^2 times one."""
    left = jnp.log(0.3) - jnp.sum((x + 3.0) ** 2) / (2 * 0.5**2)
    right = jnp.log(0.7) - jnp.sum((x - 3.0) ** 2) / (2 * 0.5**2)
    return jnp.log(2 * jnp.pi * 0.5**2) - 2.0 - jnp.logaddexp(left, right)


PLANE = dist.Normal(jnp.zeros(2), 5.0 * jnp.ones(2)).to_event(1)
TARGETS = {"gaussian": gaussian_10d(), "mixture": (two_modes, PLANE, 2.0)}
KERNEL = ef.mala(0.2)


def z_of(result, exact):
    return (result.log_z - exact) / result.stderr


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gaussian", "adaptive"),
        pytest.param("mixture", "persistent", marks=pytest.mark.slow),
        pytest.param("mixture", "adaptive", marks=pytest.mark.slow),
        pytest.param("gaussian", "persistent", marks=pytest.mark.slow),
    ],
)
def test_log_z_is_the_known_one(name, mode, key):
    energy, base, exact = TARGETS[name]
    result = smc(key, energy, base, KERNEL, num_groups=GROUPS, mode=mode, tune=mode == "adaptive")
    assert abs(z_of(result, exact)) < 4.5 and result.stderr < 0.06
    assert result.betas[0] == 0 and result.betas[-1] == 1 and (np.diff(result.betas) > 0).all()
    assert len(result.ess) == len(result.acceptance) == len(result.betas) - 1
    assert result.position.shape == (GROUPS * 256, 2 if name == "mixture" else 10)
    assert f"{result.log_z:.3f}" in str(result) and len(str(result).splitlines()) == 2
    if mode == "adaptive":  # the schedule was placed for half of the particles, by one group
        assert 0.3 < np.median(result.ess) / 256 < 0.7
    if name == "mixture":
        share = (np.asarray(result.position)[:, 0] > 0).reshape(GROUPS, 256).mean(axis=1)
        assert abs(share.mean() - 0.7) < 4.5 * share.std(ddof=1) / np.sqrt(GROUPS) + 0.02  # of order 1/256: a ratio


def test_a_fixed_schedule_is_used_as_it_is(key):
    energy, base, exact = TARGETS["mixture"]
    betas = BETAS
    result = smc(key, energy, base, KERNEL, num_groups=GROUPS, mode="fixed", betas=betas, num_steps=3, tune=False)
    assert abs(z_of(result, exact)) < 4.5
    np.testing.assert_array_equal(result.betas, betas)
    assert result.num_gradients == GROUPS * 256 * 32 * (3 + 1)  # a start and the moves, per temperature


@pytest.mark.slow
def test_z_is_unbiased_at_few_particles(key):
    """E[Z] is exact for any number of particles; its log is not. 512 groups of 16."""
    energy, base, exact = TARGETS["mixture"]
    betas = np.linspace(0, 1, 9) ** 2
    result = smc(key, energy, base, KERNEL, num_groups=512, num_particles=16, mode="fixed", betas=betas, tune=False)
    z = np.exp(result.group_log_z - exact)
    assert abs(z.mean() - 1) < 4.5 * z.std(ddof=1) / np.sqrt(z.size)
    assert result.group_log_z.mean() < exact


@pytest.mark.slow
def test_forgotten_resampling_is_caught(key, monkeypatch):
    """Negative control: particles are weighed at every temperature, but neither resampled nor moved."""
    energy, base, exact = TARGETS["gaussian"]
    original = particles._moved
    monkeypatch.setattr(particles, "_moved", lambda *a: (a[4], *original(*a)[1:]))
    jax.clear_caches()
    result = smc(key, energy, base, KERNEL, num_groups=GROUPS, mode="fixed", betas=np.linspace(0, 1, 9), tune=False)
    jax.clear_caches()
    assert abs(z_of(result, exact)) > 6


def lying_ula(step):
    """Unadjusted Langevin that claims an accept step, to get past the refusal."""

    def kernel(logdensity):
        value_and_grad = jax.value_and_grad(logdensity)
        honest = ef.mala(step)(logdensity)

        def move(key, state):
            noise = jnp.sqrt(2 * step) * jax.random.normal(key, state.position.shape)
            x = state.position + step * state.logdensity_grad + noise
            return type(state)(x, *value_and_grad(x)), _Accepted((jnp.ones(()),))

        return adapt(pair(honest.init, move))

    return kernel


class _Accepted(tuple):
    @property
    def acceptance_rate(self):
        return self[0]


@pytest.mark.slow
def test_unadjusted_moves_are_caught(key):
    """Why ULA is refused: with its claim believed, log Z is wrong by many of its own standard errors."""
    energy, base, exact = TARGETS["gaussian"]
    result = smc(key, energy, base, lying_ula(0.3), num_groups=GROUPS, mode="fixed", betas=BETAS, tune=False)
    assert abs(z_of(result, exact)) > 6


def bent(x):
    """A banana of two modes, no closed form."""
    return (x[0] ** 2 - 2.0) ** 2 / 2 + (x[1] - 0.5 * x[0] ** 2) ** 2 + 0.3 * x[0]


@pytest.mark.slow
def test_three_ways_agree(key):
    """Z4: SMC, the bracket and quadrature within .05; quadrature is exact to 1e-6, .05 is 4.5 errors of a gap."""
    base = dist.Normal(jnp.zeros(2), 2.5 * jnp.ones(2)).to_event(1)
    exact = ef.log_z_quadrature(bent, [-6.0, -8.0], [6.0, 16.0], 400)
    smc_key, bracket_key = jax.random.split(key)
    result = smc(smc_key, bent, base, KERNEL, num_groups=GROUPS, num_particles=2048, tune=False)
    annealed = ef.bracket(bracket_key, bent, base, num_temperatures=300, num_chains=4096)
    values = [result.log_z, annealed.log_z, exact]
    assert np.ptp(values) < 0.05, values
    assert result.stderr < 0.0085


def test_new_weights_compile_nothing(key, count_compilations):
    def run(seed, scale):
        energy = ef.tempered(gaussian(np.zeros(2), covariance=scale * np.eye(2)), 1.0)
        betas = np.linspace(0, 1, 4 + seed) ** 2
        return smc(seed, energy, PLANE, KERNEL, num_groups=2, num_particles=16, mode="fixed", betas=betas, tune=False)

    run(0, 1.0)
    with count_compilations() as made:
        run(1, 2.0)
    assert made.count == 0


@pytest.mark.slow
def test_a_tilted_energy_brings_its_base(key):
    """E = |x|^2 - log N(x; 0, 1) has Z = 3^(-d/2)."""
    normal = dist.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
    result = smc(key, ef.tilt(lambda x: jnp.sum(x**2), normal), None, ef.rmh(0.5), num_groups=GROUPS, tune=False)
    assert abs(z_of(result, -np.log(3.0))) < 4.5
    assert result.num_gradients == 0


def test_refusals_say_why():
    def run(kernel=KERNEL, target=two_modes, **settings):
        return smc(0, target, PLANE, kernel, num_particles=8, num_groups=2, **settings)

    with pytest.raises(ValueError, match="accept step"):
        run(ef.ula(0.1))
    with pytest.raises(ValueError, match="moves its rungs"):
        run(parallel_tempering(KERNEL, [1.0, 0.5]))
    with pytest.raises(ValueError, match="landscape"):
        run(target=ef.landscape(two_modes))
    with pytest.raises(ValueError, match="rise strictly"):
        run(mode="fixed", betas=[0.0, 0.5, 0.5, 1.0])
    with pytest.raises(ValueError, match="needs betas"):
        run(mode="fixed")
    with pytest.raises(ValueError, match="mode must be"):
        run(mode="waste-free")
