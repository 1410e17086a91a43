"""Writing a model's files: weights, configuration, tokenizer and processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuyi.errors import OutputError, first_line
from tuyi.whole import output_errors

__all__ = ["parted", "weight_errors", "write_model", "write_processor"]


@contextmanager
def weight_errors(path: Path) -> Iterator[None]:
    """Failures to write weights, such as a full disk, as an :class:`OutputError` that names ``path``."""
    from safetensors import SafetensorError

    with output_errors(path):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            # torch's writer of zip files says "unexpected pos" where the disk is full
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            raise OutputError(f"{path} cannot be written: {first_line(error)}") from error


def write_model(hf: Any, processor: Any, folder: Path, *, shard_size: str = "50GB") -> None:
    """Write a model as transformers and its readers expect it.

    Args:
        hf: The plain transformers model.
        processor: Its processor.
        folder: Where to.
        shard_size: Most bytes of a weight file, as ``5GB``.
    """
    from tuyi.model.quiet import no_progress_bars

    with no_progress_bars():
        hf.save_pretrained(folder, max_shard_size=shard_size)
    write_processor(processor, folder)


def parted(hf: Any) -> dict[str, Any] | None:
    """The weights of a model some of which lie in one piece of memory; those on the host, by themselves.

    transformers writes such a model as well, but copies all of these first, on the GPU.

    Returns:
        What its ``save_pretrained`` takes as ``state_dict``; None where every weight lies by itself.
    """
    weights = hf.state_dict()
    joined = [name for name, weight in weights.items() if weight.untyped_storage().nbytes() > weight.nbytes]
    return {**weights, **{name: weights[name].to("cpu", copy=True) for name in joined}} if joined else None


def write_processor(processor: Any, folder: Path) -> None:
    """Write tokenizer, chat template and pixel settings; the latter also in the two files of readers before v5."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.video_processor.save_pretrained(folder)
