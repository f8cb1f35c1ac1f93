"""Names are looked up among files, options and parameters; a wrong one names the nearest."""

import flax.linen as nn
import pytest

from mmgen_jax.core import registry


def test_nearest():
    assert registry.nearest("optimzer", ["optimizer", "mesh"]) == ' Did you mean "optimizer"?'
    assert registry.nearest("xyz", ["mesh", "data"]) == " Valid: data, mesh."
    assert registry.nearest("xyz", []) == ""


def test_lookup():
    assert registry.lookup("tasks", "captioning").__name__ == "mmgen_jax.tasks.captioning"
    with pytest.raises(ValueError, match=r'Unknown name "captionin" in tasks/\. Did you mean "captioning"'):
        registry.lookup("tasks", "captionin")
    with pytest.raises(ValueError, match='Unknown name "base"'):
        registry.lookup("tasks", "base")
    with pytest.raises(ValueError, match="Unknown name"):
        registry.lookup("tasks", "captioning.make")


def test_choose():
    assert registry.choose({"a": 1}, "a", "letter") == 1
    with pytest.raises(ValueError, match=r'Unknown letter "b"\. Valid: a\.'):
        registry.choose({"a": 1}, "b", "letter")


def make(*, size, depth=1, axis=None):
    return size, depth, axis


def test_call():
    assert registry.call(make, {"size": 2}, "task") == (2, 1, None)
    assert registry.call(make, {"size": 2, "depth": 3}, "task", axis="data") == (2, 3, "data")
    with pytest.raises(ValueError, match=r'Unknown key "dept" in task\. Did you mean "depth"'):
        registry.call(make, {"size": 2, "dept": 3}, "task")
    with pytest.raises(ValueError, match=r"task needs a value for: size"):
        registry.call(make, {}, "task")
    with pytest.raises(ValueError, match='Unknown key "axis"'):
        registry.call(make, {"size": 2, "axis": "data"}, "task", axis=None)


class Layer(nn.Module):
    width: int


def test_a_modules_own_fields_are_no_keys():
    assert registry.call(Layer, {"width": 3}, "model").width == 3
    for hidden in ("parent", "name"):
        with pytest.raises(ValueError, match=f'Unknown key "{hidden}"'):
            registry.call(Layer, {"width": 3, hidden: None}, "model")


def test_build():
    tower = registry.build("nn", {"name": "convnet", "widths": (4,)}, dtype="float32")
    assert tower.widths == (4,)
    assert tower.dtype == "float32"
    with pytest.raises(ValueError, match=r'needs a "name"; here are only: widths'):
        registry.build("nn", {"widths": (4,)})
    with pytest.raises(ValueError, match=r'Unknown name "convnett" in nn/. Did you mean "convnet"'):
        registry.build("nn", {"name": "convnett"})
