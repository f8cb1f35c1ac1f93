"""Package metadata of mmgen_jax."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mmgen_jax",
    version="0.1.0",
    description="Train and run multimodal generation models in JAX and Flax.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["mmgen_jax", "mmgen_jax.*"]),
    install_requires=[
        "jax>=0.10",
        "jaxlib>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "grain>=0.2.10",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "einops>=0.8",
        "ml_collections>=1.0",
        "tokenizers>=0.20",
        "pillow>=11",
        "pyarrow>=17",
        "numpy>=2",
        "safetensors>=0.4.3",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
        "rich>=13",
        "absl-py>=2",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "pycocoevalcap>=1.2",
            "transformers>=4.56",  # what its models compute, with the extra "torch"; tests skip without
            "nbformat",
            "nbclient",
            "ipykernel",
        ],
        # The benchmark's peers. On a machine without a GPU install a CPU build of PyTorch first.
        "torch": ["torch>=2.6", "transformers>=4.50"],
        "gpu": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # The TPU's compiler alone, for scripts/plan.py on a machine without one: the version that this jax names.
        "tpu-plan": ["jax[tpu]>=0.10"],
        "tensorboard": ["tensorboardX>=2.6", "tensorboard>=2.18"],
        "wandb": ["wandb>=0.18"],
        "video": ["av>=12"],  # mp4 and its like; GIFs, folders of frames and sheets need nothing more
        "search": ["faiss-cpu>=1.8"],
        "beam": ["apache-beam>=2.60"],  # collections larger than one machine; apache-beam[gcp] for Dataflow
        "gcs": ["gcsfs>=2024.6"],  # data sets on gs://
        "notebooks": ["jupyterlab>=4", "ipykernel"],
    },
)
