"""The web page of `tuyi serve`: a Gradio page behind a gate of its own."""
