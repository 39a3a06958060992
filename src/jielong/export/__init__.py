"""Models for other programs: GGUF for llama.cpp (`gguf`), two files for numpy alone (`two_files`), and how they do."""
