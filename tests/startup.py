"""Run by every kernel that `make test` starts (PYTHONSTARTUP): a warning about a cell or about the package is an error."""

import warnings

warnings.filterwarnings("error", module=r"(__main__|xrd_helpers)($|\.)")
