"""Two steps of each task, with the numbers that they gave when they were last looked at."""

import jax
import numpy as np
import pytest

from mmgen_jax.core import parallel, sharding
from mmgen_jax.experiment import Experiment

UPDATE = (
    "The task computes other numbers than before. If you wanted that (another initialisation, loss, default, "
    "data order, or tiny config), put the new numbers into GOLDEN and say so in the commit; if you only moved "
    "code, something moved too much. Now: {}"
)


GOLDEN = {
    "classifier_scenes.py": (2.4367573, 1.9806293, 4965.49806),
    "question_answering_scenes.py": (3.1345472, 3.2728817, 1190.83749),
    "question_answering_scenes.py:answers=generated": (4.0755157, 4.1883068, 2227.39553),
    "captioner_scenes.py": (4.0734572, 4.0317168, 2658.78968),
    "dcgan_scenes.py": (2.8266830, 2.7639198, 5644.42941),
    "stackgan_scenes.py": (2.7806115, 2.7505250, 4980.62342),
    "attngan_scenes.py": (8.4740639, 8.4271679, 5570.48708),
    "damsm_scenes.py": (10.3880119, 10.2696867, 1627.71066),
    "gan_gaussians.py": (1.5441402, 1.4418639, 429.41700),
    "dual_encoder_scenes.py": (3.2577107, 3.8218880, 1378.35160),
    "key_frames_clips.py": (1.1327925, 0.6394056, 883.73705),
}


def two_steps(config):
    """-> the losses of two steps, and the sum of the absolute parameters after them."""
    experiment = Experiment(config)
    step = parallel.compile_step(experiment.task.train_step, experiment.layout, experiment.shardings)
    state, losses = experiment.init(), []
    batches = experiment.pipeline.train(0)
    for _ in range(2):
        state, metrics = step(state, sharding.put_batch(next(batches), experiment.layout))
        losses.append(float(metrics["loss"].compute()))
    checksum = sum(float(np.abs(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(state.params))
    return [*losses, checksum]


@pytest.mark.parametrize("config", GOLDEN)
def test_two_steps(config, load_config):
    """The losses of step 1 and 2, and the sum of all absolute parameters."""
    numbers = two_steps(load_config(f"{config},tiny" if ":" in config else f"{config}:tiny"))
    np.testing.assert_allclose(numbers, GOLDEN[config], rtol=1e-5, err_msg=UPDATE.format(numbers))
