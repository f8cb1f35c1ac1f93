"""Inception-v3 in PyTorch, written here after torchvision's and the FID papers' files: names, outputs, what is no judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmgen_jax.models.classifier import Classifier
from mmgen_jax.nn import inception as inception_lib
from mmgen_jax.pretrained import inception, names
from mmgen_jax.pretrained.load import load

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
SIDE = 107  # the least at which mixed_7c has a grid of more than one place


class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Part(nn.Module):
    """Convolutions by name, each (inputs, outputs, kernel, stride, padding); a subclass says how they follow each other."""

    def __init__(self, form, **convolutions):
        super().__init__()
        self.form = form
        for name, sizes in convolutions.items():
            self.add_module(name, Conv(*sizes))

    def run(self, x, *path):
        for name in path:
            x = getattr(self, name)(x)
        return x

    def pooled(self, x):
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.form == "torchvision"))


class MixedA(Part):
    def __init__(self, form, n, pool):
        super().__init__(
            form, branch1x1=(n, 64, 1), branch5x5_1=(n, 48, 1), branch5x5_2=(48, 64, 5, 1, 2),
            branch3x3dbl_1=(n, 64, 1), branch3x3dbl_2=(64, 96, 3, 1, 1), branch3x3dbl_3=(96, 96, 3, 1, 1),
            branch_pool=(n, pool, 1),
        )  # fmt: skip

    def forward(self, x):
        five = self.run(x, "branch5x5_1", "branch5x5_2")
        three = self.run(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch1x1(x), five, three, self.pooled(x)], 1)


class MixedB(Part):
    def __init__(self, form, n):
        super().__init__(
            form, branch3x3=(n, 384, 3, 2), branch3x3dbl_1=(n, 64, 1),
            branch3x3dbl_2=(64, 96, 3, 1, 1), branch3x3dbl_3=(96, 96, 3, 2),
        )  # fmt: skip

    def forward(self, x):
        double = self.run(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(Part):
    def __init__(self, form, c, n=768):
        row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        super().__init__(
            form, branch1x1=(n, 192, 1), branch7x7_1=(n, c, 1), branch7x7_2=(c, c, *row),
            branch7x7_3=(c, 192, *column), branch7x7dbl_1=(n, c, 1), branch7x7dbl_2=(c, c, *column),
            branch7x7dbl_3=(c, c, *row), branch7x7dbl_4=(c, c, *column), branch7x7dbl_5=(c, 192, *row),
            branch_pool=(n, 192, 1),
        )  # fmt: skip

    def forward(self, x):
        seven = self.run(x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
        double = self.run(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        return torch.cat([self.branch1x1(x), seven, double, self.pooled(x)], 1)


class MixedD(Part):
    def __init__(self, form, n=768):
        super().__init__(
            form, branch3x3_1=(n, 192, 1), branch3x3_2=(192, 320, 3, 2), branch7x7x3_1=(n, 192, 1),
            branch7x7x3_2=(192, 192, (1, 7), 1, (0, 3)), branch7x7x3_3=(192, 192, (7, 1), 1, (3, 0)),
            branch7x7x3_4=(192, 192, 3, 2),
        )  # fmt: skip

    def forward(self, x):
        three, seven = (
            self.run(x, "branch3x3_1", "branch3x3_2"),
            self.run(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4))),
        )
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(Part):
    def __init__(self, form, n, last):
        row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        super().__init__(
            form, branch1x1=(n, 320, 1), branch3x3_1=(n, 384, 1), branch3x3_2a=(384, 384, *row),
            branch3x3_2b=(384, 384, *column), branch3x3dbl_1=(n, 448, 1), branch3x3dbl_2=(448, 384, 3, 1, 1),
            branch3x3dbl_3a=(384, 384, *row), branch3x3dbl_3b=(384, 384, *column), branch_pool=(n, 192, 1),
        )  # fmt: skip
        self.max = last and form == "fid"

    def forward(self, x):
        three, double = self.branch3x3_1(x), self.run(x, "branch3x3dbl_1", "branch3x3dbl_2")
        ends = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        ends += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = self.branch_pool(F.max_pool2d(x, 3, 1, 1)) if self.max else self.pooled(x)
        return torch.cat([self.branch1x1(x), *ends, pooled], 1)


class Aux(nn.Module):
    """What torchvision's file has and we leave there."""

    def __init__(self):
        super().__init__()
        self.conv0, self.fc = Conv(768, 128, 1), nn.Linear(768, 1000)


