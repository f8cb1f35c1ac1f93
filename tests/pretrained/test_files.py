"""Weights files: every format gives the same arrays, damage is named, and nothing inside a file runs."""

import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmgen_jax.pretrained.files import read


@pytest.fixture(scope="module")
def tensors(torch):
    """Types, views, sharing, empty and zero-dimensional ones."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {
        "plain": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "long": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0] + 1),
    }


def check(weights, tensors, prefix=""):
    assert set(weights) == {prefix + name for name in tensors}
    for name, tensor in tensors.items():
        array, tensor = weights[prefix + name], tensor.detach()
        kind = {"brain": ml_dtypes.bfloat16}.get(name) or tensor.numpy().dtype
        assert array.dtype == kind and array.shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["since 1.6", "before 1.6"])
def test_state_dicts(zipped, torch, tensors, tmp_path):
    file = tmp_path / "weights.pth"
    for tree in (
        tensors,
        {"epoch": 3, "best": None, "state_dict": {f"module.{k}": v for k, v in tensors.items()}},
        {"model": {"state_dict": {f"module._orig_mod.{k}": v for k, v in tensors.items()}}},
    ):
        torch.save(tree, file, _use_new_zipfile_serialization=zipped)
        check(read(file), tensors)


def test_safetensors_whole_in_shards_and_in_a_folder(torch, tensors, tmp_path):
    from safetensors.torch import save_file

    tensors = {name: x.detach().clone().contiguous() for name, x in tensors.items()}
    save_file(tensors, tmp_path / "anything")
    check(read(tmp_path / "anything"), tensors)
    (tmp_path / "whole").mkdir()
    (tmp_path / "anything").rename(tmp_path / "whole" / "model.safetensors")
    (tmp_path / "whole" / "config.json").write_text('{"model_type": "x"}')
    weights = read(tmp_path / "whole")
    check(weights, tensors)
    assert weights.config == {"model_type": "x"}
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({k: v for k, v in tensors.items() if shards[k] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    check(read(folder), tensors)
    index.write_text(json.dumps({"weight_map": {**shards, "more": "model-0.safetensors"}}))
    with pytest.raises(ValueError, match=r"more \(in model-0.safetensors\)"):
        read(folder)
    index.write_text(json.dumps({"weight_map": {"plain": "../whole/model.safetensors"}}))
    with pytest.raises(ValueError, match="not beside it"):
        read(folder)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archives_as_openai_published_them(torch, tmp_path):
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * self.layers(x)

    module = torch.nn.Sequential(Inner(), Inner()).eval()
    torch.jit.trace(module, torch.zeros(1, 3)).save(tmp_path / "scripted.pt")
    weights = read(tmp_path / "scripted.pt")
    assert set(weights) == set(module.state_dict())
    for name, x in module.state_dict().items():
        np.testing.assert_array_equal(weights[name], x.numpy())


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout", ["since 1.6", "before 1.6", "a bare pickle"])
def test_nothing_inside_a_file_runs(layout, torch, tmp_path):
    marker, file = tmp_path / "it ran", tmp_path / "evil.pt"
    for call in (Runs(os.mkdir, str(marker)), Runs(eval, f"__import__('os').mkdir({str(marker)!r})")):
        evil = {"weight": torch.zeros(2), "x": call}
        if layout == "a bare pickle":
            file.write_bytes(pickle.dumps(call, protocol=2))
        else:
            torch.save(evil, file, _use_new_zipfile_serialization=layout == "since 1.6")
        with pytest.raises(ValueError, match=r"evil\.pt holds \S+\.(mkdir|eval), which is not plain weights"):
            read(file)
        assert not marker.exists()


@pytest.mark.parametrize(
    "instructions",
    [
        b"ctorch\nload\n(X\x01\x00\x00\x00atR.",
        b"cbuiltins\ngetattr\n.",
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",  # INST, another way to call
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    ],
)
def test_other_ways_to_call_are_refused(instructions, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + instructions)
    with pytest.raises(ValueError, match="not plain weights; it was not run"):
        read(tmp_path / "evil.pt")


@pytest.mark.parametrize("dtype", [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"])
def test_nothing_that_others_use_is_altered(dtype, tmp_path):
    """BUILD calls __setstate__ or sets attributes; whatever it does, NumPy's types and our functions stay."""
    from mmgen_jax.pretrained import files

    before = dict(vars(files._rebuild)), files.STORAGES["FloatStorage"].str
    for state in (b"}X\x01\x00\x00\x00aK\x01s", b"(K\x03X\x01\x00\x00\x00>NNNK\xffK\xffK\x00t"):
        with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + dtype + state + b"b.")
        with pytest.raises(ValueError, match=r"evil\.pt"):
            read(tmp_path / "evil.pt")
    assert before == (dict(vars(files._rebuild)), files.STORAGES["FloatStorage"].str) and before[1] == "<f4"


def test_tensors_stay_within_their_storage(torch, tmp_path):
    """A view that reaches further would read other memory."""
    torch.save({"w": torch.zeros(2, 3)}, tmp_path / "good.pt")
    for old, new in ((b"K\x02K\x03\x86", b"K\x02K\x09\x86"), (b"K\x03K\x01\x86", b"K\x63K\x01\x86")):
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
            for name in good.namelist():
                data = good.read(name)
                assert not name.endswith("data.pkl") or old in data
                bad.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
        with pytest.raises(ValueError, match="beyond its 6 numbers"):
            read(tmp_path / "bad.pt")


def test_what_is_no_weights_file_says_so(torch, tensors, tmp_path):
    def refuses(content, *words):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError) as caught:
            dict(read(tmp_path / "file"))
        for word in (str(tmp_path / "file"), *words):
            assert word in str(caught.value)

    save = {name: x.detach().clone().contiguous() for name, x in tensors.items()}
    from safetensors.torch import save as to_bytes

    whole = to_bytes(save)
    for cut in (0, 5, 60, len(whole) - 4):
        refuses(whole[:cut], "no whole safetensors", "again")
    torch.save(tensors, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    refuses(whole[: len(whole) // 2], "no whole PyTorch file", "again")
    at = whole.index(struct.pack("<f", 1 / 7))
    refuses(whole[:at] + b"\xff" + whole[at + 1 :], "damaged", "again")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    refuses(whole[:-8], "ends before its numbers")
    refuses(whole[: len(whole) // 3], "again")
    refuses(b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull")
    refuses(b"\x89PNG\r\n\x1a\n" + bytes(100), "no whole safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    refuses((tmp_path / "list.pt").read_bytes(), "state dict")
    torch.save({"optimizer": {"state": 1}, "epoch": 2}, tmp_path / "none.pt")
    refuses((tmp_path / "none.pt").read_bytes(), "only optimizer, epoch", "state dict")
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuses((tmp_path / "file.zip").read_bytes(), "zip archive without data.pkl")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="none of the usual weights files"):
        read(tmp_path / "folder")


def test_numbers_of_unknown_types_are_named(torch, tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "eight")
    with pytest.raises(ValueError, match="w holds numbers of type F8_E4M3"):
        dict(read(tmp_path / "eight"))
