"""Scores, calibration, report."""
