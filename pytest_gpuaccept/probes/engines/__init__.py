"""The engines, vLLM and llama.cpp: what their loads write, and what the contract says of it."""
