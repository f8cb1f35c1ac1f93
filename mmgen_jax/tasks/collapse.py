"""The collapse of adversarial training, named from what a report says: samples all alike, a blind discriminator, an explosion."""

import dataclasses
from collections.abc import Mapping


class Collapsed(RuntimeError):
    """Training that has collapsed, where the config asks to stop then; checkpoints from before are whole."""


@dataclasses.dataclass
class CollapseWatch:
    """When to look for a collapse, and what to do.

    Attributes:
      every: steps between two measurements of the distance between samples of one caption.
      after: steps that a generator has to leave its start, where all samples are alike.
      stop: end the run when a trouble stays for `patience` reports; else only say so.
      patience: reports in a row.
    """

    every: int = 50
    after: int = 500
    stop: bool = False
    patience: int = 3

    def __post_init__(self):
        # Of the trouble: what, since which step, in how many reports.
        self._kind, self._since, self._times = None, 0, 0

    def advise(self, step: int, report: Mapping[str, float]) -> str | None:
        """What to say of a report of training, once for each trouble; None where nothing is wrong or new.

        Raises:
          Collapsed: the trouble stays, and `stop` is set.
        """
        found = trouble(report) if step >= self.after else None
        kind = found and found.partition(":")[0]
        if kind != self._kind:
            self._kind, self._since, self._times = kind, step, 0
        self._times += 1
        if kind and self.stop and self._times >= self.patience:
            raise Collapsed(
                f"Stopped at step {step}, after {self._times} reports in a row of {found} Checkpoints from before step "
                f"{self._since} are whole: scripts/evaluate.py and scripts/generate.py take one with --step."
            )
        return found if self._times == 1 else None


def trouble(report: Mapping[str, float]) -> str | None:
    """What a report of training says is wrong, "kind: what to do"; None if nothing is."""
    same, real = report.get("train/sample_distance"), report.get("train/real_distance", 0.0)
    right = min(report["train/real_accuracy"], report["train/fake_accuracy"])
    spread, norm = report["train/logit_spread"], report["train/grad_norm"]
    if same is not None and real > 0 and same < 0.02 * real:
        return (
            f"mode collapse: samples of one caption differ by {same:.4f} a value, real images by {real:.3f}. Lower the "
            "generator's learning rate, add a gradient penalty (task.loss.penalty) or task.augment, or take the hinge loss."
        )
    if right > 0.995 and report["train/generator_grad_norm"] < 1e-3:
        return (
            f"vanishing gradient: the discriminator is right {right:.1%} of the time, the generator's gradient is "
            f"{report['train/generator_grad_norm']:.1e}. Lower the discriminator's learning rate, or add task.augment, "
            "task.loss.smooth or a penalty."
        )
    if spread < 1e-4:
        return (
            f"blind discriminator: its logits spread by {spread:.1e} only, so it tells nothing. Raise its learning rate, or "
            "lower task.loss.penalty.weight."
        )
    if norm > 1e4 or spread > 1e3:
        return (
            f"explosion: the gradients' norm is {norm:.1e} and the logits spread by {spread:.1e}. Lower the learning rates, or "
            "normalise the discriminator (spectral=True)."
        )
    return None
