"""OpenAI's API: chats, completions, responses and conversations, embeddings, models."""
