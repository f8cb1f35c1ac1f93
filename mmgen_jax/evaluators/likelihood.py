"""Nats a token of a data set's captions, and how far that is from what the captions' own grammar allows."""

from pathlib import Path

import numpy as np

from mmgen_jax.evaluators.base import Evaluator, Predict


class Likelihood(Evaluator):
    """Teacher-forced likelihood. Where the source knows its captions' exact probability, also the gap to it.

    Scores: nll (nats a token, the end token counted), perplexity; of a source with `log_prob`: entropy (the true nats a token of
    the same captions) and gap = nll - entropy, which estimates the Kullback-Leibler divergence a token.
    """

    def run(self, predict: Predict, figure: Path) -> dict[str, float]:
        """Score the data set; there is no picture."""
        del figure
        outputs, inputs = self.outputs(predict, "loss")
        count = np.sum(inputs["tokens"][:, :, 1:] != 0)
        nll = float(outputs["nll"].astype(np.float64).sum() / count)
        scores = {"nll": nll, "perplexity": float(np.exp(nll))}
        if hasattr(self.source, "log_prob"):
            tokenizer = self.pipeline.tokenizer
            true = sum(
                self.source.log_prob(int(index), tokenizer.decode(row))
                for index, rows in zip(inputs["index"], inputs["tokens"], strict=True)
                for row in rows
            )
            scores["entropy"] = float(-true / count)
            scores["gap"] = nll - scores["entropy"]
        return scores


make = Likelihood
