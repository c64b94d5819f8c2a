"""What tests and plugin authors use: tiny models, a tiny tokenizer, and the contract kit."""
