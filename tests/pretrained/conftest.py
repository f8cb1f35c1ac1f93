"""What the tests of weights share: empty parameters of a module, random PyTorch models, and the way between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.pretrained import load, names


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def empty():
    """empty(module, *inputs) -> (params, variables) of NaN, so that what is not filled shows."""

    def make(module, *inputs, **kwargs):
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **kwargs))
        variables = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shapes)
        return variables.pop("params"), variables

    return make


@pytest.fixture(scope="session")
def random_params():
    """random_params(tree, seed): normal numbers in the place of every array."""

    def make(tree, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), tree)

    return make


@pytest.fixture(scope="session")
def scramble(torch):
    """scramble(model, seed): every weight and statistic of a PyTorch model random, so that no two are alike; -> the model."""

    def make(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, x in model.state_dict().items():
                if name.endswith("running_var"):
                    x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
                elif x.is_floating_point():
                    mean = 1.0 if x.ndim == 1 and "weight" in name else 0.0
                    x.copy_(
                        mean
                        + torch.randn(x.shape, generator=generator)
                        * max(x[0].numel() if x.ndim else 1, 4) ** -0.5
                    )
        return model.eval()

    return make


@pytest.fixture(scope="session")
def state(torch):
    """state(model): its state dict as NumPy arrays, without PyTorch's counters."""

    def make(model):
        return {k: v.numpy() for k, v in model.state_dict().items() if not names.IGNORED.fullmatch(k)}

    return make


@pytest.fixture(scope="session")
def equal_names():
    """equal_names(ours, theirs): two flat dictionaries of arrays are equal, bit for bit; counters aside."""

    def check(left, right):
        left, right = ({k: x for k, x in d.items() if not names.IGNORED.fullmatch(k)} for d in (left, right))
        assert sorted(left) == sorted(right)
        for name, x in left.items():
            assert x.dtype == right[name].dtype and x.shape == right[name].shape, name
            assert x.tobytes() == right[name].tobytes(), name

    return check


@pytest.fixture(scope="session")
def flat():
    """flat(params, variables): our arrays by the tables' names."""

    def make(params, variables):
        trees = {"params": params, **variables}
        where = load.place(params)
        return {load.placed(name, where): load.get(trees, slot) for name, slot in load.flatten(trees).items()}

    return make


@pytest.fixture(scope="session")
def run():
    """run(module, params, variables, *inputs, method=None, **kwargs): its output as NumPy arrays."""

    def call(module, params, variables, *inputs, method=None, **kwargs):
        apply = jax.jit(lambda v, *x: module.apply(v, *x, method=method, **kwargs))
        return jax.tree.map(np.asarray, apply({"params": params, **variables}, *map(jnp.asarray, inputs)))

    return call
