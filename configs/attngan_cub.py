"""AttnGAN: birds of 64, 128 and 256 px from sentences, each position looking at the words, CUB, with the paper's
hyperparameters.

python scripts/train.py --config configs/damsm_cub.py:path=DIR,inception=FILE --workdir runs/damsm_cub
python scripts/train.py --config configs/attngan_cub.py:path=DIR,inception=FILE --workdir runs/attngan_cub

DIR has images/, text/ (ten captions each) and the lists of train/ and test/, see data/cub.py. The first run gives the text
tower and the matcher, which both stay as they are; there FILE is torchvision's Inception-v3, here the one of the FID papers.
Paper: Xu et al., AttnGAN, 2018, sections 3 and 4: the matcher's loss weighs 5, noise of 100, conditioning augmentation of
100. As in the authors' published code: 600 epochs (221,000 steps of 24; theirs were of 20, which no 8 devices share), Adam at
2e-4 with b1 = 0.5, 32 features in the generator, 64 in the discriminators, two residual blocks a stage, an average of the
generator (0.999).
Published: Inception score 4.36 (table 3, by Inception fine-tuned on birds, so that the score here is another one),
R-precision 67.82; FID 23.98 in later papers. For comparison DF-GAN (Tao et al., 2022): FID 14.81.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg, sibling


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests; without a matcher), path, matcher (a run of configs/damsm_cub.py), inception (weights for
    the scores), steps, batch_size, and for other data sets in this layout: like (the matcher's config), damsm (its loss's
    weight)."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/cub",
        matcher="runs/damsm_cub",
        inception="pt_inception-2015-12-05-6726825d.pth",
        steps=221_000,
        batch_size=24,
        like="damsm_cub",
        damsm=5.0,
    )
    steps, batch_size, sizes, width = arg.steps, arg.batch_size, (64, 128, 256), 32
    if arg.tiny:
        steps, batch_size, sizes, width, arg.matcher = 4, 8, (8, 16, 32), 4, ""
    like = sibling(__file__, arg.like)(f"{'tiny,' if arg.tiny else ''}path={arg.path}")
    size, max_len = sizes[-1], like.task.model.text.max_len
    larger = f"decode | resize({size * 76 // 64})"
    test = dict(
        source=like.evals.test.source,
        transforms=f"{larger} | center_crop({size}) | text({max_len})",
        batch_size=2 * batch_size,
    )
    evals = dict(samples=dict(name="samples", **test, words=2, every=max(steps // 50, 1)))
    judges, matchers = {}, {}
    if not arg.tiny:
        damsm = dict(like.task.model, weight=arg.damsm, init_from=arg.matcher, loss=like.task.loss)
        matchers = dict(damsm=damsm)
        judges = dict(inception=dict(name="inception", weights=arg.inception))
        evals["quality"] = dict(
            name="images", **test, n=29_330, scores=("fid", "inception_score"), every=steps // 5
        )
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="text_to_image",
                text=dict(like.task.model.text, dropout=0.0, init_from=arg.matcher, train=arg.tiny),
                generator=dict(name="attngan", image_sizes=sizes, width=width, blocks=2, augmented=100),
                discriminator=dict(name="attngan", width=2 * width),
                matchers=matchers,
                loss=dict(name="non_saturating", matching=1.0, kl=1.0),
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
                schedule="constant",
                networks=dict(generator=dict(ema=0.999)),
            ),
            judges=judges,
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 1000, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=evals,
            writers=("jsonl",),
        )
    )
