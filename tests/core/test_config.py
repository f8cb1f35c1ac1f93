"""Config arguments, strictness, differences; and what the command line says to a mistake."""

import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from mmgen_jax.core import config as config_lib

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {"tiny": False, "steps": 100, "rate": 0.5, "name": "a", "path": None}


@pytest.mark.parametrize(
    ("arg", "changed"),
    [
        (None, {}),
        ("", {}),
        ("tiny", {"tiny": True}),
        ("tiny=False", {}),
        ("steps=7,tiny", {"steps": 7, "tiny": True}),
        ("rate=2", {"rate": 2.0}),
        ("rate=1e-3", {"rate": 0.001}),
        ("name=b/c.x", {"name": "b/c.x"}),
        ("path=../data", {"path": "../data"}),
        ("path=3", {"path": 3}),
    ],
)
def test_arguments(arg, changed):
    values = config_lib.parse_arg(arg, **DEFAULTS)
    assert values.to_dict() == {**DEFAULTS, **changed}
    assert type(values.rate) is float


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tny", r'Unknown config argument "tny"\. Did you mean "tiny"'),
        ("step=3", r'Unknown config argument "step"\. Did you mean "steps"'),
        ("zzzzzz=3", r"Valid: name, path, rate, steps, tiny"),
        ("steps=1.5", r'"steps" is 1\.5; it wants int, such as 100'),
        ("steps", r'"steps" is True; it wants int'),
        ("steps=True", r'"steps" is True; it wants int'),
        ("rate=fast", r"\"rate\" is 'fast'; it wants float"),
        ("rate=True", r'"rate" is True; it wants float'),
        ("tiny=1", r'"tiny" is 1; it wants bool'),
        ("name=3", r'"name" is 3; it wants str'),
    ],
)
def test_wrong_arguments(arg, message):
    with pytest.raises(ValueError, match=message):
        config_lib.parse_arg(arg, **DEFAULTS)


def whole():
    return ml_collections.ConfigDict({key: {} for key in config_lib.REQUIRED})


def test_check():
    config_lib.check(whole())
    config = whole()
    config.writers = ("jsonl",)
    config_lib.check(config)
    config.optimzer = {}
    with pytest.raises(ValueError, match=r'Unknown config key "optimzer"\. Did you mean "optimizer"'):
        config_lib.check(config)
    config = whole()
    del config.task, config.mesh
    with pytest.raises(ValueError, match=r"lacks the key\(s\) task, mesh"):
        config_lib.check(config)


def test_differences():
    old = ml_collections.ConfigDict({"a": 1, "b": {"c": (1, 2), "d": 2}, "f": {"g": 1}})
    new = ml_collections.ConfigDict({"a": 1, "b": {"c": [1, 2], "d": 3, "e": None}})
    assert config_lib.differences(old, old) == []
    assert config_lib.differences(old, new) == [
        "b.d: 2 -> 3",
        "b.e: '(absent)' -> None",
        "f.g: 1 -> '(absent)'",
    ]


def test_an_empty_section_is_a_difference():
    old, new = (ml_collections.ConfigDict({"a": 1, "evals": evals}) for evals in ({}, {"val": {"name": "x"}}))
    assert config_lib.differences(old, new) == ["evals.val.name: '(absent)' -> 'x'"]


def test_json(tmp_path):
    config = ml_collections.ConfigDict({"b": (1, 2), "a": {"c": None, "d": 1e-5}})
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(config))
    loaded = config_lib.load_json(path)
    assert config_lib.differences(config, loaded) == []
    assert loaded.a.d == 1e-5
    with pytest.raises(FileNotFoundError, match=r"No .*none.json\. A workdir gets one"):
        config_lib.load_json(tmp_path / "none.json")
    path.write_text(config_lib.to_json(config)[:-5])
    with pytest.raises(ValueError, match=r"config.json is not whole JSON .*Restore it"):
        config_lib.load_json(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.optimzer.x=1"],
            '--config.optimzer.x=1: the config has no key "optimzer". Did you mean "optimizer"?',
        ),
        (["--config.optimizer.learning_rat=1"], 'has no key "learning_rat". Did you mean "learning_rate"?'),
        (["--config.optimizer.qqq=0.9"], 'the config has no key "qqq". A key can be set here only if'),
        (["--config.steps=abc"], "flag --config.steps=abc: invalid literal for int()"),
        (["--worker=3"], "Unknown command line flag 'worker'. Did you mean: workdir ?"),
        (["stray"], "Unknown argument(s): stray"),
    ],
)
def test_the_command_line_names_the_mistake(flags, message, tmp_path, script_env):
    check_script(["--config=configs/captioner_scenes.py:tiny", *flags], message, tmp_path, script_env)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "configs/captioner_scene.py:tiny",
            'No config file configs/captioner_scene.py. Did you mean "configs/captioner_scenes.py"?',
        ),
        ("configs/captioner_scenes.py:tny", 'Unknown config argument "tny". Did you mean "tiny"?'),
    ],
)
def test_the_command_line_names_the_config(config, message, tmp_path, script_env):
    check_script(["--config", config], message, tmp_path, script_env)


def check_script(flags, message, tmp_path, env):
    command = [sys.executable, "scripts/train.py", "--workdir", str(tmp_path / "run"), *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in said
    assert "Traceback (most recent call last):\n  File" not in said
    assert not (tmp_path / "run").exists()


def test_sibling(tmp_path):
    (tmp_path / "base.py").write_text("def get_config(arg):\n    return {'arg': arg}\n")
    assert config_lib.sibling(str(tmp_path / "other.py"), "base")("tiny") == {"arg": "tiny"}
