"""What was trained, for other programs: fused models, PEFT, GGUF, Ollama."""
