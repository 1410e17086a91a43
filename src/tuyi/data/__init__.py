"""Examples in and out: formats, check, split, the built-in sample."""

from tuyi.data.check import check
from tuyi.data.convert import Converted, convert
from tuyi.data.example import Example, Image, Text, Turn, Video
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.report import CheckReport
from tuyi.data.source import read, scan
from tuyi.data.split import SplitReport, split
from tuyi.data.write import ExampleWriter

__all__ = [
    "CheckReport",
    "Converted",
    "Example",
    "ExampleWriter",
    "Image",
    "Problem",
    "ReadOptions",
    "SplitReport",
    "Text",
    "Turn",
    "Video",
    "check",
    "convert",
    "read",
    "scan",
    "split",
]
