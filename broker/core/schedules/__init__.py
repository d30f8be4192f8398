"""Schedules: keys that are rotated by themselves, and what is overdue."""
