"""A model folder names a class, and nothing in it is trusted further than that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from penstock.errors import CheckpointError, UnsupportedModelError
from penstock.models import open_folder


def write_config(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_first_architecture_is_the_class(tmp_path: Path) -> None:
    folder = open_folder(write_config(tmp_path, {"architectures": ["BertModel", "ViTModel"], "model_type": "bert"}))
    assert folder.load_class() is transformers.BertModel
    assert isinstance(folder.load_config(), transformers.BertConfig)


def test_without_architectures_the_model_type_decides(tmp_path: Path) -> None:
    assert open_folder(write_config(tmp_path, {"model_type": "vit"})).load_class() is transformers.ViTModel


def test_a_diffusers_model_is_recognised(tmp_path: Path) -> None:
    folder = open_folder(write_config(tmp_path, {"_class_name": "AutoencoderKL"}))
    assert (folder.library, folder.class_name) == ("diffusers", "AutoencoderKL")


@pytest.mark.parametrize(
    "name", [7, None, "", "os.system", "__builtins__", "_lazy", ["a"], "a b", "../x"], ids=lambda name: repr(name)
)
def test_a_class_name_that_is_none_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        open_folder(write_config(tmp_path, {"architectures": [name]}))


@pytest.mark.parametrize(
    "name", ["NoSuchModel", "logging", "pipeline", "BertConfig", "BertTokenizer", "PreTrainedModel2"]
)
def test_a_name_that_is_no_model_of_the_library_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        open_folder(write_config(tmp_path, {"architectures": [name], "model_type": "bert"})).load_class()


def test_code_that_the_folder_brings_along_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "modeling.py").write_text("raise SystemExit('ran')")
    config = {"architectures": ["OwnModel"], "auto_map": {"AutoModel": "modeling.OwnModel"}, "model_type": "own"}
    with pytest.raises(UnsupportedModelError, match="not run"):
        open_folder(write_config(tmp_path, config)).load_class()


def test_a_model_type_that_transformers_does_not_know_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_folder(write_config(tmp_path, {"model_type": "nonsense"})).load_class()


def test_an_endless_configuration_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match="too many"):
        open_folder(tmp_path)
