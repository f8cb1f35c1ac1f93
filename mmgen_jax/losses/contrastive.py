"""Losses of a batch of image-text pairs, one value a pair; every other pair of the batch is a negative.

Plain, the N x N matrix of logits exists. In blocks it never does, forward or backward, and nothing is approximated.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmgen_jax.core import registry

NEVER = -1e30  # the logit of what does not count: finite, so that a difference of two is never nan
EQUAL = dict.fromkeys(("negative", "positive", "ignore"))
EXCHANGE = dict.fromkeys(("gather", "ring"))
Axis = str | Sequence[str] | None


def info_nce(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    *,
    weight: jax.Array | None = None,
    image_id: jax.Array | None = None,
    text_id: jax.Array | None = None,
    equal: str = "negative",
    symmetric: bool = True,
    block_size: int = 0,
    axis: Axis = None,
    exchange: str = "gather",
) -> jax.Array:
    """-log of the probability that softmax_j(logit_scale <image_i, text_j>) gives to j = i, and the same from text to image.

    One direction with 1/tau: van den Oord et al., 2018, eq. 4; both: Radford et al., 2021, figure 3.

    Args:
      image, text: [B, F], one dtype, usually unit length; row i of both is a pair.
      logit_scale: scalar, 1 / temperature, already exponentiated.
      weight: [B], multiplies the loss of a pair. A pair of weight 0 does not exist: it is nobody's negative.
      image_id, text_id: int32 [B]. Two pairs are equal where they have one image or one text in common.
      equal: what an equal pair is: a "negative" like any other; a "positive", the target being uniform over all of a row's
        positives (Khosla et al., 2020, eq. 2); or left out ("ignore").
      symmetric: the mean of both directions; False is image to text alone.
      block_size: rows and columns of a tile; temporaries are O(N F + block_size^2). 0 is the plain form; 1,024 to 4,096
        takes no longer.
      axis: the mapped axes (inside `jax.shard_map(..., check_vma=False)`) over which the batch is spread. Gradients are those
        of the sum of all devices' losses: complete for image and text, the own share for logit_scale.
      exchange: "gather" every device has all texts at once; "ring" they go round, one device's at a time, while the last ones
        are computed with. The ring always works in tiles: where block_size is 0, one for each two devices.

    Returns:
      nats, float32 [B].

    Raises:
      ValueError: unknown choices, shapes that do not fit, or equal pairs without ids to tell them by.
    """
    image, text, pairs = _pairs(image, text, weight, image_id, text_id, equal, axis)
    scale = jnp.asarray(logit_scale, jnp.float32)
    form = _form(_log_sums, _log_sums_slope, equal, symmetric, block_size, axis, exchange)
    rows, columns = _statistics(form, image, text, scale, jnp.float32(0), pairs)
    own = scale * _inner(image, text)

    def direction(sums):
        # log(exp(own) + sum of the others) - own, with all digits where the others are few.
        loss = jax.nn.softplus(sums["log_sum"] - own)
        if equal == "positive":
            loss = loss - (sums["sum"] - sums["count"] * own) / (1.0 + sums["count"])
        return loss

    loss = 0.5 * (direction(rows) + direction(columns)) if symmetric else direction(rows)
    return _weighted(loss, weight)


def sigmoid(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    *,
    weight: jax.Array | None = None,
    image_id: jax.Array | None = None,
    text_id: jax.Array | None = None,
    equal: str = "negative",
    block_size: int = 0,
    axis: Axis = None,
    exchange: str = "gather",
) -> jax.Array:
    """-sum_j log sigmoid(z_ij), z = +-(logit_scale <image_i, text_j> + logit_bias), + for positives (Zhai et al., 2023, eq. 1).

    The mean over i is the paper's loss. Arguments, what is raised and the result as in `info_nce`.
    """
    image, text, pairs = _pairs(image, text, weight, image_id, text_id, equal, axis)
    scale, bias = jnp.asarray(logit_scale, jnp.float32), jnp.asarray(logit_bias, jnp.float32)
    form = _form(_softplus, _softplus_slope, equal, False, block_size, axis, exchange)
    others = _statistics(form, image, text, scale, bias, pairs)[0]["softplus"]
    return _weighted(others + jax.nn.softplus(-scale * _inner(image, text) - bias), weight)


def triplet(
    image: jax.Array,
    text: jax.Array,
    *,
    margin: float,
    negatives: str = "sum",
    distance: str = "cosine",
    weight: jax.Array | None = None,
    image_id: jax.Array | None = None,
    text_id: jax.Array | None = None,
    equal: str = "negative",
    axis: Axis = None,
) -> jax.Array:
    """[margin - s(own) + s(negative)]+ from image to texts, plus the same from text to images (Faghri et al., 2018).

    Args:
      negatives: "sum" adds all up (eq. 5), "hardest" takes the worst (eq. 6). Without any the loss is 0.
      distance: s is the inner product ("cosine", of unit vectors), or minus the "euclidean" distance.
      equal: as in `info_nce`; "positive" too leaves equal pairs out here.
      image, text, weight, image_id, text_id, axis: as in `info_nce`.

    Returns:
      float32 [B], in units of s.
    """
    similarity = registry.choose({"cosine": _product, "euclidean": _minus_distance}, distance, "distance")
    reduce = registry.choose({"sum": jnp.sum, "hardest": jnp.max}, negatives, "negatives")
    image, text, pairs = _pairs(image, text, weight, image_id, text_id, equal, axis)
    images, texts, others = _gather((image, text, pairs), axis)
    counts, _ = _relation(pairs, others, "negative" if equal == "negative" else "ignore")
    if distance == "cosine":
        own = _inner(image, text)
    else:
        own = -_root(jnp.sum(jnp.square(image.astype(jnp.float32) - text.astype(jnp.float32)), axis=1))

    def direction(anchors, candidates):
        cost = jax.nn.relu(margin - own[:, None] + similarity(anchors, candidates))
        return reduce(jnp.where(counts, cost, 0.0), axis=1)

    return _weighted(direction(image, texts) + direction(text, images), weight)


# Pairs and how they are related. ---------------------------------------------------------------------------------------


def _pairs(image, text, weight, image_id, text_id, equal, axis) -> tuple[jax.Array, jax.Array, dict]:
    """image, text, and what tells one pair from another: "index", and where asked for "real", "image_id", "text_id" [B]."""
    registry.choose(EQUAL, equal, "equal")
    image, text = jnp.asarray(image), jnp.asarray(text)
    if image.ndim != 2 or image.shape != text.shape or image.dtype != text.dtype:
        raise ValueError(f"image and text must be [B, F] of one dtype, not {image.aval} and {text.aval}.")
    if image.dtype != jnp.bfloat16:
        image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    ids = {"image_id": image_id, "text_id": text_id}
    ids = {name: jnp.asarray(value) for name, value in ids.items() if value is not None}
    if equal != "negative" and not ids:
        raise ValueError(f'equal="{equal}" needs image_id or text_id, to know which pairs are equal.')
    first = 0 if axis is None else jax.lax.axis_index(axis) * len(image)
    pairs = {"index": first + jnp.arange(len(image), dtype=jnp.int32)}
    if weight is not None:
        pairs["real"] = jnp.asarray(weight) > 0
    return image, text, pairs if equal == "negative" else pairs | ids


def _relation(rows: dict, columns: dict, equal: str) -> tuple[jax.Array, jax.Array]:
    """Which entries off the diagonal count, and which of those are of equal pairs -> two of bool [R, C]."""
    counts = rows["index"][:, None] != columns["index"][None, :]
    if "real" in rows:
        counts = counts & rows["real"][:, None]
    if "real" in columns:
        counts = counts & columns["real"][None, :]
    same = jnp.zeros_like(counts)
    for name in {"image_id", "text_id"} & rows.keys():
        same = same | (rows[name][:, None] == columns[name][None, :])
    if equal == "ignore":
        counts = counts & ~same
    return counts, same & counts


def _weighted(loss: jax.Array, weight: jax.Array | None) -> jax.Array:
    return loss if weight is None else loss * jnp.asarray(weight, jnp.float32)


def _dot(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    """Sum over dimension i of x and j of y, both matrices; float32 all through where they are float32, on any device."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((i,), (j,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision, preferred_element_type=jnp.float32)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [R, F], y [C, F] -> inner products, float32 [R, C]."""
    return _dot(x, y, 1, 1)


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """x, y [B, F] -> the inner product of each row with its partner, float32 [B]."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=1)


def _root(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0 (and below, where rounding leads)."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _minus_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """x [R, F], y [C, F] -> minus the Euclidean distance, float32 [R, C]."""
    return -_root(_inner(x, x)[:, None] + _inner(y, y)[None, :] - 2.0 * _product(x, y))


# What a loss sums up over the rows and columns of the matrix, and its slope at each entry. -----------------------------


def _log_sums(form, logits, counts, same) -> tuple[dict, dict]:
    """Of each row and, symmetric, each column: sum of exp(logit - highest); with positives their sum and count."""
    masked = jnp.where(counts, logits, NEVER)

    def sums(dimension):
        highest = jax.lax.stop_gradient(jnp.max(masked, axis=dimension))
        total = jnp.sum(jnp.exp(masked - jnp.expand_dims(highest, dimension)), axis=dimension)
        state = {"highest": highest, "total": total}
        if form.equal == "positive":
            state["sum"] = jnp.sum(jnp.where(same, logits, 0.0), axis=dimension)
            state["count"] = jnp.sum(same, axis=dimension, dtype=jnp.float32)
        return state

    return sums(1), sums(0) if form.symmetric else {}


def _log_sums_slope(form, logits, counts, same, row, column) -> jax.Array:
    masked = jnp.where(counts, logits, NEVER)
    slope = row["d_log_sum"][:, None] * jnp.exp(masked - row["log_sum"][:, None])
    constant = row["d_sum"][:, None] if form.equal == "positive" else None
    if form.symmetric:
        slope = slope + column["d_log_sum"][None, :] * jnp.exp(masked - column["log_sum"][None, :])
        constant = None if constant is None else constant + column["d_sum"][None, :]
    return slope if constant is None else slope + jnp.where(same, constant, 0.0)


def _softplus(form, logits, counts, same) -> tuple[dict, dict]:
    """Of each row: the sum of -log sigmoid(+-logit)."""
    signed = jnp.where(same, -logits, logits) if form.equal == "positive" else logits
    return {"softplus": jnp.sum(jnp.where(counts, jax.nn.softplus(signed), 0.0), axis=1)}, {}


def _softplus_slope(form, logits, counts, same, row, column) -> jax.Array:
    del column
    # The derivative of softplus(-z) is sigmoid(z) - 1.
    slope = jax.nn.sigmoid(logits) - (same.astype(jnp.float32) if form.equal == "positive" else 0.0)
    return jnp.where(counts, row["d_softplus"][:, None] * slope, 0.0)


class _Form(NamedTuple):
    """What is summed over the matrix, and how one goes through it; hashable.

    Attributes:
      sums: (form, logits, counts, same) -> (state of the rows, state of the columns), of a tile.
      slope: (form, logits, counts, same, row, column) -> what the objective changes with each logit [R, C]. row and column
        hold `d_<name>`, the cotangent of a sum, beside the sums themselves.
    """

    sums: Callable
    slope: Callable
    equal: str
    symmetric: bool
    block_size: int
    axis: str | tuple[str, ...] | None
    ring: bool

    def entries(self, row, column, scale, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits, and `_relation`, of a tile [R, C]."""
        return scale * _product(row["x"], column["x"]) + bias, *_relation(row, column, self.equal)


