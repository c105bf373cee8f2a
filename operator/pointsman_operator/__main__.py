"""``python -m pointsman_operator``."""

from __future__ import annotations

from pointsman_operator.main import main

if __name__ == "__main__":
    main()
