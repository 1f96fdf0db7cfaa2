"""Text to encodings and readouts to text: the encoder, codec and decoder ports and their implementations."""