def _form(sums, slope, equal, symmetric, block_size, axis, exchange) -> _Form:
    registry.choose(EXCHANGE, exchange, "exchange")
    if block_size < 0:
        raise ValueError(f"block_size={block_size} must be a number of rows, or 0 for the plain form.")
    axis = axis if axis is None or isinstance(axis, str) else tuple(axis)
    return _Form(sums, slope, equal, symmetric, block_size, axis, axis is not None and exchange == "ring")


def _statistics(form: _Form, image, text, scale, bias, pairs) -> tuple[dict, dict]:
    """The form's sums over the rows and over the columns of the whole matrix -> two dictionaries of float32 [B]."""
    if form.block_size or form.ring:
        return _tiled(form, image, text, scale, bias, pairs)
    columns = _gather({"x": text, **pairs}, form.axis)
    rows, columns = form.sums(form, *form.entries({"x": image, **pairs}, columns, scale, bias))
    return _finished(rows), _finished(_returned(columns, pairs["index"], form.axis))


# The same in tiles, with a derivative that computes them again. --------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(form, image, text, scale, bias, pairs):
    return _tiled_forward(form, image, text, scale, bias, pairs)[0]


def _tiled_forward(form, image, text, scale, bias, pairs):
    def tile(row, column):
        return form.sums(form, *form.entries(row, column, scale, bias))

    rows, columns = _over_tiles(form, tile, {"x": image, **pairs}, {"x": text, **pairs})
    sums = _finished(rows), _finished(columns)
    return sums, (image, text, scale, bias, pairs, sums)


