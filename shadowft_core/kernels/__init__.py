"""The arithmetic over bfloat16 parts: compiled where a compiler was at hand, else numpy with the same bits."""
