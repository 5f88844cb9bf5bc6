"""A text that is begun has room up to its last token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import penstock
from penstock.generation import Generation
from penstock.models import open_folder
from penstock.rehearsal import reserve
from penstock.runtime.installation import Installation
from penstock.signature import Signature

from .tiny_models import write_qwen

PROMPT, NEW_TOKENS = "once upon a time", 20
AMPLE = 12 * 2**20


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[penstock.Plan]:
    """Every plan that is put in force from now on."""
    made: list[penstock.Plan] = []
    install = Installation.__init__

    def noted(self: Installation, plan: penstock.Plan, *args: Any, **kwargs: Any) -> None:
        made.append(plan)
        install(self, plan, *args, **kwargs)

    monkeypatch.setattr(Installation, "__init__", noted)
    return made


def job(folder: Path, budget: int, new_tokens: int = NEW_TOKENS) -> Generation:
    loaded = Generation(open_folder(folder), PROMPT, max_new_tokens=new_tokens)
    loaded.load(budget)
    return loaded


def test_nothing_is_planned_between_tokens(qwen: Path, plans: list[penstock.Plan]) -> None:
    loaded = job(qwen, AMPLE)
    in_force = plans[-1]
    generated = loaded.run()
    assert generated.new_tokens == NEW_TOKENS
    assert plans[-1] is in_force


def test_the_text_is_the_resident_models(qwen: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    new = model.generate(input_ids=ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :]
    assert job(qwen, AMPLE).run().text == tokenizer.decode(new, skip_special_tokens=True)


def test_a_text_that_cannot_be_finished_is_refused_before_it_begins(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.footprint.read_memory", lambda: None)
    with pytest.raises(penstock.BudgetInfeasibleError) as short:
        job(qwen, 1, new_tokens=1)
    with pytest.raises(penstock.BudgetInfeasibleError) as long:
        job(qwen, 1, new_tokens=80)
    assert long.value.needed_nbytes > short.value.needed_nbytes
    with pytest.raises(penstock.BudgetInfeasibleError):
        job(qwen, long.value.needed_nbytes - 512, new_tokens=80)
    assert job(qwen, long.value.needed_nbytes, new_tokens=80).run().new_tokens == 80


@pytest.mark.parametrize("new_tokens", [1, 2, 9])
def test_what_is_reserved_for_are_the_calls_that_come(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, new_tokens: int
) -> None:
    model = penstock.from_pretrained(transformers.Qwen3ForCausalLM, qwen, budget=AMPLE).eval()
    handle = penstock.inspect(model)
    reserved: list[Signature] = []
    monkeypatch.setattr(handle, "prepare", lambda call: reserved.append(Signature.of(*call)))
    inputs = transformers.AutoTokenizer.from_pretrained(qwen)(PROMPT, return_tensors="pt", return_token_type_ids=False)
    reserve(model, inputs, new_tokens)
    made: list[Signature] = []
    run = handle._run
    streamed = model.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(Signature.of(args, kwargs))
        return run(args, kwargs)

    model.forward = noted
    noted.__wrapped__ = streamed  # type: ignore[attr-defined]
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    assert reserved == ([made[-1], made[0]] if new_tokens > 1 else made)
    model.forward = streamed
    penstock.restore(model)


def test_a_model_whose_calls_cannot_be_foreseen_continues_a_text_all_the_same(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = job(qwen, AMPLE).run().text
    monkeypatch.setattr("penstock.dryrun._dry_run", lambda *_: None)
    assert job(qwen, AMPLE).run().text == expected