def _tiled_backward(form, saved, cotangents):
    # The barrier keeps the compiler from holding float32 copies of both since the forward pass.
    image, text, scale, bias, pairs, sums = jax.lax.optimization_barrier(saved)

    def side(x, sums, cotangent):
        slopes = {f"d_{name}": value for name, value in cotangent.items() if name != "count"}
        return {"x": x, **pairs, **slopes, **{name: sums[name] for name in sums.keys() & {"log_sum"}}}

    def tile(row, column):
        slope = form.slope(form, *form.entries(row, column, scale, bias), row, column)
        d_bias, slope = jnp.sum(slope, axis=1), slope.astype(row["x"].dtype)
        return {"x": _dot(slope, column["x"], 1, 0), "bias": d_bias}, {"x": _dot(slope, row["x"], 0, 0)}

    rows, columns = (side(*of) for of in zip((image, text), sums, cotangents, strict=True))
    rows, columns = _over_tiles(form, tile, rows, columns)
    # Every logit is linear in its row: the slope of the scale costs no second look at the matrix.
    d_scale, d_bias = jnp.sum(_inner(rows["x"], image)), jnp.sum(rows["bias"])
    d_image, d_text = ((scale * d["x"]).astype(image.dtype) for d in (rows, columns))
    return d_image, d_text, d_scale, d_bias, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _over_tiles(form: _Form, tile: Callable, rows: dict, chunk: dict) -> tuple[dict, dict]:
    """Merge tile(row, column) -> (row state, column state) over all tiles of all devices.

    rows, chunk: what is known of this device's rows and columns, arrays [B, ...]. States: arrays [B, ...].
    """
    first = lambda tree: jax.tree.map(lambda x: x[:1], tree)
    row_shapes, column_shapes = jax.eval_shape(tile, first(rows), first(chunk))

    def empty(shapes, like):
        fill = {"highest": NEVER}
        length = len(like["index"])
        return {name: jnp.full((length, *x.shape[1:]), fill.get(name, 0.0)) for name, x in shapes.items()}

    def visit(chunk, row_state):
        block = form.block_size or len(chunk["index"])
        return _sweep(tile, block, rows, chunk, row_state, empty(column_shapes, chunk))

    row_state = empty(row_shapes, rows)
    if form.ring:
        return _ring(visit, chunk, row_state, empty(column_shapes, chunk), form.axis)
    row_state, column_state = visit(_gather(chunk, form.axis), row_state)
    return row_state, _returned(column_state, chunk["index"], form.axis)


