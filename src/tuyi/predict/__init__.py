"""Engines: from encoded rows to label distributions; resuming."""
