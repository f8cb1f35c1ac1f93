"""VQA v2 by a BERT-shaped Transformer for the question, a ViT for the picture, and a Transformer over the tokens of both.

python scripts/train.py --config configs/vqa_v2_bert_vit.py:path=DIR --workdir runs/vqa_v2

DIR holds what visualqa.org gives: the questions and annotations of train2014 and val2014 as JSON, and the pictures of COCO in
train2014/ and val2014/. `image=` and `text=` are files or folders of other libraries' weights from which the towers start:
a ViT-B/16 and a BERT base. `vocab=` is the vocab.txt that lies beside BERT's: questions then have these weights' ids.

Paper: Kim et al., ViLT, 2021, sections 4.1 and 4.2, for training: AdamW of 1e-4 with weight decay 0.01, 10 % of the steps
warm-up, then linear to 0, batches of 256 for 10 epochs, 3,129 answers. Teney et al., 2018, for the answers: those that are given
nine times or more, with soft scores and binary cross-entropy.
Differs from ViLT: that has no towers below its Transformer, and begins with weights that have seen pictures with captions;
without `vocab=` the words' vocabulary is a byte-pair one of 30,522, trained on the questions, where BERT's is of word pieces.
Reached here: not run; the data was not at hand.
"""

import ml_collections

from mmgen_jax.core.config import parse_arg

BASELINES = {
    "question alone": "modalities=question",
    "image alone": "modalities=image",
    "concatenation": "fusion=concatenation",
}
FUSIONS = {
    "concatenation": {},
    **{name: dict(features=1024) for name in ("sum", "multiplicative_gate", "additive_gate")},
    "mfb": dict(features=1000, rank=5),
    "mutan": dict(features=510, rank=5, hidden=310),
    "film": dict(features=768, blocks=4),
    **{
        name: dict(features=768, layers=6, heads=12, mlp_ratio=4.0, dropout=0.1)
        for name in ("cross_attention", "co_attention", "merged")
    },
    "mac": dict(features=512, steps=12),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments: tiny (for tests), path, fusion, modalities (image, question or both with a plus), image and text (weights of
    other libraries), vocab (of the text's weights), steps, batch_size."""
    arg = parse_arg(
        arg,
        tiny=False,
        path="data/vqa_v2",
        fusion="merged",
        modalities="image+question",
        image="",
        text="",
        vocab="",
        steps=17_340,
        batch_size=256,
    )
    steps, batch_size, size, max_len = (4, 8, 32, 16) if arg.tiny else (arg.steps, arg.batch_size, 384, 40)
    image = dict(name="vit", variant="vit_b", image_size=size, remat=True, scan=True, init_from=arg.image)
    question = dict(
        name="text_transformer",
        variant="bert_base",
        pool="none",
        dropout=0.1,
        remat=True,
        scan=True,
        init_from=arg.text,
    )
    fields = dict(FUSIONS.get(arg.fusion, {}))
    if arg.tiny:
        image.update(width=16, depth=2, heads=2, patch=8)
        question.update(width=16, depth=2, heads=2, max_len=max_len)
        small = dict(
            features=16, layers=1, heads=2, mlp_ratio=2.0, dropout=0.1, blocks=1, rank=2, hidden=8, steps=2
        )
        fields = {name: small[name] for name in fields}

    tokenizer = dict(name="words", min_count=1) if arg.tiny else dict(name="byte_pair", vocab_size=30_522)
    if arg.vocab:
        tokenizer = dict(name="wordpiece", path=arg.vocab)

    def questions(split):
        return dict(
            name="vqa",
            questions=f"{arg.path}/v2_OpenEnded_mscoco_{split}2014_questions.json",
            annotations=f"{arg.path}/v2_mscoco_{split}2014_annotations.json",
            images=f"{arg.path}/{split}2014",
        )

    return ml_collections.ConfigDict(
        dict(
            seed=0,
            steps=steps,
            task=dict(
                name="question_answering",
                model=dict(
                    towers=dict(image=image, question=question),
                    modalities=tuple(arg.modalities.split("+")),
                    fusion=dict(name=arg.fusion, **fields),
                    hidden=16 if arg.tiny else 1536,
                    dropout=0.1,
                    position=False,  # the ViT's tokens have theirs
                    pixels="half",
                    init_from="",
                ),
                loss="sigmoid",
                dtype="float32" if arg.tiny else "bfloat16",
            ),
            data=dict(
                source=questions("train"),
                transforms=f"decode | random_resized_crop({size}, min_area=0.5) | flip | question({max_len}) | answers",
                batch_size=batch_size,
                tokenizer=tokenizer,
                answers=dict(size=3129, min_count=1 if arg.tiny else 9),
                threads=16,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-4,
                schedule="linear",
                warmup=steps // 10,
                weight_decay=0.01,
            ),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            checkpoint=dict(every=2 if arg.tiny else 2000, keep=2),
            log_every=2 if arg.tiny else 100,
            evals=dict(
                val=dict(
                    name="answers",
                    source=questions("val"),
                    transforms=f"decode | resize(({size}, {size})) | question({max_len}) | answers",
                    batch_size=batch_size,
                    every=max(steps // 5, 1),
                ),
            ),
            writers=("jsonl",),
        )
    )
