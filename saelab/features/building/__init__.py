"""Building an index: codes on disk, then features one range after another, then tables, and a manifest last."""
