from __future__ import annotations

import subprocess
import sys

import pytest

import tuyi.vision


def test_every_public_name_is_there() -> None:
    assert len(tuyi.vision.__all__) == len(set(tuyi.vision.__all__)) >= 17
    for name in tuyi.vision.__all__:
        assert getattr(tuyi.vision, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'resise'"):
        _ = tuyi.vision.resise


def test_importing_the_room_loads_no_library() -> None:
    code = "import sys, tuyi.vision; print([m for m in ('PIL', 'av', 'torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
