"""The order in which weights are used is told without running the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from penstock.ordering import execution_order

from .tiny_models import write_bert


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_bert(tmp_path)


def test_weights_come_in_the_order_in_which_layers_run(bert: Path) -> None:
    order = execution_order(transformers.BertModel, bert, {"input_ids": torch.zeros(1, 4, dtype=torch.int64)})
    names = [name for name, _ in transformers.BertModel.from_pretrained(bert).named_parameters()]
    assert sorted(order) == sorted(names)
    assert order[0] == "embeddings.word_embeddings.weight"
    assert order.index("encoder.layer.0.output.dense.weight") < order.index("encoder.layer.1.output.dense.weight")
    assert order.index("encoder.layer.3.output.dense.weight") < order.index("pooler.dense.weight")


def test_where_the_pass_cannot_be_foreseen_there_is_no_order(bert: Path) -> None:
    assert execution_order(transformers.BertModel, bert, {"nonsense": torch.zeros(1)}) == ()
