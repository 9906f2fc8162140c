"""What was received and is not everywhere yet where it belongs: durable, counted, retried."""
