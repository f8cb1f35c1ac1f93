"""Weights files as {name: array}: safetensors, and PyTorch's formats without PyTorch and without running anything in them."""

import io
import json
import math
import pickle
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from mmgen_jax.data.pairs import check_pickle, parse_json

# What a folder's weights are called, the first that is there.
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# Where training scripts keep the weights within what they save.
NESTS = ("state_dict", "model_state_dict", "model", "module", "net")
# What data-parallel and compiled modules put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# The first number of PyTorch's format before 1.6.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
COPY = "The file was cut or damaged on its way: copy or download it again."
CONVERT = "Convert it where PyTorch is at hand: safetensors.torch.save_file(model.state_dict(), path)."


class Weights(Mapping[str, np.ndarray]):
    """Arrays by name, each read from disk when it is asked for.

    Attributes:
      path: the file or folder.
      config: the folder's config.json where there is one, else {}.
    """

    def __init__(
        self, path: Path, readers: Mapping[str, Callable[[], np.ndarray]], config: Mapping | None = None
    ):
        self.path, self.config = path, dict(config or {})
        while readers and (wrapper := _shared_wrapper(readers)):
            readers = {name.removeprefix(wrapper): reader for name, reader in readers.items()}
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _shared_wrapper(names: Mapping[str, Any]) -> str | None:
    return next((w for w in WRAPPERS if all(name.startswith(w) for name in names)), None)


def read(path: str | Path) -> Weights:
    """Open a safetensors or PyTorch file, or a folder that holds one, whole or in shards.

    PyTorch files may be state dicts, also nested as training scripts save them, in the format of today or of before 1.6, or
    TorchScript archives, of which the parameters are read and the program is not. Nothing inside a file ever executes.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: not such a file, damaged, or holding what is not plain weights; says what, and the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No weights at {path}: give a local safetensors or PyTorch file, or its folder."
        )
    config = {}
    file = path
    if path.is_dir():
        file = _find(path)
        if (path / "config.json").is_file():
            config = _load_json(path / "config.json")
    if file.suffix == ".json":
        shards = _load_json(file).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f'{file} has no "weight_map", which says in which file each array is. {COPY}')
        return Weights(path, _read_shards(file, shards), config)
    return Weights(path, _read_file(file), config)


def _find(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    others = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    if len(others) == 1:
        return others[0]
    have = (
        f"it has {', '.join(file.name for file in others)}: give one of them" if others else "none is there"
    )
    raise ValueError(f"{folder} holds none of the usual weights files ({', '.join(FILES)}); {have}.")


def _load_json(path: Path) -> dict:
    try:
        value = parse_json(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error}). {COPY}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object. {COPY}")
    return value


def _read_shards(index: Path, shards: Mapping[str, str]) -> dict[str, Callable[[], np.ndarray]]:
    opened = {}
    for name in sorted(set(shards.values())):
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(
                f"{index} names the file {name}, which is not beside it. Download all the shards."
            )
        opened[name] = _read_file(file)
    lost = [f"{name} (in {shard})" for name, shard in shards.items() if name not in opened[shard]]
    if lost:
        raise ValueError(f"{index} names arrays that their files lack: {', '.join(lost[:5])}. {COPY}")
    return {name: opened[shard][name] for name, shard in shards.items()}


def _read_file(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Which format it is, its first bytes say; the suffix may lie."""
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"version https://"):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder.")
    if start.startswith(b"PK"):
        return _read_zip(path)
    if (
        start.startswith(b"\x80")
        and len(start) > 1
        and start[1] <= pickle.HIGHEST_PROTOCOL
        and start[8:9] != b"{"
    ):
        return _read_legacy(path)
    return _read_safetensors(path)


# --- safetensors ---


def _read_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "np")
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors or PyTorch file ({error}). {COPY}") from None

    def reader(name: str) -> Callable[[], np.ndarray]:
        def get() -> np.ndarray:
            try:
                return file.get_tensor(name)
            except AttributeError:  # a number format that numpy has no name for
                kind = file.get_slice(name).get_dtype()
                raise ValueError(
                    f"{path}: {name} holds numbers of type {kind}, which are not read here; "
                    "save it in float32, float16 or bfloat16."
                ) from None

        return get

    return {name: reader(name) for name in file.keys()}  # noqa: SIM118 (the handle is no mapping)


# --- PyTorch ---


