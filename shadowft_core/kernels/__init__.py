"""The arithmetic on bfloat16 parts: compiled C where it was built at installation, else numpy with the same bits."""
