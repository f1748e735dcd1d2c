"""Scoring: what the scores of several tasks share."""
