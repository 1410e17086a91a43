"""Scores, calibration, comparison, report."""
