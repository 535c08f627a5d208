"""`python -m genesis`: see genesis/cli/README.md."""

from genesis.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
