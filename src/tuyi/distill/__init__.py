"""More from the same rows: reasons, labels from a teacher, and labels that look wrong."""
