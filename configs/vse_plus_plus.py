"""VSE++: a triplet loss with the hardest negative of the batch, ResNet-152 and a GRU.

python scripts/train.py --config configs/vse_plus_plus.py:path=DIR --workdir runs/vse_plus_plus

DIR holds Karpathy's dataset_flickr30k.json (or name=coco) and the images.
Paper: Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, 2018, section 4.1: margin 0.2,
batch 128, words of 300, GRU and joint space of 1,024, Adam at 2e-4, a tenth of it after half of the 30 epochs,
gradients clipped at 2, random crops of 224 px. The published fine-tuned model starts from ResNet-152 trained on
ImageNet: set task.model.image.init_from to such weights.
Reached here: not run; the data and the accelerator were not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path (folder of the json and the images), name (of the json), steps, batch_size."""
    arg = parse_arg(arg, tiny=False, path="data/flickr30k", name="flickr30k", steps=34_000, batch_size=128)
    steps, batch_size, size, max_len = (4, 8, 32, 12) if arg.tiny else (arg.steps, arg.batch_size, 224, 64)
    image = dict(name="resnet", variant="resnet152", pool="mean", init_from="")
    text = dict(name="text_rnn", cell="gru", features=1024, embed_features=300, pool="last", max_len=max_len)
    if arg.tiny:
        image.update(stages=(1, 1), width=8)
        text.update(features=16, embed_features=16)

    def karpathy(split):
        json = f"{arg.path}/dataset_{arg.name}.json"
        return dict(name="karpathy", path=json, images=arg.path, split=split)

    augment = (
        f"decode | resize({size * 8 // 7}) | random_resized_crop({size}, min_area=0.6, ratio=1.0) | flip"
    )
    cut = f"resize({size * 8 // 7}) | center_crop({size})"
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="contrastive",
                model=dict(
                    image=image,
                    text=text,
                    embed_dim=16 if arg.tiny else 1024,
                    image_head="affine",
                    text_head="none" if not arg.tiny else "affine",
                    temperature=0.0,
                ),
                loss=dict(name="triplet", margin=0.2, negatives="hardest"),
                slices=1,
            ),
            data=dict(
                source=karpathy("train"),
                transforms=f"{augment} | text({max_len})",
                batch_size=batch_size,
                tokenizer=dict(name="words", min_count=4),
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-4,
                schedule="drop",
                weight_decay=0.0,
                clip_norm=2.0,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 1000, keep=2),
            log_every=2 if arg.tiny else 50,
            evals=dict(
                val=dict(
                    name="retrieval",
                    source=karpathy("val"),
                    transforms=f"decode | {cut} | text({max_len}, per_image=5, which='first')",
                    batch_size=batch_size,
                    every=0 if arg.tiny else 1000,
                )
            ),
            writers=("jsonl",),
        )
    )
