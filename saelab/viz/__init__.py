"""Pure functions from data to Plotly figures and self-contained HTML; needs plotly."""
