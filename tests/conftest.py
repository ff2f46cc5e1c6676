"""What every test shares: pictures are drawn without a window."""

import matplotlib

matplotlib.use("Agg")
