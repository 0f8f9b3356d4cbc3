"""OpenAI's Responses API, as another way to say what a chat completion request says, with answers that are kept for a while."""
