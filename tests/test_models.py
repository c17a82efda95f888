"""Models in files, from the command line: every wrong word is answered by one sentence."""

import numpy as np
import pytest

from energyflow.cli import main
from energyflow.diagnostics import read_trace

pytestmark = [
    pytest.mark.lenient("numpyro_models"),
    pytest.mark.blackjax_promotes("nuts", "dual_averaging"),
]

MODEL = """
import numpyro
import numpyro.distributions as dist

rate = 3.0


def counts(n, y):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    numpyro.sample("y", dist.Binomial(n, p), obs=y)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    np.savez("data.npz", n=10, y=np.array(3))
    np.savez("other.npz", n=10, y=3, z=1.0)
    np.savez("holes.npz", n=10, y=np.array([3.0, np.nan]))
    np.save("array.npy", np.zeros(3))
    return tmp_path


def test_a_model_in_a_file_is_sampled_and_its_draws_written(folder, capsys):
    """The posterior is Beta(4, 8): mean 1/3, sd .131; 4.5 Monte Carlo errors at an ESS of 500 are .026."""
    words = ["run", "model.py:counts", "--data", "data.npz", "--draws", "400", "--out", "draws.nc"]
    assert main(words) == 0
    assert "healthy" in capsys.readouterr().out
    p = read_trace(folder / "draws.nc").position["p"]
    assert p.shape == (8, 400) and abs(p.mean() - 1 / 3) < 0.026


@pytest.mark.slow
def test_the_evidence_of_a_model_in_a_file(folder, capsys):
    """A uniform prior gives every count of ten the evidence 1/11."""
    words = ["logz", "model.py:counts", "--data", "data.npz", "--temperatures", "200", "--chains", "64"]
    assert main(words) == 0
    lower, upper = (float(x) for x in capsys.readouterr().out.splitlines()[1].split("]")[0].strip("[").split(","))
    assert lower <= -np.log(11) <= upper


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.py:nothing", "--data", "data.npz"], "model.py has no function 'nothing'; it defines counts"),
        (["model.py:rate", "--data", "data.npz"], "has no function 'rate'"),
        (["absent.py:counts"], "absent.py does not exist"),
        (["model.py:counts"], "counts needs n, y; no data file was given"),
        (["model.py:counts", "--data", "other.npz"], "counts does not take z; other.npz holds n, y, z"),
        (["model.py:counts", "--data", "holes.npz"], "array 'y' of holes.npz has values that are not finite"),
        (["model.py:counts", "--data", "array.npy"], "array.npy is not a .npz file of named arrays"),
        (["model.py:counts", "--data", "absent.npz"], "absent.npz is not a .npz file of named arrays"),
        (["counts"], "a model is named FILE.py:MODEL; got 'counts'"),
    ],
)
def test_wrong_words_get_one_sentence(folder, capsys, words, message):
    assert main(["run", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
