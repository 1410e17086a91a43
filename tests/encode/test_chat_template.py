"""The families' published chat templates: the same tokens as rendering the whole conversation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.encode.template import ChatTemplate
from tuyi.errors import ModelError

MEDIA = (
    "{% if c.type == 'image' or 'image' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' or 'video' in c %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c.text }}{% endif %}"
)
# Qwen2-VL and Qwen2.5-VL put their own system prompt in front of a conversation that brings none
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n{% else %}{% for c in m['content'] %}"
    + MEDIA
    + "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3-VL treats each role apart
BY_ROLE = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' }}{%- if messages[0].content is string %}"
    "{{- messages[0].content }}{%- else %}{%- for c in messages[0].content %}{%- if 'text' in c %}{{- c.text }}"
    "{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.content is string %}{{- m.content }}{%- else %}{%- for c in m.content %}"
    + MEDIA
    + "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.mark.parametrize(("family", "template"), [("qwen2_vl", DEFAULT_SYSTEM), ("qwen3_vl", BY_ROLE)])
def test_rows_are_those_of_the_template(
    twins: Callable[[str], Any], rows: dict[str, Example], family: str, template: str
):
    twin = twins(family)
    processor = copy.copy(twin.processor)
    processor.tokenizer = copy.deepcopy(twin.processor.tokenizer)
    processor.tokenizer.chat_template = template
    encoder = Encoder(processor.tokenizer, twin.model.spec, twin.encoder.tasks)
    other = replace(twin, processor=processor, encoder=encoder)
    for example in rows.values():
        ours = encoder.encode(example, labelled=True)
        theirs = other.inputs(example, example.label)["input_ids"][0].numpy()
        np.testing.assert_array_equal(ours.ids, theirs, example.id)
        assert processor.tokenizer.decode(ours.ids[ours.supervised]) == f"{example.label}<|im_end|>"
    assert ("helpful" in processor.tokenizer.decode(ours.ids)) == (template == DEFAULT_SYSTEM)


def test_a_tokenizer_without_a_template(twins: Callable[[str], Any]):
    tokenizer = copy.deepcopy(twins("qwen2_vl").processor.tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"has no chat template; add chat_template.jinja to the folder"):
        ChatTemplate(tokenizer)
