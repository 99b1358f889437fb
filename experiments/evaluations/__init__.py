"""Evaluations of trained models: functions that systems use, and commands."""
