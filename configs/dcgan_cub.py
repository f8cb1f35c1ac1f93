"""GAN-INT-CLS: birds of 64 px from sentences, CUB, with the paper's hyperparameters.

python scripts/train.py --config configs/damsm_cub.py:path=DIR,inception=FILE --workdir runs/damsm_cub
python scripts/train.py --config configs/dcgan_cub.py:path=DIR,inception=FILE --workdir runs/dcgan_cub

DIR has images/, text/ (ten captions each) and the lists of train/ and test/, see data/cub.py. The first run gives the text
tower, which stays as it is; there FILE is torchvision's Inception-v3, here the one of the FID papers.
Paper: Reed et al., Generative Adversarial Text to Image Synthesis, 2016, sections 4 and 5.1: sentences projected to 128
beside 100 of noise, real images with wrong texts, texts half-way between two, batches of 64, Adam at 2e-4 with b1 = 0.5, 600
epochs (83,000 steps). As in the authors' published code: 128 and 64 features, as much weight on half-way texts as on the
others. Different here: a bidirectional LSTM that was trained with DAMSM for their character-level network; no residual layers
between DCGAN's own; the rate falls evenly to a tenth, theirs by a half every 100 epochs; an average of the generator.
Published: Inception score 2.88 (by Zhang et al., 2017, table 1; their network is Inception fine-tuned on birds, so that the
score here is another one). For comparison DF-GAN (Tao et al., 2022) at 256 px: FID 14.81.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path, text (the run whose text tower is taken; "" trains one along), inception (weights for
    the scores), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/cub",
        text="runs/damsm_cub",
        inception="pt_inception-2015-12-05-6726825d.pth",
        steps=83_000,
        batch_size=64,
    )
    steps, batch_size, size, width = arg.steps, arg.batch_size, 64, 128
    if arg.tiny:
        steps, batch_size, size, width, arg.text = 4, 8, 16, 8, ""
    like = sibling(__file__, "damsm_cub")(f"{'tiny,' if arg.tiny else ''}path={arg.path}")
    max_len = like.task.model.text.max_len
    larger = f"decode | resize({size * 76 // 64})"
    test = dict(
        source=like.evals.test.source,
        transforms=f"{larger} | center_crop({size}) | text({max_len})",
        batch_size=2 * batch_size,
    )
    evals = dict(samples=dict(name="samples", **test, every=max(steps // 50, 1)))
    if not arg.tiny:
        evals["quality"] = dict(
            name="images", **test, n=29_330, scores=("fid", "inception_score"), every=steps // 5
        )
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=dict(like.task.model.text, dropout=0.0, init_from=arg.text, train=not arg.text),
                generator=dict(name="dcgan", image_size=size, width=width, z_features=100, text_features=128),
                discriminator=dict(name="dcgan", width=width // 2, condition="replicate", text_features=128),
                loss=dict(name="non_saturating", matching=1.0, interpolation=1.0),
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source=like.data.source,
                transforms=f"{larger} | random_resized_crop({size}, min_area=0.7, ratio=1.0) | flip | text({max_len})",
                batch_size=batch_size,
                tokenizer=like.data.tokenizer,
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                options=dict(b1=0.5),
                learning_rate=2e-4,
                schedule="exponential",
                networks=dict(generator=dict(ema=0.999)),
            ),
            judges={} if arg.tiny else dict(inception=dict(name="inception", weights=arg.inception)),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 1000, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
