"""What the broker is. No module in here does IO; what is needed of the outside world stands in ``ports``."""
