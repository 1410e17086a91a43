"""Pixels: decode, resize, patches; pictures and video; the pool of processes that does it ahead of the model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuyi.vision.arena import Block
    from tuyi.vision.augment import Augment
    from tuyi.vision.image import MAX_PICTURE_PIXELS, ImageInfo, load_rgb, probe_image
    from tuyi.vision.patches import image_grid, image_patches
    from tuyi.vision.pool import PicturePool
    from tuyi.vision.resample import resampler
    from tuyi.vision.resize import smart_resize
    from tuyi.vision.spec import Family, ImagePatches, VideoPatches, VisionSpec
    from tuyi.vision.video import frame_indices, video_grid, video_patches, video_timing
    from tuyi.vision.video_file import VideoInfo, probe_video

__all__ = [
    "MAX_PICTURE_PIXELS",
    "Augment",
    "Block",
    "Family",
    "ImageInfo",
    "ImagePatches",
    "PicturePool",
    "VideoInfo",
    "VideoPatches",
    "VisionSpec",
    "frame_indices",
    "image_grid",
    "image_patches",
    "load_rgb",
    "probe_image",
    "probe_video",
    "resampler",
    "smart_resize",
    "video_grid",
    "video_patches",
    "video_timing",
]

_ROOM = {
    "arena": ("Block",),
    "augment": ("Augment",),
    "image": ("MAX_PICTURE_PIXELS", "ImageInfo", "load_rgb", "probe_image"),
    "patches": ("image_grid", "image_patches"),
    "pool": ("PicturePool",),
    "resample": ("resampler",),
    "resize": ("smart_resize",),
    "spec": ("Family", "ImagePatches", "VideoPatches", "VisionSpec"),
    "video": ("frame_indices", "video_grid", "video_patches", "video_timing"),
    "video_file": ("VideoInfo", "probe_video"),
}
_MODULE = {name: module for module, names in _ROOM.items() for name in names}


def __getattr__(name: str) -> Any:
    # Pillow, PyAV and numpy load when the first name is used, so that importing the room costs nothing.
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
