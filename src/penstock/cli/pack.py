"""`penstock pack`: the checkpoint written anew, in the order of its use and aligned for direct reads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from penstock.budget import format_size
from penstock.cli.options import Json, Model
from penstock.cli.plan import example_for
from penstock.cli.terminal import Terminal
from penstock.errors import CheckpointError, UnsupportedModelError
from penstock.models import open_folder


def pack(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist yet.")],
    dtype: Annotated[str | None, typer.Option(help="Cast floating-point weights, to bfloat16 for example.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier pack of the same model.")] = False,
    as_json: Json = False,
) -> None:
    """Write MODEL's weights anew for streaming: in execution order, 4 KiB-aligned, converted where need be."""
    from penstock.pack import pack as write_pack

    terminal = Terminal(as_json=as_json)
    with terminal.progress() as report:
        report("finding the order", 0, 0)
        order = _order(model)
        written = write_pack(
            model,
            out,
            order=order,
            dtype=dtype,
            overwrite=overwrite,
            progress=lambda done, total: report("packing", done, total),
        )
    if not order:
        terminal.show("the order of use could not be told beforehand: weights are in the order of the checkpoint")
    terminal.show(
        f"{written.out}: {written.tensors} tensors, {format_size(written.nbytes)}, {len(written.files)} files"
    )
    if written.converted:
        terminal.show(f"converted for {model.name}'s class: {len(written.converted)} tensors")
    if written.unaligned:
        terminal.show(f"not aligned to 4 KiB: {', '.join(written.unaligned)}")
    files = [str(file) for file in written.files]
    terminal.emit({**asdict(written), "out": str(written.out), "files": files, "in_execution_order": bool(order)})


def _order(model: Path) -> tuple[str, ...]:
    """The order of use, for models whose class and inputs are known; packing does without it otherwise."""
    from penstock.ordering import execution_order

    try:
        folder = open_folder(model)
        cls = folder.load_class()
        example = example_for(folder, None, batch=1, tokens=16)
    except (CheckpointError, UnsupportedModelError):
        return ()  # a bare checkpoint can be packed too
    return execution_order(cls, folder.path, example)
