"""Laws of the analytic energies: log Z is the integral of the density, and the exact draws have its moments.

The numbers are the project's reference values for these energies: closed forms, or trapezoid rules of 4001^2 nodes
made independently of this code, as log Z, the mean of E/T, and moments.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energyflow.energies import wells
from energyflow.energies.analytic import Gaussian, funnel, gaussian
from energyflow.energies.exact import reject
from energyflow.energies.mixtures import gaussian_mixture, gmm40, student_mixture
from energyflow.energies.rings import rings
from energyflow.energies.wells import many_well, quartic_wells
from energyflow.energies.zoo import zoo
from energyflow.energy import frozen, kind, temperature
from energyflow.logz.oracles import expectation_quadrature, log_z_quadrature
from laws import assert_mean, assert_not_mean

ZOO = zoo()
REFERENCES = Path(__file__).parents[3] / "shared" / "truth" / "logz"
NUM = 20_000
NUM_BY_NAME = {"many_well_32": 2_000}
CORE = {"four_wells", "himmelblau_beta0.05", "two_moons_rezende_U1", "gauss_d10_kappa10000", "gmm40_fab_d2"}

LOG_Z = {
    "double_well_2d": 0.8653666795885557,
    "asym_double_well_2d": 10.293479707073647,
    "four_wells": 0.2852605161955579,
    "himmelblau_beta0.05": 2.1889649248772387,
    "ring_density": 2.939137156407879,
    "two_moons_rezende_U1": 1.8775016261096138,
    "eight_gaussians_unnorm": 2.531024246969604,
    "banana": 3.4473149788437114,
    "funnel_d2_s3": 5.436489355077455,
    "funnel_d10_s3": 12.787997620714837,
    "gauss_d2_kappa100": 0.5878770665626132,
    "gauss_d10_kappa10000": 7.9393853281347715,
    "gmm40_fab_d2": 2.5878770664093453,
    "many_well_2": 10.293479707073868,
    "many_well_32": 164.69567531318188,
}
BOXES = {
    "double_well_2d": ([-4, -8], [4, 8]),
    "asym_double_well_2d": ([-4, -9], [4, 9]),
    "four_wells": ([-4, -4], [4, 4]),
    "himmelblau_beta0.05": ([-9, -9], [9, 9]),
    "mueller_brown_beta0.05": ([-5, -4], [4, 5]),
    "ring_density": ([-7, -7], [7, 7]),
    "rings": ([-7, -7], [7, 7]),
    "two_moons_rezende_U1": ([-7, -7], [7, 7]),
    "eight_gaussians_unnorm": ([-10, -10], [10, 10]),
    "banana": ([-45, -80], [45, 20]),
    "gauss_d2_kappa100": ([-4, -32], [4, 30]),
    "gmm40_fab_d2": ([-50, -50], [50, 50]),
}
ENERGY = {  # mean of E/T
    "double_well_2d": 1.0793165570190417,
    "asym_double_well_2d": -8.574903640232904,
    "four_wells": 1.044489777933877,
    "himmelblau_beta0.05": 0.9899426092304715,
    "ring_density": 0.5,
    "two_moons_rezende_U1": 0.7825109098259069,
    "eight_gaussians_unnorm": 0.9937012941171369,
    "banana": 1.0,
    "funnel_d2_s3": 1 - 2.5,
    "funnel_d10_s3": 5 - 2.5,
    "gauss_d2_kappa100": 1 + 1.25,
    "gauss_d10_kappa10000": 5 + 1.25,
    "many_well_2": -8.574903640232868,
    "many_well_32": -137.1984582437259,
}
MOMENTS = {  # means and variances of the coordinates
    "double_well_2d": ([0, 0], [0.9176708607452303, 1]),
    "asym_double_well_2d": ([1.1879609833761458, 0], [1.548554792464917, 1]),
    "four_wells": ([-0.26067178672984304, -0.1760167847557697], [0.8293148184861219, 0.861905676714039]),
    "himmelblau_beta0.05": ([0.7934246322067414, 0.34147050663723677], [9.43206341417095, 5.560091351802807]),
    "ring_density": ([0, 0], [8.135, 8.135]),
    "two_moons_rezende_U1": ([0, 0], [3.303501601323556, 1.3952778294082278]),
    "eight_gaussians_unnorm": ([0, 0], [8.25, 8.25]),
    "banana": ([0, 2.25], [25, 2.125]),
    "gauss_d2_kappa100": ([-0.454671, -0.991647], [0.10019934573071466, 9.999800657365295]),
    "gauss_d10_kappa10000": (
        [0.205404, 0.493013, -0.176406, -0.20593, 0.702463, 0.519908, -1.033676, -0.079181, 0.035287, -1.054485],
        [
            *(14.09289810857432, 20.012560105018657, 56.538599112070195, 6.694705586132262, 9.414803597402695),
            *(8.260138148812814, 15.29604112253365, 3.052524062656744, 2.6359683202560045, 20.095263434588684),
        ],
    ),
    "gmm40_fab_d2": ([4.57589325904846, 4.428065824508666], [466.7266246584544, 552.4954926765449]),
    "many_well_32": ([1.1879609833761462, 0] * 16, [1.5485547924649155, 1] * 16),
}
QUADRANTS = {  # P(x>0, y>0), P(x<0, y>0), P(x<0, y<0), P(x>0, y<0)
    "four_wells": [0.1507192196720178, 0.25961716464073026, 0.37307633894791736, 0.2165872767393349],
    "himmelblau_beta0.05": [0.34506211315612334, 0.22153059311062318, 0.15747238412418796, 0.27593490960906536],
}


def each(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.core if n in CORE else ()) for n in names]
    )


def reduced_energies(name, points):
    return np.asarray(jax.vmap(ZOO[name])(points), np.float64) / temperature(ZOO[name])


def draws(name, key):
    return ZOO[name].sample(key, NUM_BY_NAME.get(name, NUM))


def spreads(points, mean):
    return (np.asarray(points, np.float64) - np.asarray(mean)) ** 2


@each(LOG_Z)
def test_log_z_is_the_reference_value(name):
    np.testing.assert_allclose(ZOO[name].log_z, LOG_Z[name], rtol=0, atol=1e-11)


@each(BOXES)
def test_log_z_is_the_integral_of_the_density(name):
    np.testing.assert_allclose(log_z_quadrature(ZOO[name], *BOXES[name], 1000), ZOO[name].log_z, rtol=0, atol=1e-11)


def test_log_z_of_the_many_well_is_a_sum_over_wells_and_has_the_published_constant():
    well = log_z_quadrature(lambda x: x**4 - 6 * x**2 - x / 2, -5.0, 5.0)
    for dim in (2, 32):
        assert abs(many_well(dim).log_z - dim / 2 * (well + math.log(2 * math.pi) / 2)) < 1e-11
    assert abs(math.exp(well) - 11784.50927) < 1e-5


def test_log_z_of_heavy_and_scaled_tails_survives_a_change_of_variables():
    student = ZOO["student_mixture_d2"]
    folded = log_z_quadrature(lambda u: student(jnp.sinh(u)) - jnp.sum(jnp.log(jnp.cosh(u))), [-14, -14], [14, 14])
    assert abs(folded - student.log_z) < 1e-11
    neck = ZOO["funnel_d2_s3"]

    def whitened(u):
        return neck(jnp.stack([u[0], u[1] * jnp.exp(u[0] / 2)])) - u[0] / 2

    assert abs(log_z_quadrature(whitened, [-27, -9], [27, 9], 400) - neck.log_z) < 1e-11


def test_log_z_follows_the_leaves():
    """Training moves leaves; log Z is a function of them, not a number kept from construction."""
    for name in ("gauss_d10_kappa10000", "funnel_d10_s3", "four_wells", "student_mixture_d2", "rings"):
        single = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), ZOO[name])
        np.testing.assert_allclose(single.log_z, ZOO[name].log_z, rtol=2e-6)
    wide = Gaussian(np.zeros(3), 0.5 * np.eye(3))
    assert abs(wide.log_z - gaussian(np.zeros(3), covariance=4 * np.eye(3)).log_z) < 1e-12


@each(ENERGY)
def test_exact_draws_have_the_mean_energy(name, key):
    assert_mean(reduced_energies(name, draws(name, key)), ENERGY[name])


@each(MOMENTS)
def test_exact_draws_have_the_moments(name, key):
    mean, variance = MOMENTS[name]
    points = draws(name, key)
    assert_mean(points, mean)
    assert_mean(spreads(points, mean), variance)


@each(QUADRANTS)
def test_exact_draws_have_the_weights_of_the_modes(name, key):
    x, y = np.asarray(draws(name, key)).T
    assert_mean(
        np.stack([(x > 0) & (y > 0), (x < 0) & (y > 0), (x < 0) & (y < 0), (x > 0) & (y < 0)], 1), QUADRANTS[name]
    )


@pytest.mark.parametrize("name", ["asym_double_well_2d", "many_well_32"])
def test_exact_draws_fill_the_deeper_well(name, key):
    assert_mean(np.asarray(draws(name, key))[:, ::2] > 0, 0.8443070962111391)


@pytest.mark.parametrize("name", ["mueller_brown_beta0.05", "rings"])
def test_exact_draws_agree_with_quadrature(name, key):
    energy = ZOO[name]

    def features(x):
        return jnp.stack(
            [energy(x), x[0], x[0] ** 2, x[0] * x[1], jnp.sum(x**2), jnp.where(x[0] - x[1] > 0.5, 1.0, 0.0)]
        )

    expected = expectation_quadrature(energy, features, *BOXES[name], 1000)
    # The indicator jumps inside a panel, so its quadrature is good to 1e-3 of its standard error times four.
    assert_mean(jax.vmap(features)(energy.sample(key, NUM)), expected)


def test_exact_draws_of_the_funnel_have_its_neck_and_its_log_scale(key):
    points = np.asarray(ZOO["funnel_d10_s3"].sample(key, NUM), np.float64)
    assert_mean(points[:, 0], 0.0)
    assert_mean(points[:, 0] ** 2, 9.0)
    assert_mean(np.stack([points[:, 0] < -4.934560880854418, points[:, 0] > 4.934560880854416], 1), 0.05)
    assert_mean(np.log(np.abs(points[:, 1:])), -0.6351814227)


@pytest.mark.parametrize("name", ["gmm40_d10", "gmm40_d50"])
def test_exact_draws_of_a_mixture_have_its_moments_in_high_dimension(name, key):
    mixture = ZOO[name]
    points = mixture.sample(key, NUM)
    assert_mean(points, mixture.means.mean(0))
    assert_mean(spreads(points, mixture.means.mean(0)), mixture.means.var(0) + 1)


def test_exact_draws_of_the_student_mixture_follow_its_radial_law(key):
    """One component in two dimensions: P(|x - m| > r) = (1 + r^2/(df s^2))^(-df/2)."""
    points = np.asarray(student_mixture([[3.0, -1.0]], scales=2.0, df=3.0).sample(key, NUM))
    radius = np.linalg.norm(points - np.array([3.0, -1.0]), axis=1)
    cuts = np.array([0.5, 2.0, 5.0, 15.0])
    assert_mean(radius[:, None] > cuts, (1 + cuts**2 / 12) ** -1.5)


@pytest.mark.core
def test_negative_control_a_sampler_of_the_wrong_width_is_caught(key):
    for index, name in enumerate(("gauss_d2_kappa100", "four_wells", "two_moons_rezende_U1", "banana")):
        points = ZOO[name].sample(jax.random.fold_in(key, index), NUM)
        assert_not_mean(reduced_energies(name, 1.05 * points), ENERGY[name])


def test_negative_control_an_envelope_without_its_acceptance_step_is_caught(key, monkeypatch):
    monkeypatch.setattr(wells, "reject", lambda key, propose: propose(key)[0])
    for index, name in enumerate(("double_well_2d", "himmelblau_beta0.05")):
        points = retraced_sample(name, jax.random.fold_in(key, index), NUM)
        assert_not_mean(reduced_energies(name, points), ENERGY[name])


def retraced_sample(name, key, num):
    """Call `sample` past its compilation cache, so that what a test patched is used and not kept."""
    sample = type(ZOO[name]).sample.__wrapped__
    return jax.jit(lambda energy, key: sample(energy, key, num))(ZOO[name], key)


@pytest.mark.parametrize(
    ("name", "acceptance"), [("himmelblau_beta0.05", 0.0559), ("mueller_brown_beta0.05", 0.0615), ("four_wells", None)]
)
def test_an_envelope_is_never_below_its_density(name, acceptance, key, monkeypatch):
    monkeypatch.setattr(wells, "reject", lambda key, propose: propose(key)[1])
    with jax.enable_x64(True):
        log_accept = np.asarray(retraced_sample(name, key, 100_000))
    assert log_accept.max() <= 1e-12
    if acceptance is not None:
        assert abs(np.exp(log_accept).mean() / acceptance - 1) < 0.05


def test_rejection_returns_a_nan_rather_than_hang():
    def nan(key):
        return jax.random.normal(key) * jnp.nan, jnp.nan

    assert jnp.isnan(reject(jax.random.key(0), nan))


@each(ZOO)
def test_energies_and_gradients_are_finite_far_out_and_agree_in_both_precisions(name):
    energy = ZOO[name]
    reach = 6.0 if "mueller" in name else 20.0 if "funnel" in name else 1e3
    corners = np.array([np.zeros(energy.dim), reach * np.ones(energy.dim), -reach * np.ones(energy.dim)])
    score = jax.jit(jax.vmap(jax.value_and_grad(energy)))
    single, slopes = score(jnp.asarray(corners, jnp.float32))
    assert np.isfinite(single).all() and np.isfinite(slopes).all()
    with jax.enable_x64(True):
        double, slopes_in_double = score(jnp.asarray(corners))
        assert double.dtype == jnp.float64
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes, slopes_in_double, rtol=1e-4, atol=1e-4 * max(1, np.abs(slopes).max()))


@pytest.mark.core
def test_draws_of_the_same_kind_of_energy_share_one_compilation(key, count_compilations):
    first = gaussian_mixture([[0.0, 1.0], [2.0, 3.0]])
    second = gaussian_mixture([[5.0, 1.0], [2.0, -3.0]], scales=2.0, weights=[1.0, 3.0], offset=1.0)
    jax.block_until_ready(first.sample(jax.random.clone(key), 64))
    with count_compilations() as made:
        jax.block_until_ready(second.sample(jax.random.clone(key), 64))
    assert made.count == 0


def test_the_forty_means_are_the_published_ones():
    means = gmm40(2).means
    np.testing.assert_array_equal(means[0], np.float32([-15.758228302001953, 18.116531372070312]))
    np.testing.assert_array_equal(means[39], np.float32([19.6560001373291, -8.141679763793945]))


def test_the_tempered_surfaces_say_so():
    for name in ("himmelblau_beta0.05", "mueller_brown_beta0.05"):
        assert temperature(frozen(ZOO[name])) == 20 and kind(ZOO[name]) == "tempered"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: gaussian([0.0, 0.0]), "not both"),
        (lambda: gaussian([0.0, 0.0], precision=np.eye(2), covariance=np.eye(2)), "not both"),
        (lambda: gaussian([0.0, 0.0], precision=np.eye(3)), "symmetric"),
        (lambda: gaussian([0.0, 0.0], covariance=[[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: gaussian([0.0, 0.0], covariance=np.diag([1.0, -1.0])), "positive definite"),
        (lambda: funnel(1), "dim >= 2"),
        (lambda: gaussian_mixture([0.0, 1.0]), "means"),
        (lambda: gaussian_mixture([[0.0], [1.0]], weights=[1.0]), "do not fit"),
        (lambda: gaussian_mixture([[0.0], [1.0]], scales=[1.0, 0.0]), "positive"),
        (lambda: student_mixture([[0.0]], df=0.0), "degrees of freedom"),
        (lambda: rings([1.0], 0.0), "positive widths"),
        (lambda: quartic_wells([0.0], [-1.0], [0.0]), "a > 0 where b < 0"),
        (lambda: many_well(3), "even"),
    ],
)
def test_parameters_without_a_density_are_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


@pytest.mark.skipif(not REFERENCES.exists(), reason="the reference files lie beside the project, not in it")
def test_log_z_is_that_of_the_reference_files():
    references = json.loads((REFERENCES / "toy2d.json").read_text()) | json.loads(
        (REFERENCES / "analytic.json").read_text()
    )
    shared = ZOO.keys() & references.keys()
    assert len(shared) == len(LOG_Z)
    for name in shared:
        assert abs(ZOO[name].log_z - references[name]["log_Z"]) < 1e-11
