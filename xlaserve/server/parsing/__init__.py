"""What a model's text means: content, reasoning and tool calls, found by one incremental machine."""
