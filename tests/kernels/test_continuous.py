import jax, jax.numpy as jnp, numpy as np, pytest, blackjax
from jax.tree_util import Partial
from energyflow.kernels import *
from invariance import COVARIANCE, TARGETS, assert_invariant
DENSE = np.array(COVARIANCE, np.float32)
DIAGONAL = np.diag(DENSE)

def promotes(name): return pytest.mark.blackjax_promotes(name)
KERNELS = {
    "mala": mala(0.3),
    "mala_diagonal": mala(0.3, DIAGONAL),
    "mala_dense": mala(0.3, DENSE),
    "hmc": hmc(0.4, 5),
    "hmc_diagonal": hmc(0.4, 5, DIAGONAL),
    "hmc_dense": hmc(0.4, 5, DENSE),
    "nuts": nuts(0.4, max_num_doublings=5),
    "nuts_dense": nuts(0.4, DENSE, max_num_doublings=5),
    "dynamic_hmc": dynamic_hmc(0.4, 6),
    "dynamic_hmc_dense": dynamic_hmc(0.4, 6, DENSE),
    "ghmc": ghmc(0.4),
    "ghmc_diagonal": ghmc(0.4, 0.3, None, DIAGONAL),
    "ghmc_dense": ghmc(0.4, 0.3, 0.2, DENSE),
    "adjusted_mclmc": adjusted_mclmc(0.8, 3),
    "rmh": rmh(0.8),
    "elliptical_slice_diagonal": elliptical_slice(0.0, np.array([3.0, 2.0], np.float32)),
    "elliptical_slice_dense": elliptical_slice(np.array([0.5, -0.5], np.float32), 3 * DENSE),
    "slice_sampling": slice_sampling(1.0),
    "barker": barker(0.8), "barker_scale": barker(0.8, np.array([1.,.5],np.float32)), "raw": Partial(blackjax.barker, step_size=.8),
}
MARKS={}
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.blackjax_promotes()
def test_inv(name, target, key):
    assert_invariant(key, KERNELS[name], TARGETS[target])
