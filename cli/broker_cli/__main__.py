"""``python -m broker_cli`` is the command ``broker``."""

from broker_cli.main import main

main()
