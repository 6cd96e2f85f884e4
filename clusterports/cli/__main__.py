"""``python -m clusterports.cli``."""

from . import main

main()
