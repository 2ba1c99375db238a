"""`python -m conetd` is `conetd`."""

from conetd.cli import main

raise SystemExit(main())
