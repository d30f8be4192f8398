"""The store edge: the ``Store`` port on SQLAlchemy Core, and the audit journal that every write goes through."""