class _Storage(NamedTuple):
    """Numbers in a file: what a pickle's persistent id says."""

    dtype: np.dtype
    key: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage, not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that weights do not need."""


def _is_count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries and descriptions of tensors; whatever else a pickle names is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        # Whatever is returned is new or a string: an instruction that alters objects finds none that anybody else uses.
        if (module, name) == ("collections", "OrderedDict"):
            return type("Ordered", (OrderedDict,), {})
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild(*arguments)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return name
        if module.split(".")[0] == "__torch__":  # a module of a TorchScript archive: a bag of attributes here
            return type("Module", (_Module,), {})
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"a reference to {reprlib.repr(pid)}")
        _, kind, key, _, count, *view = pid
        if not (
            isinstance(kind, str) and kind in STORAGES and isinstance(key, str) and _is_count(count)
        ) or any(view):
            raise pickle.UnpicklingError(f"a storage that is described as {reprlib.repr(pid)}")
        return _Storage(STORAGES[kind], key, count)


class _Module:
    """A TorchScript module without its program."""


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """Check that a tensor lies within its storage."""
    shape_ok = all(isinstance(x, tuple) and all(map(_is_count, x)) for x in (size, stride))
    if not isinstance(storage, _Storage) or not _is_count(offset) or not shape_ok or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor that is not described by storage, offset, size and stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.count or (math.prod(size) and last >= storage.count):
        raise pickle.UnpicklingError(
            f"a tensor of shape {size} that reaches beyond its {storage.count} numbers"
        )
    return _Tensor(storage, offset, size, stride)


def _unpickle(path: Path, file: BinaryIO) -> Any:
    """One pickle of a PyTorch file.

    Raises:
      ValueError: it asks for more than weights, or is broken.
    """
    try:
        check_pickle(file)
        return _Unpickler(file, encoding="utf-8").load()
    except _Refused as error:
        raise ValueError(
            f"{path} holds {error}, which is not plain weights; it was not run. "
            f"Take a file with the state dict alone, or, if you trust the file: {CONVERT}"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}). {COPY}") from None


def _view(path: Path, tensor: _Tensor, numbers: bytes) -> np.ndarray:
    """The tensor's numbers, from those of its storage; little-endian, as PyTorch writes them."""
    key, dtype, count = tensor.storage.key, tensor.storage.dtype, tensor.storage.count
    if len(numbers) != count * dtype.itemsize:  # what lies behind it is other memory
        raise ValueError(f"{path}: the storage {key} has {len(numbers)} bytes for {count} {dtype}. {COPY}")
    flat = np.frombuffer(numbers, dtype)[tensor.offset :]
    if not math.prod(tensor.size):
        return np.zeros(tensor.size, flat.dtype)
    strides = tuple(step * flat.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(flat, tensor.size, strides).copy()


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive raises all sorts of things
        raise ValueError(f"{path} is no whole PyTorch file ({error}). {COPY}") from None


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """One of an archive's files; all of it, because its checksum is compared at its end."""
    try:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile("it is compressed, which PyTorch never does: a decompression bomb?")
        return archive.read(name)
    except Exception as error:  # a damaged archive raises all sorts of things
        raise ValueError(f"{path}: {name} is damaged or missing ({error}). {COPY}") from None


def _read_zip(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """PyTorch's format since 1.6, and TorchScript: <root>/data.pkl beside <root>/data/<key>, uncompressed."""
    with _open_zip(path) as archive:
        pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path} is a zip archive without data.pkl: not a file that PyTorch wrote.")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and _member(path, archive, order) != b"little":
            raise ValueError(f"{path} was written on a big-endian machine. {CONVERT}")
        tree = _unpickle(path, io.BytesIO(_member(path, archive, pickles[0])))

    def reader(tensor: _Tensor) -> Callable[[], np.ndarray]:
        def get() -> np.ndarray:
            member = f"{root}data/{tensor.storage.key}"
            with _open_zip(path) as archive:
                return _view(path, tensor, _member(path, archive, member))

        return get

    return {name: reader(tensor) for name, tensor in _tensors(path, tree).items()}


def _read_legacy(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """PyTorch's format before 1.6: pickles of a magic number, a version, the machine, the tree and the storages' keys, then
    each storage's count and numbers."""
    with path.open("rb") as file:
        if _unpickle(path, file) != LEGACY_MAGIC:
            raise ValueError(f"{path} is a pickle, but not one of PyTorch's weights. {CONVERT}")
        _, machine, tree, keys = (_unpickle(path, file) for _ in range(4))
        if not (isinstance(machine, dict) and isinstance(keys, list)):
            raise ValueError(f"{path} is not laid out as PyTorch's old format is. {CONVERT}")
        if not machine.get("little_endian", True):
            raise ValueError(f"{path} was written on a big-endian machine. {CONVERT}")
        tensors = _tensors(path, tree)
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        size, places = path.stat().st_size, {}
        for key in keys:
            if key not in dtypes:
                raise ValueError(f"{path} holds numbers that belong to no tensor of it. {CONVERT}")
            head = file.read(8)
            places[key] = (file.tell(), int.from_bytes(head, "little") * dtypes[key].itemsize)
            if len(head) < 8 or sum(places[key]) > size:
                raise ValueError(f"{path} ends before its numbers do. {COPY}")
            file.seek(sum(places[key]))

    def reader(tensor: _Tensor) -> Callable[[], np.ndarray]:
        def get() -> np.ndarray:
            start, length = places.get(tensor.storage.key, (0, 0))
            if length != tensor.storage.count * tensor.storage.dtype.itemsize:
                raise ValueError(f"{path}: the numbers of storage {tensor.storage.key} are missing. {COPY}")
            with path.open("rb") as file:
                file.seek(start)
                return _view(path, tensor, file.read(length))

        return get

    return {name: reader(tensor) for name, tensor in tensors.items()}


def _tensors(path: Path, tree: Any) -> dict[str, _Tensor]:
    """The tensors by name: of a state dict, of one nested in what a training script saved, of a TorchScript module."""
    while isinstance(tree, dict) and not any(isinstance(value, _Tensor) for value in tree.values()):
        inner = next((tree[key] for key in NESTS if isinstance(tree.get(key), dict | _Module)), None)
        if inner is None:
            break
        tree = inner
    tensors: dict[str, _Tensor] = {}

    def walk(module: _Module, prefix: str, above: tuple[int, ...]) -> None:
        for name, value in vars(module).items():
            if isinstance(value, _Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, _Module) and id(value) not in above:
                walk(value, f"{prefix}{name}.", (*above, id(value)))

    if isinstance(tree, _Module):
        walk(tree, "", (id(tree),))
    elif isinstance(tree, dict):
        tensors = {name: x for name, x in tree.items() if isinstance(name, str) and isinstance(x, _Tensor)}
    if not tensors:
        inside = f", only {', '.join(map(str, list(tree)[:5]))}" if isinstance(tree, dict) and tree else ""
        raise ValueError(f"{path} holds no tensors by name{inside}. It has to be a state dict. {CONVERT}")
    return tensors
