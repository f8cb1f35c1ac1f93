"""Train what a config describes, and go on where an earlier call stopped.

  python scripts/train.py --config configs/captioner_scenes.py --workdir runs/captioner_scenes

--config FILE[:args]    an experiment; its arguments follow a colon: configs/captioner_scenes.py:tiny or :steps=500
--config.KEY=VALUE      change one value: --config.optimizer.learning_rate=1e-3 --config.data.batch_size=32
--workdir DIR           gets config.json, metrics.jsonl, checkpoints/, figures/; the same command again resumes
                        (scripts/report.py makes a page of it, also while it runs)
--override              go on in a workdir that was made by a different config
--step N                go on from checkpoint N, not from the newest good one; newer ones are set aside
--profile 10:15         trace steps 10 to 15 into DIR/profile/, for https://ui.perfetto.dev and TensorBoard
--compilation_cache DIR keeps compiled programs for the next start; default JAX_COMPILATION_CACHE_DIR, else in
                        the workdir; "" keeps none

SIGTERM or Ctrl-C saves at the end of the step and stops with status 75: the same command goes on (a scheduler may run
it again). Ctrl-C twice stops at once, with status 130. SIGUSR1 saves and goes on. On Slurm: --signal=TERM@120.

Several machines: on TPU, Slurm and GKE add --distributed; elsewhere also
--coordinator HOST:PORT --num_processes N --process_id I, the same command on each. Where one fails the others end with
its message; where one dies, within a minute and with status 69: the same command goes on. docs/pods.md says more.
"""

from absl import app, flags
from ml_collections import config_flags

from mmgen_jax.command_line import keep_compiled, leave, parse_flags, start_jax, tell

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: FILE[:args].")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
OVERRIDE = flags.DEFINE_bool("override", False, "Go on in a workdir that a different config made.")
STEP = flags.DEFINE_integer("step", None, "Go on from this checkpoint; newer ones are set aside.")
PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST, the steps to trace.")
CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Folder of compiled programs; default in the workdir, '' keeps none."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, found by JAX (TPU, Slurm, GKE)."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where nothing finds it.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument(s): {' '.join(argv[1:])}")

    def run():
        start_jax(DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value)
        import jax

        from mmgen_jax.core import goodput, profile, registry
        from mmgen_jax.train import train

        steps = profile.parse(PROFILE.value)
        keep_compiled(WORKDIR.value, CACHE.value)
        train(
            CONFIG.value,
            WORKDIR.value,
            override=OVERRIDE.value,
            step=STEP.value,
            profile=steps,
            began=goodput.process_began(),
        )
        if jax.process_index() == 0:
            print(registry.lookup("tasks", CONFIG.value.task.name).NEXT.format(workdir=WORKDIR.value))

    leave(tell(run))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
