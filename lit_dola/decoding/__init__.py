"""The token loop, for any head: prefill, cached steps, guidance, sampling, inspection."""
