"""The network: Q-Former, fusion, splicing into the prompt, language model, and all of it together."""
