"""A step's memory stays with the process: pages that are asked for anew, counted in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from mmgen_jax.core import allocator

PROGRAM = """
import resource, sys
from mmgen_jax.core import allocator
kept = allocator.keep() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
step = jax.jit(lambda x: jnp.cumsum(x[::-1])[::-1].reshape(-1, 8).sum(0))
x = jnp.ones(2**22)
for _ in range(100):  # the heap grows until a step's buffers have their places
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=clean, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's memory")
def test_a_step_asks_for_no_new_pages():
    kept, faults = run("keep")
    assert kept == "True"
    assert faults * 2 < run("leave")[1]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_environment_has_the_last_word(name, monkeypatch):
    monkeypatch.setenv(name, "4")
    assert not allocator.keep()
