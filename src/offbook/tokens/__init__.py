"""Which token ids a conversation is, and which of them are trained on."""
