"""Postgres, through async SQLAlchemy: the only place that speaks SQL."""
