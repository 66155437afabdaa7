"""A trained model as a service: OpenAI's API and a chat page, from llama.cpp's engine."""
