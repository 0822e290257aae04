"""What all tests share; crystals and files to test with are made in makers.py."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: figures without a screen