def _sweep(tile, block, rows, columns, row_state, column_state) -> tuple[dict, dict]:
    """Merge every tile of rows [R, ...] and columns [C, ...] into their states."""
    row_count, row_size = _split(len(rows["index"]), block)
    column_count, column_size = _split(len(columns["index"]), block)
    dtype = rows["x"].dtype
    # XLA's CPU compiler would cut bfloat16 out of a float32 copy of the whole, and keep that.
    stored = jnp.uint16 if dtype == jnp.bfloat16 else dtype
    rows, columns = ({**of, "x": jax.lax.bitcast_convert_type(of["x"], stored)} for of in (rows, columns))

    def cut(tree, start, size):
        part = _slice(tree, start, size)
        part["x"] = jax.lax.bitcast_convert_type(part["x"], dtype)
        length = len(tree["index"])
        if length % size:
            # The last block begins earlier, to be whole; what the one before it has seen does not count twice.
            new = jnp.minimum(start, length - size) + jnp.arange(size) >= start
            part["real"] = new & part["real"] if "real" in part else new
        return part

    def merged(state, part, start, size):
        part = _merge(_slice(state, start, size), part)
        return {
            name: jax.lax.dynamic_update_slice_in_dim(x, part[name], start, 0) for name, x in state.items()
        }

    def step(t, states):
        row = t // column_count * row_size, row_size
        column = t % column_count * column_size, column_size
        row_part, column_part = tile(cut(rows, *row), cut(columns, *column))
        return merged(states[0], row_part, *row), merged(states[1], column_part, *column)

    return jax.lax.fori_loop(0, row_count * column_count, step, (row_state, column_state))


