"""Programs of a few lines, whose collectives and bytes can be counted by hand; every way to write groups of devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmgen_jax.core import hlo, sharding

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", [0, 1, 2, 3]),
        ("replica_groups={}, to_apply=%add", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("replica_groups=[2,4]<=[8], use", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), use", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, use", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, use", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, use", [0, 1, 2, 3, 4, 5, 6, 7]),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, use",
            [0, 1, 2, 3],
        ),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, use", [0, 2]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2,'axis_0':(4)2}, use", [0, 1, 4, 5]),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1}}, use", [0, 4]),
    ],
)
def test_groups_of_devices(attributes, group):
    assert sorted(hlo.group(attributes, 8)) == group


def compiled(fn, layout, inputs, outputs, *shapes):
    places = [NamedSharding(layout.mesh, spec) for spec in inputs]
    jitted = jax.jit(fn, in_shardings=places, out_shardings=NamedSharding(layout.mesh, outputs))
    return hlo.Program(
        jitted.lower(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes)).compile().as_text()
    )


def test_each_kind_and_its_bytes():
    layout = sharding.make(data=2, fsdp=4)
    rows = P(("data", "fsdp"))
    # The sum of 64 rows of 32 numbers over all eight devices: a ring sends 2 x 7/8 of the result.
    (summed,) = compiled(lambda x: x.sum(0), layout, [rows], P(), (64, 32)).collectives(MESH)
    assert (summed.kind, summed.axis, summed.count) == ("all-reduce", "data+fsdp", 1)
    assert summed.sent == 2 * 7 / 8 * 32 * 4
    # Rows cut over fsdp become whole: everybody sends its quarter three times.
    (whole,) = compiled(lambda x: x * 2.0, layout, [P("fsdp")], P(), (64, 32)).collectives(MESH)
    assert (whole.kind, whole.axis, whole.sent) == ("all-gather", "fsdp", 3 * 16 * 32 * 4)
    assert whole.shapes == ((64, 32),)


def test_loops_count_their_turns():
    layout = sharding.make(data=8)

    def loop(x, w):
        return jax.lax.scan(lambda c, _: ((c @ w).sum(0, keepdims=True) + c, None), x, None, length=5)[0]

    program = compiled(loop, layout, [P("data"), P()], P("data"), (16, 4), (4, 4))
    (summed,) = program.collectives({"data": 8, "fsdp": 1, "tensor": 1})
    assert (summed.kind, summed.count, summed.sent) == ("all-reduce", 5, 5 * 2 * 7 / 8 * 4 * 4)


def test_traffic():
    layout = sharding.make(devices=jax.devices()[:1])
    size = 4 * 256 * 256
    product = compiled(lambda a, b: a @ b, layout, [P(), P()], P(), (256, 256), (256, 256))
    assert product.traffic() == 3 * size
    # Of a large array only the slice that is read counts, each time it is read.
    one = compiled(
        lambda x: jax.lax.fori_loop(
            0, 10, lambda i, s: s + jax.lax.dynamic_index_in_dim(x, i, 0, False), x[0]
        ),
        layout,
        [P()],
        P(),
        (1000, 4096),
    )
    assert 10 * 3 * 4 * 4096 <= one.traffic() < 25 * 3 * 4 * 4096
    assert product.cycles() is None, "only a TPU's compiler estimates"


TPU = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (p.1: bf16[8,4]) -> bf16[2,4] {
  %p.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.2 = bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%p.1), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %slice.2 = bf16[2,4]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.2), dynamic_slice_sizes={2,4}
}

%cond.1 (c.1: (s32[], bf16[8,4])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)}) parameter(0)
  %bound.1 = s32[]{:T(128)} constant(12)
  %i.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %bound.1), direction=LT
}

%body.1 (b.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %b.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)}) parameter(0)
  %x.1 = bf16[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%b.1), index=1
  %fusion.1 = bf16[2,4]{1,0:T(8,128)} fusion(%x.1), kind=kCustom, calls=%all-reduce-scatter.1CYCLES
  ROOT %t.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)}) tuple(%x.1, %x.1)
}

ENTRY %main.1 (a.1: bf16[8,4]) -> bf16[8,4] {
  %a.1 = bf16[8,4]{1,0:T(8,128)} parameter(0)
  %t.2 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)}) tuple(%a.1, %a.1)
  ROOT %w.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)}) while(%t.2), condition=%cond.1, body=%body.1
}
""".replace("CYCLES", ', backend_config={"window_config":{"estimated_cycles":"100"}}')


def test_a_tpu_writes_it_otherwise():
    """No noted turns, sums that scatter are fusions, "S(1)" is fast memory, and there is an estimate in cycles."""
    program = hlo.Program(TPU)
    (found,) = program.collectives(MESH)
    assert (found.kind, found.axis, found.count) == ("reduce-scatter", "fsdp", 12)
    assert found.sent == 12 * 3 / 4 * 8 * 4 * 2
    assert program.traffic() == 12 * 2 * 4 * 2, (
        "the result goes to main memory, the operand is in the fast one"
    )
    assert program.cycles() == 1200
