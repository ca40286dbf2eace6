"""`python -m bitswitch_deploy`."""

from bitswitch_deploy.cli.main import main

main()
