"""The arithmetic on bfloat16 parts: compiled C if it was built at installation, else numpy with the same bits."""
