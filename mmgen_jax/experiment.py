"""Experiment: a config made real. Training, evaluation and captioning all start from one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmgen_jax import judges as judges_lib
from mmgen_jax.core import config as config_lib
from mmgen_jax.core import guard as guard_lib
from mmgen_jax.core import optimizer as optimizer_lib
from mmgen_jax.core import parallel, registry, sharding
from mmgen_jax.core.checkpoint import Checkpointer
from mmgen_jax.core.state import State
from mmgen_jax.data.pipeline import ANSWERS, SHAPES, TOKENIZER, Pipeline
from mmgen_jax.pretrained import load as pretrained

CONFIG = "config.json"


class WorkdirError(ValueError):
    """A workdir that belongs to another config; the message names the keys that differ, and the remedy."""


class Experiment:
    """The parts of a config, built and placed on today's devices.

    Args:
      config: as every file in configs/ returns it; strictly checked.
      workdir: where the run lives; None writes nothing and trains the tokenizer anew.
      finished: only use the run; the data sets need not be there until something reads them.
      layout: where to place it, which may be devices that do not exist; default what `config.mesh` says of today's.

    Attributes:
      layout: mesh, mode and sharding rules.
      pipeline: the training data and the tokenizer.
      task: the network with its objective.
      guard, train_step: when a training step is left out, and the step that leaves it out.
      judges: the other models that evaluators may ask, opened when they are.
      abstract, shardings: the State's shapes, and where each array lives.
      reports: what `init` took from the weights of other models.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path | None = None,
        *,
        finished: bool = False,
        layout: sharding.Layout | None = None,
    ):
        config_lib.check(config)
        self.config, self.workdir = config, workdir
        self.layout = layout or registry.call(sharding.make, config.mesh, "mesh")
        process = (jax.process_index(), jax.process_count())
        self.pipeline = registry.call(
            Pipeline,
            config.data,
            "data",
            workdir=workdir,
            seed=config.seed,
            process=process,
            finished=finished,
        )
        options = {"steps": config.steps, **config.optimizer}
        optimizer = registry.call(optimizer_lib.make, options, "optimizer")
        task = config.task.to_dict()
        make = registry.lookup("tasks", task.pop("name")).make
        self.task = registry.call(
            make,
            task,
            "task",
            optimizer=optimizer,
            layout=self.layout,
            context=self.pipeline.context,
        )
        self.guard = registry.call(guard_lib.Guard, config.get("guard", {}), "guard")
        self.train_step = guard_lib.guarded(self.task.train_step, self.guard)
        self.abstract: State = jax.eval_shape(self._init, jax.random.key(0))
        self.shardings: State = sharding.infer(self.abstract, self.layout)
        best = config.checkpoint.get("best", "").partition("/")[0]
        if best:
            registry.choose(config.evals, best, "evaluation in checkpoint.best")
        self.evaluators = {name: self._evaluator(name, dict(spec)) for name, spec in config.evals.items()}
        self.judges = judges_lib.make(config.get("judges", {}), layout=self.layout, open_run=self._open_judge)
        if not finished:
            # What is not there shows now, and not hours later at the first evaluation.
            for judge in self.judges.values():
                judge.check()
            for name, part in {"data": self.pipeline, **self.evaluators}.items():
                if not len(part.source):
                    raise ValueError(f"{name}: the source holds no example.")
        self.reports: list[pretrained.Report] = []
        self._compiled: dict[str, Callable] = {}

    def _init(self, rng: jax.Array) -> State:
        # Zeros made inside the program: a batch of 32,768 photographs would be five gigabytes of constants.
        batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in self.pipeline.example_batch().items()}
        return self.task.init(rng, batch)

    def _evaluator(self, name: str, spec: dict[str, Any]) -> Any:
        make = registry.lookup("evaluators", spec.pop("name")).make
        spec.pop("every", None)
        return registry.call(make, spec, f"evals.{name}", pipeline=self.pipeline)

    def _open_judge(self, workdir: Path, step: int | None) -> tuple[judges_lib.Predictor, dict]:
        """A judge is on this run's mesh, so that batches which divide over it here do so there."""
        judge, params, variables, _ = load(workdir, step=step, mesh=self.config.mesh)
        return judge.predictor(params, variables), judge.pipeline.example_batch()

    def initialiser(self) -> Any:
        """The jitted program of `init`, key -> State: before what the files say takes its place."""
        if not self.task.init_from:
            return jax.jit(self._init, out_shardings=self.shardings)
        # Whole on every process, where files are read; then each array goes to its place.
        return jax.jit(
            self._init, out_shardings=jax.tree.map(lambda _: self.layout.replicated, self.shardings)
        )

    def init(self) -> State:
        """The state before the first step: a function of the config's seed, and of the files that `init_from` names.

        What was taken from those, and what was not, stays in `reports`.
        """
        state = self.initialiser()(jax.random.key(self.config.seed))
        if not self.task.init_from:
            return state
        params, variables, self.reports = pretrained.load_all(
            *jax.device_get((state.params, state.variables)),
            self.task.init_from,
            tokenizer=self.pipeline.tokenizer.fingerprint,
        )
        ema = {name: params[name] for name in state.ema}
        return jax.device_put(state.replace(params=params, variables=variables, ema=ema), self.shardings)

    def settle(self) -> None:
        """Write config.json, tokenizer.json, example.json and, if there is one, answers.json: the workdir is this config's now.

        Called once everything is built, so that a config with a mistake in it claims no workdir.
        """
        if jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            # Renamed into place: no other process ever reads half a file.
            files = {
                CONFIG: lambda p: p.write_text(config_lib.to_json(self.config) + "\n", encoding="utf-8"),
                TOKENIZER: self.pipeline.tokenizer.save,
                SHAPES: self.pipeline.save_shapes,
            }
            if self.pipeline.answers is not None:
                files[ANSWERS] = self.pipeline.answers.save
            for name, write in files.items():
                part = self.workdir / f"{name}.part"
                write(part)
                part.replace(self.workdir / name)

    def checkpointer(self, **more: Any) -> Checkpointer:
        """The workdir's checkpoints, which must be of this run's tokenizer and answers. `more`: see `Checkpointer`."""
        options = {key: value for key, value in self.config.checkpoint.items() if key != "every"}
        facts = {name: part.fingerprint for name, part in self.pipeline.context.items()}
        directory = self.workdir / "checkpoints"
        return registry.call(Checkpointer, options, "checkpoint", directory=directory, facts=facts, **more)

    def prediction(self, name: str) -> Callable:
        """The jitted program of a prediction: (params, variables, batch, rng) -> (predictions, batch), whole on every process."""
        if name not in self._compiled:
            fn = registry.choose(self.task.predict, name, "prediction")

            def run(params, variables, batch, rng):
                # Each batch draws its own samples; all processes see the whole batch here, and so agree.
                last = jnp.max(batch["index"]) + 1 if "index" in batch else jnp.int32(0)
                own = jax.random.fold_in(rng, last.astype(jnp.uint32))
                return fn(sharding.gathered(params, self.layout), variables, batch, own), batch

            self._compiled[name] = parallel.compile_predict(
                run, self.layout, self.shardings.params, self.shardings.variables
            )
        return self._compiled[name]

    def predictor(self, params: dict, variables: dict) -> judges_lib.Predictor:
        """`predict(name, batch) -> (predictions, batch)`: on the host, the rows of all processes on each, for evaluators."""
        rng = jax.random.key(self.config.seed)

        def predict(name: str, batch: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
            return jax.device_get(
                self.prediction(name)(params, variables, sharding.put_batch(batch, self.layout), rng)
            )

        return judges_lib.Predictor(predict, (params, variables), self.pipeline, self.judges)


def load(
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    step: int | None = None,
    *,
    average: bool = True,
    mesh: Mapping[str, Any] | None = None,
) -> tuple[Experiment, dict, dict, int]:
    """A finished run from its config.json and a checkpoint: (experiment, params, variables, step).

    Args:
      workdir: made by `train`.
      overrides: {"task.decode.beam": 5}, changes of the config.
      step: which checkpoint; default the newest.
      average: the parameters' average of the run, where it kept one, and not they themselves.
      mesh: where to put it, as in the config; default on all devices at hand, whatever it was trained on.

    Raises:
      FileNotFoundError, CheckpointError: nothing to load there; says what.
    """
    workdir = Path(workdir)
    config = config_lib.load_json(workdir / CONFIG)
    for key, value in (overrides or {}).items():
        try:
            config.update_from_flattened_dict({key: value})
        except KeyError as error:
            raise ValueError(
                f'The run in {workdir} has no "{key}" to change: its task is "{config.task.name}".'
            ) from error
    config.mesh = ml_collections.ConfigDict(dict(mesh or {"data": 1, "fsdp": -1}))
    experiment = Experiment(config, workdir, finished=True)
    checkpointer = experiment.checkpointer()
    params, variables, step = checkpointer.restore_for_eval(
        experiment.abstract, experiment.shardings, step, average=average
    )
    checkpointer.close()
    return experiment, params, variables, step


def check_workdir(workdir: Path, config: ml_collections.ConfigDict, override: bool = False) -> None:
    """See that `workdir` is new, or this config's.

    Raises:
      WorkdirError: it was made by a config that differs, and override is false.
    """
    path = workdir / CONFIG
    changed = config_lib.differences(config_lib.load_json(path), config) if path.exists() else []
    if changed and not override:
        raise WorkdirError(
            f"{workdir} was made by a different config:\n  "
            + "\n  ".join(changed)
            + "\nTake another --workdir, or --override to go on here with the new values."
        )