class TorchInception(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c = MixedA(form, 192, 32), MixedA(form, 256, 64)
        self.Mixed_5d, self.Mixed_6a = MixedA(form, 288, 64), MixedB(form, 288)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            self.add_module(f"Mixed_6{letter}", MixedC(form, width))
        self.Mixed_7a = MixedD(form)
        self.Mixed_7b, self.Mixed_7c = MixedE(form, 1280, False), MixedE(form, 2048, True)
        if form == "torchvision":
            self.AuxLogits = Aux()
        self.fc = nn.Linear(2048, {"fid": 1008, "torchvision": 1000}[form])

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2))), 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
            if name == "6e":
                grid = x
        features = x.mean((2, 3))
        return grid.permute(0, 2, 3, 1), features, self.fc(features), features @ self.fc.weight.T


@pytest.fixture(scope="module", params=["fid", "torchvision"])
def case(request, scramble, tmp_path_factory):
    """(which form, the PyTorch model, its file)."""
    model = scramble(TorchInception(request.param))
    path = tmp_path_factory.mktemp("inception") / f"{request.param}.pth"
    torch.save(model.state_dict(), path)
    return request.param, model, path


def test_outputs_are_pytorchs(case):
    form, model, path = case
    module, variables = inception.read(path)
    assert module.classes == inception_lib.VARIANTS[form]["classes"]
    image = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        expect = model(torch.tensor(image.transpose(0, 3, 1, 2)))
    got = jax.jit(lambda x: module.apply(variables, x, train=False))(jnp.asarray(image))
    assert got.grid.shape == (2, 5, 5, 768)
    for name, ours, theirs in zip(got._fields, got, expect, strict=True):
        size = float(theirs.abs().max())
        np.testing.assert_allclose(ours / size, theirs / size, atol=1e-4, err_msg=name)


def test_names_both_ways(case, empty, flat, state, equal_names):
    form, model, path = case
    module = inception_lib.make(variant=form, dtype=jnp.float32)
    image = np.zeros((1, 75, 75, 3), np.float32)
    params, variables, report = load(path, *empty(module, image, train=False))
    assert not (report.missing or report.mismatched), report
    assert {name.split(".")[0] for name in report.left} == ({"AuxLogits"} if form == "torchvision" else set())
    assert names.DIALECTS["torch_inception"].title in report.source
    theirs = {k: v for k, v in state(model).items() if not k.startswith("AuxLogits")}
    equal_names(names.to_theirs(flat(params, variables), "torch_inception"), theirs)


def test_as_a_tower(case, empty):
    """The grid alone, for matching words, and the pooled features under a classifier's head."""
    form, model, path = case
    image = np.zeros((1, 75, 75, 3), np.float32)
    grid = inception_lib.make(variant=form, output="grid", dtype=jnp.float32)
    _, _, report = load(path, *empty(grid, image, train=False))
    assert not (report.missing or report.mismatched) and "Mixed_7a.branch3x3_1.conv.weight" in report.left
    tower = inception_lib.make(variant=form, output="features", dtype=jnp.float32)
    classes = len(model.fc.bias)
    params, _, report = load(path, *empty(Classifier(tower, classes, pixels="half"), image, train=False))
    assert not (report.missing or report.mismatched), report
    np.testing.assert_array_equal(params["head"]["bias"], model.fc.bias.detach().numpy())


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No weights at .*nowhere.pth.*pt_inception-2015-12-05.*give its path"
    ):
        inception.read(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("case", ["fid"], indirect=True)
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: {"fc.bias": x["fc.bias"][:5]}, "should have 1008 or 1000 classes, and has 5"),
        (lambda x: {"fc.weight": x["fc.weight"][:5]}, "classes, and is not there"),
        (
            lambda x: {k: v for k, v in x.items() if "Mixed_6c.branch_pool" not in k},
            r"needs all of its weights(.|\n)*not in it(.|\n)*mixed_6c",
        ),
        (
            lambda x: {**x, "Mixed_6c.branch_pool.bn.bias": torch.zeros(3)},
            r"needs all of its weights(.|\n)*mixed_6c/branch_pool/norm/bias is \[3\] there and \[192\] here",
        ),
    ],
)
def test_what_is_no_judge(case, change, message, tmp_path):
    _, model, _ = case
    torch.save(change(model.state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        inception.read(tmp_path / "weights.pth")
