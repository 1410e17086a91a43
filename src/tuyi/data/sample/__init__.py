"""A built-in sample of customer dialogues and app pages, and the proof that its test part is unseen."""

from tuyi.data.sample.leak import LeakReport, leak_check
from tuyi.data.sample.write import SampleInfo, write_sample

__all__ = ["LeakReport", "SampleInfo", "leak_check", "write_sample"]
