from trex2_mini.cli import main

raise SystemExit(main())