def _split(length: int, block: int) -> tuple[int, int]:
    """The fewest blocks of at most `block`, even ones -> their number and their size."""
    count = -(-length // block)
    return count, -(-length // count)


def _slice(tree: dict, start: jax.Array, size: int) -> dict:
    return {name: jax.lax.dynamic_slice_in_dim(x, start, size) for name, x in tree.items()}


def _ring(visit, chunk, row_state, column_state, axis) -> tuple[dict, dict]:
    """Show every device's chunk to every device. A chunk's state follows it one step behind, and so comes home."""
    count = jax.lax.axis_size(axis)
    send = partial(jax.lax.ppermute, axis_name=axis, perm=[(i, (i + 1) % count) for i in range(count)])

    def step(t, carry):
        chunk, row_state, column_state = carry
        # Nothing in `visit` waits for what is under way here.
        following, arrived = send((chunk, column_state))
        row_state, part = visit(chunk, row_state)
        return following, row_state, _merge(arrived, part)

    _, row_state, column_state = jax.lax.fori_loop(0, count, step, (chunk, row_state, column_state))
    return row_state, send(column_state)


# States: sums, of which "total" is in units of exp("highest"). ---------------------------------------------------------


def _raised(state: dict, highest: jax.Array) -> dict:
    return {**state, "total": state["total"] * jnp.exp(state["highest"] - highest), "highest": highest}


def _merge(a: dict, b: dict) -> dict:
    """The state of two disjoint parts together."""
    if "highest" not in a:
        return jax.tree.map(jnp.add, a, b)
    highest = jnp.maximum(a["highest"], b["highest"])
    return {**jax.tree.map(jnp.add, _raised(a, highest), _raised(b, highest)), "highest": highest}


def _returned(state: dict, index: jax.Array, axis: Axis) -> dict:
    """Every device's state of all columns [N, ...], merged -> the own columns [B, ...]."""
    if axis is None or not state:
        return state
    own = {}
    if "highest" in state:
        highest = jax.lax.pmax(state["highest"], axis)
        state, own = _raised(state, highest), {"highest": highest[index]}
    return {**jax.lax.psum_scatter(state, axis, tiled=True), **own}


def _finished(state: dict) -> dict:
    """The state with log_sum in place of highest and total."""
    if "highest" not in state:
        return state
    rest = {name: x for name, x in state.items() if name not in ("highest", "total")}
    return {"log_sum": state["highest"] + jnp.log(state["total"]), **rest}


def _gather(tree, axis: Axis):
    """Arrays [B, ...] of every device, one after the other: [N, ...]."""
    return tree if axis is None else jax.lax.all_gather(tree, axis, tiled=True)
