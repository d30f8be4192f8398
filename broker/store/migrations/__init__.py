"""Alembic's folder: how it is entered (``env``) and the migrations (``versions``)."""
