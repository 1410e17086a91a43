"""tuyi: from labelled pictures, video and dialogue to a measured Qwen-VL model that picks the right label."""
