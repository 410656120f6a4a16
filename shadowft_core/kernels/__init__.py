"""The arithmetic over bfloat16 parts: compiled C where it was built, else numpy with the same bits."""
