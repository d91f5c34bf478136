"""The attention of cells to tokens, in ways that suit a device; each equals a plain twin."""
