"""Say what a run needs before paying for it: memory, work and traffic on devices that need not be there.

  python scripts/plan.py --config configs/clip_vit_b32.py --topology v5e:4x4
  python scripts/plan.py --config configs/clip_vit_b32.py --topology v5e:4x4 --compare data=4,fsdp=4 --step_only
  python scripts/plan.py --config configs/clip_vit_b32.py --topology v5e:4x4 --sweep --batches 16384,32768

--config FILE[:args]    an experiment, as for scripts/train.py; --config.KEY=VALUE changes one value
--topology KIND:SHAPE   v5e:16x16, v5p:4x4x4, v6e:16x16 (chips of a TPU; pip install "mmgen_jax[tpu-plan]"), cpu:8, or
                        gpu:1x8 (machines x GPUs like the one at hand; gpu:2x8:FILE like the one FILE describes to XLA)
--mesh AXIS=N,...       sizes in the place of the config's; data takes the rest
--compare A [--compare B]  beside it another config (FILE.py[:args]), topology (v5p:4x4x4) or mesh (data=4,fsdp=4)
--sweep                 rank meshes; --meshes 16x1x1,4x4x1 (data x fsdp x tensor; default all) --batches 16384,32768
--scaling T,T,...       the step from few chips to many, at the batch a chip that --topology has (weak) and at its batch (strong)
--step_only             not init and predictions: a fraction of the time
--vocabulary N          tokens of a word vocabulary whose captions are not here
--out FILE              everything as JSON; with --scaling a picture beside it

Nothing is computed and no array is made; the data need not be here. A large model takes minutes to compile.
"""

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mmgen_jax.command_line import check_out, leave, parse_flags, start_jax, tell

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE[:args].")
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:4x4 or cpu:8.")
MESH = flags.DEFINE_list("mesh", [], "AXIS=N,... in the place of the config's sizes.")
COMPARE = flags.DEFINE_multi_string("compare", [], "Another config, topology or mesh, to show beside it.")
SWEEP = flags.DEFINE_bool("sweep", False, "Rank meshes and global batches.")
MESHES = flags.DEFINE_list("meshes", [], "Those of a sweep, as DATAxFSDPxTENSOR; default all.")
BATCHES = flags.DEFINE_list("batches", [], "Global batches of a sweep; default the config's.")
SCALING = flags.DEFINE_list("scaling", [], "Topologies from few chips to many.")
STEP_ONLY = flags.DEFINE_bool("step_only", False, "Only the training step.")
VOCABULARY = flags.DEFINE_integer(
    "vocabulary", 10_000, "Tokens, where a word vocabulary's captions are not here."
)
OUT = flags.DEFINE_string("out", None, "Write everything there, as JSON.")


def mesh_of(parts: list[str]) -> dict[str, int]:
    """["data=4", "fsdp=4"] -> {"data": 4, "fsdp": 4}."""
    from mmgen_jax.core import registry, sharding

    sizes = {}
    for part in parts:
        axis, _, size = part.partition("=")
        if axis not in sharding.AXES or not size.lstrip("-").isdigit():
            raise ValueError(
                f'"{part}" is no part of a mesh such as data=4,fsdp=4.{registry.nearest(axis, sharding.AXES)}'
            )
        sizes[axis] = int(size)
    return sizes


def beside(text: str) -> tuple[dict, str]:
    """What a --compare changes: arguments of `plan.make`, and the plan's name."""
    if text.split(":")[0].endswith(".py"):
        import runpy

        file, _, arg = text.partition(":")
        return {"config": runpy.run_path(file)["get_config"](arg or None)}, Path(file).stem
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem
    if "=" in text:
        return {"mesh": mesh_of(text.split(","))}, name
    return {"topology": text}, name


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument(s): {' '.join(argv[1:])}")
    leave(tell(run))


def run() -> None:
    start_jax()
    import jax

    if not TOPOLOGY.value.startswith("gpu"):
        jax.config.update(
            "jax_platforms", "cpu"
        )  # where there are devices, a run on them goes on undisturbed
    out = Path(OUT.value) if OUT.value else None
    check_out(out)
    from mmgen_jax import plan

    options = {"vocabulary": VOCABULARY.value, "name": beside("")[1]}
    mesh = mesh_of(MESH.value)
    if SCALING.value:
        result = scale(plan, options, out)
    elif SWEEP.value:
        shapes = [
            dict(zip(("data", "fsdp", "tensor"), map(int, text.split("x")), strict=True))
            for text in MESHES.value
        ]
        plans = []
        for found in plan.sweep(
            CONFIG.value, TOPOLOGY.value, shapes=shapes, batch_sizes=list(map(int, BATCHES.value)), **options
        ):
            plans.append(found)
            print(plan.short_table([found]).splitlines()[-1], flush=True)
        plans = plan.rank(plans)
        print("\nbest first:\n" + plan.short_table(plans))
        result = [found.to_json() for found in plans]
    else:
        options["step_only"] = STEP_ONLY.value
        given = {"config": CONFIG.value, "topology": TOPOLOGY.value, "mesh": mesh}
        plans = [plan.make(**given, **options)]
        for text in COMPARE.value:
            changed, name = beside(text)
            plans.append(plan.make(**{**given, **options, **changed, "name": name}))
        print(plan.table(*plans))
        if len(plans) == 1:
            print("\nlargest arrays of the state on a chip\n" + plan.sharding_text(plans[0]))
        result = [found.to_json() for found in plans]
    if out:
        write(result, out)


def scale(plan, options: dict, out: Path | None) -> dict[str, list[dict]]:
    """The tables of --scaling and their picture, which grow with every plan: many large programs take hours."""
    from mmgen_jax import figures

    found: dict[str, list] = {"weak": [], "strong": []}
    for kind, step in plan.scaling(CONFIG.value, TOPOLOGY.value, SCALING.value, **options):
        found[kind].append(step)
        print(f"{kind}: {plan.short_table([step]).splitlines()[-1]}", flush=True)
        result = {kind: [step.to_json() for step in plans] for kind, plans in found.items()}
        if out:
            write(result, out)
            figures.scaling(out.with_suffix(".png"), result)
    for kind, plans in found.items():
        print(f"\n{kind} scaling\n\n{plan.short_table(plans)}")
    return result


def write(result: list | dict, out: Path) -> None:
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse_flags)
