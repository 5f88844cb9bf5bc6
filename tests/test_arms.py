"""Arms: one model run in several ways, each in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from penstock.arms import Arm, ArmError, ArmSpec, alternate, open_arms
from penstock.tensors import load_tensors, save_tensors

from .tiny_models import write_bert


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ArmSpec:
    """A resident arm with two sets of inputs."""
    folder = write_bert(tmp_path_factory.mktemp("bert"))
    files = [folder / "first.safetensors", folder / "second.safetensors"]
    for number, file in enumerate(files):
        save_tensors({"input_ids": torch.full((2, 8), number)}, file)
    return ArmSpec(str(folder), "transformers", "BertModel", tuple(str(file) for file in files))


def budgeted(spec: ArmSpec, nbytes: int) -> ArmSpec:
    return ArmSpec(spec.folder, spec.library, spec.class_name, spec.inputs, nbytes)


def test_arms_take_turns_and_agree_on_every_bit(spec: ArmSpec, tmp_path: Path) -> None:
    turns: list[tuple[int, int]] = []
    with open_arms([spec, budgeted(spec, 64 * 2**20)]) as arms:
        resident, streamed = alternate(arms, 3, lambda *turn: turns.append(turn))
        arms[1].save_outputs(tmp_path / "outputs.safetensors")
    assert len(resident.seconds) == len(streamed.seconds) == 3
    assert turns[-1][0] == turns[-1][1]
    assert resident.outputs_sha256 == streamed.outputs_sha256
    assert resident.stats == {}
    assert streamed.stats["bytes_read"] > 0
    assert 0 < streamed.peak_nbytes <= 64 * 2**20
    outputs = load_tensors(tmp_path / "outputs.safetensors")
    model = transformers.BertModel.from_pretrained(spec.folder)
    with torch.inference_mode():
        for number, file in enumerate(spec.inputs):
            expected = model(**load_tensors(Path(file))).last_hidden_state
            assert torch.equal(outputs[f"{number}.last_hidden_state"], expected)


def test_what_an_arm_refuses_reaches_the_parent_and_no_process_is_left(spec: ArmSpec) -> None:
    with pytest.raises(ArmError, match=r"inside 1\.0 KiB: a budget of 1024 bytes"), open_arms([budgeted(spec, 1024)]):
        pass
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_inputs_that_the_model_refuses_are_told_in_one_line(spec: ArmSpec, tmp_path: Path) -> None:
    save_tensors({"input_ids": torch.full((1, 4), 10**6)}, tmp_path / "wrong.safetensors")
    wrong = ArmSpec(spec.folder, spec.library, spec.class_name, (str(tmp_path / "wrong.safetensors"),))
    with pytest.raises(ArmError, match="BertModel resident: it refuses these inputs"), open_arms([wrong]):
        pass


def test_a_killed_arm_is_an_error_and_no_hang(spec: ArmSpec) -> None:
    arm = Arm(spec, None)
    try:
        arm.kill()
        with pytest.raises(ArmError, match="its process ended"):
            arm.run()
    finally:
        arm.close()
