"""Anthropic's Messages API, as another way to say what a chat completion request says."""
