"""Sessions: from the login of a pipeline to what it fetches."""
