"""The demo: SmolLM2, passkeys, perplexity."""
